"""Processes and devices of a training run, and their speed at matrix products."""

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
"""Time that processes wait for the first one, which tokenizes and writes."""


def accelerator(
    dtype: torch.dtype, *, tracker: str | None = None, folder: Path | None = None
) -> Accelerator:
    """The processes and devices of this run, as `accelerate launch` or `torchrun` started it; one
    process if neither did.

    `tracker` is a tracker of Accelerate's; its files, if it has any, go to `folder`.

    Raises:
        ConfigError: If the first version of FSDP was asked for, whose state no other engine could
            go on from, or if the tracker's library is absent.
    """
    if tracker and tracker not in map(str, get_available_trackers()):
        raise ConfigError(
            f"--tracker {tracker}: its library is not installed; `pip install {tracker}`"
        )

    # an earlier run of this process may have had another compute type
    AcceleratorState._reset_state()
    on_cpu = default_device().type == "cpu"
    # the launcher sets it; Accelerate then refuses its `cpu`
    by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    group = InitProcessGroupKwargs(
        timeout=PATIENCE, backend="gloo" if on_cpu and by_deepspeed else None
    )
    # gradients are then once in memory, not twice
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    # the loop accumulates by itself, whatever the environment says
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
        raise ConfigError(f"FSDP version 1 is not supported; {FSDP2_COMMAND}")

    # gradients are summed, and rewards given out, in float32: bfloat16 rewards would tie
    if dtype == torch.bfloat16:
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
        processes.state.fsdp_plugin.mixed_precision_policy = policy


@dataclass(frozen=True)
class Speed:
    """The measure of a run's steps."""

    peak: float
    """Operations per second of all devices together, by their own matrix products."""

    @classmethod
    def of(cls, accelerator: Accelerator, dtype: torch.dtype) -> Self:
        """Measure the device; takes a moment."""
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
