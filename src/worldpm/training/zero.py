"""DeepSpeed's ZeRO: the engine steps by itself, and holds weights and optimizer in partitions of
its own.

What is gathered here has the names and the form of every other state, so that a run may move to
ZeRO and away from it.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

Tensors = dict[str, Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")


def configure(accelerator: Accelerator, *, clip_norm: float) -> None:
    """Leave the size of a step, its accumulation and its loss to us; clipping is the engine's,
    before it steps."""
    config: dict[str, Any] = accelerator.state.deepspeed_plugin.deepspeed_config
    config.update(
        train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1, gradient_clipping=clip_norm
    )


def is_zero(accelerator: Accelerator) -> bool:
    """Whether the run was started with DeepSpeed."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def stage_of(accelerator: Accelerator) -> int:
    """Of ZeRO; 0 without DeepSpeed."""
    return int(accelerator.state.deepspeed_plugin.zero_stage) if is_zero(accelerator) else 0


def weights_of(engine: nn.Module, *, trained_only: bool) -> Tensors:
    """All weights, the trained ones in float32, by the model's own names; every process must call,
    and gets them."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in _parameters(engine).items():
        if parameter.requires_grad:
            found[name] = safe_get_full_fp32_param(parameter).detach().cpu().clone()
        elif not trained_only:  # the optimizer knows nothing of a frozen one
            with GatheredParameters([parameter]):
                found[name] = parameter.detach().cpu().clone()
    return found


def moments_of(engine: Any) -> dict[str, Tensors]:
    """What AdamW knows of each trained weight; nothing before the first step."""
    from deepspeed.utils import safe_get_full_optimizer_state

    step = _steps(engine)
    if not step:
        return {}
    _link(engine)
    trained = {name: p for name, p in _parameters(engine).items() if p.requires_grad}
    return {
        name: {
            **{m: safe_get_full_optimizer_state(p, m).detach().cpu().clone() for m in MOMENTS},
            "step": torch.tensor(step),
        }
        for name, p in trained.items()
    }


def put_weights(engine: nn.Module, weights: Tensors) -> None:
    """Give the engine weights, which every process must hold: its float32 ones, and those that the
    next forward reads."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in _parameters(engine).items():
        if name in weights:
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))
            with GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(weights[name])


def put_moments(engine: Any, moments: dict[str, Tensors]) -> None:
    """Give the engine what AdamW knew, which every process must hold."""
    from deepspeed.utils import safe_set_full_optimizer_state

    step = max((float(values["step"]) for values in moments.values()), default=0.0)
    partitions = (
        getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
        or engine.optimizer.single_partition_of_fp32_groups
    )
    for partition in partitions:  # before the first step AdamW has nothing that could be filled
        zeros = {moment: torch.zeros_like(partition) for moment in MOMENTS}
        engine.optimizer.optimizer.state[partition] = {"step": torch.tensor(step), **zeros}
    _link(engine)
    for name, parameter in _parameters(engine).items():
        for moment in MOMENTS:
            if name in moments:
                safe_set_full_optimizer_state(
                    parameter, moments[name][moment].to(parameter.device), moment
                )


def _parameters(engine: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name.removeprefix("module."): parameter for name, parameter in engine.named_parameters()
    }


def _link(engine: Any) -> None:
    """Stages 1 and 2 tie weights to moments once, at the first step, when AdamW may have none yet:
    tie them anew."""
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _states(engine: Any) -> list[dict[str, Any]]:
    """The states of the optimizer under the engine's, one for each partition."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return list(inner.state.values())


def _steps(engine: Any) -> float:
    return max((float(state["step"]) for state in _states(engine) if "step" in state), default=0.0)
