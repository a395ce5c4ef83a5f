"""Processes and devices of a training run, and their speed in matrix products."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from worldpm.errors import ConfigError
from worldpm.model import costs
from worldpm.model.devices import default_device
from worldpm.training.step_metrics import StepTiming

FSDP2_COMMAND = (
    "`accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP"
    " ...`"
)
PATIENCE = timedelta(days=7)
"""How long processes wait for the first process, which tokenizes and writes."""


def accelerator(
    dtype: torch.dtype, *, tracker: str | None = None, folder: Path | None = None
) -> Accelerator:
    """The processes and devices that `accelerate launch` or `torchrun` set up; one process if
    neither started this run.

    `tracker` is the name of one of Accelerate's trackers, which writes its files to `folder`.

    Raises:
        ConfigError: If the run uses the first version of FSDP, whose state no other engine can
            load, or if the tracker's library is not installed.
    """
    if tracker and tracker not in map(str, get_available_trackers()):
        raise ConfigError(
            f"--tracker {tracker}: its library is not installed. Run `pip install {tracker}`."
        )

    # an earlier run of this process may have had another compute type
    AcceleratorState._reset_state()
    on_cpu = default_device().type == "cpu"
    # if the launcher set this variable, Accelerate rejects `cpu=True`
    by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    group = InitProcessGroupKwargs(
        timeout=PATIENCE, backend="gloo" if on_cpu and by_deepspeed else None
    )
    # with views, gradients are in memory once, not twice
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    # the loop accumulates gradients itself, and ignores the environment's setting
    accumulation = GradientAccumulationPlugin(num_steps=1)

    processes = Accelerator(
        mixed_precision="bf16" if dtype == torch.bfloat16 else "no",
        cpu=on_cpu and not by_deepspeed,
        kwargs_handlers=[group, views],
        log_with=tracker,
        project_dir=folder,
        gradient_accumulation_plugin=accumulation,
    )
    if processes.distributed_type == DistributedType.FSDP:
        _configure_fsdp(processes, dtype)
    return processes


def _configure_fsdp(processes: Accelerator, dtype: torch.dtype) -> None:
    if not processes.is_fsdp2:
        raise ConfigError(f"FSDP: version 1 is not supported. Use version 2: {FSDP2_COMMAND}.")

    # sum gradients and return rewards in float32, because bfloat16 rewards would tie
    if dtype == torch.bfloat16:
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
        processes.state.fsdp_plugin.mixed_precision_policy = policy


@dataclass(frozen=True)
class Speed:
    """The matrix rate of a run's devices, against which its steps are measured."""

    peak: float
    """Operations per second of all devices together, measured on matrix products."""

    @classmethod
    def of(cls, accelerator: Accelerator, dtype: torch.dtype) -> Self:
        """Measure the device, which takes a moment."""
        return cls(costs.matrix_rate(accelerator.device, dtype) * accelerator.num_processes)

    def timing(
        self, step: int, *, flops: int, tokens: int, pairs: int, seconds: float
    ) -> StepTiming:
        """The rates of a step that took `seconds`."""
        return StepTiming(
            step=step,
            seconds=round(seconds, 4),
            pairs_per_second=round(pairs / seconds, 2),
            tokens_per_second=round(tokens / seconds, 1),
            mfu=round(flops / seconds / self.peak, 4),
        )
