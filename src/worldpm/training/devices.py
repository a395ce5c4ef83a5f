"""Processes and devices of a training run, and how fast they can multiply."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

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

FSDP2_WORDS = (
    "`accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP"
    " ...`"
)
Json = dict[str, Any]


def accelerator(
    dtype: torch.dtype, *, tracker: str | None = None, folder: Path | None = None
) -> Accelerator:
    """The processes and devices of this run, as `accelerate launch` or `torchrun` started it;
    alone, one process.

    `tracker` is one of Accelerate's, which keeps its files in `folder` where it has any.

    Raises:
        ConfigError: If the first version of FSDP was asked for, whose state no other engine could
            go on from, or if the tracker's library is absent.
    """
    # an earlier run of this process may have had another compute type
    AcceleratorState._reset_state()
    precision = "bf16" if dtype == torch.bfloat16 else "no"
    by_deepspeed = (
        os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    )  # the launcher's word; Accelerate then wants no `cpu`
    on_cpu = not torch.cuda.is_available()
    # the first process tokenizes and writes while the others wait
    patience = InitProcessGroupKwargs(
        timeout=timedelta(days=7), backend="gloo" if on_cpu and by_deepspeed else None
    )
    views = DistributedDataParallelKwargs(
        gradient_as_bucket_view=True
    )  # gradients once in memory, not twice
    if tracker and tracker not in map(str, get_available_trackers()):
        raise ConfigError(
            f"--tracker {tracker}: its library is not installed; `pip install {tracker}`"
        )
    made = Accelerator(
        mixed_precision=precision,
        cpu=on_cpu and not by_deepspeed,
        kwargs_handlers=[patience, views],
        log_with=tracker,
        project_dir=folder,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=1
        ),  # whatever the environment says
    )
    if made.distributed_type == DistributedType.FSDP:
        if not made.is_fsdp2:
            raise ConfigError(f"FSDP version 1 is not supported; {FSDP2_WORDS}")
        if (
            dtype == torch.bfloat16
        ):  # gradients are summed, and rewards given out, in float32: bfloat16 rewards would tie
            policy = MixedPrecisionPolicy(
                param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=torch.float32
            )
            made.state.fsdp_plugin.mixed_precision_policy = policy
    return made


@dataclass(frozen=True)
class Speed:
    """What the steps of a run are measured by."""

    peak: float
    """Operations per second of all devices together, by their own matrix products."""

    @classmethod
    def of(cls, accelerator: Accelerator, dtype: torch.dtype) -> Self:
        """Measures the device for a moment."""
        return cls(costs.matrix_rate(accelerator.device, dtype) * accelerator.num_processes)

    def told(self, *, flops: int, tokens: int, pairs: int, seconds: float) -> Json:
        """Rates of a step, and its model FLOPs utilization: useful operations as a share of the
        devices' own matrix rate."""
        rates = {
            "pairs_per_second": round(pairs / seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        return {**rates, "mfu": round(flops / seconds / self.peak, 4)}
