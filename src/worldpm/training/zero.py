"""DeepSpeed's ZeRO: the engine takes the optimizer's step itself, and partitions weights and
moments.

Tensors gathered here have the same names and form as in other states, so a run can switch between
ZeRO and other engines.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

Tensors = dict[str, Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names for its two moments."""


def configure(accelerator: Accelerator, *, clip_norm: float) -> None:
    """Let the training loop decide the size of a step, its accumulation and its loss. The engine
    clips gradients, because it takes its step right after the last backward pass."""
    config: dict[str, Any] = accelerator.state.deepspeed_plugin.deepspeed_config
    config.update(
        train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1, gradient_clipping=clip_norm
    )


def is_zero(accelerator: Accelerator) -> bool:
    """Whether the run was started with DeepSpeed."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def stage_of(accelerator: Accelerator) -> int:
    """The stage of ZeRO, 1 to 3; 0 without DeepSpeed."""
    return int(accelerator.state.deepspeed_plugin.zero_stage) if is_zero(accelerator) else 0


def weights_of(engine: nn.Module, *, trained_only: bool) -> Tensors:
    """All weights by the model's parameter names; trained ones are in float32. Every process must
    call this, and gets the weights."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in _parameters(engine).items():
        if parameter.requires_grad:
            weights[name] = safe_get_full_fp32_param(parameter).detach().cpu().clone()
        elif not trained_only:
            # the optimizer has no float32 copy of a frozen weight
            with GatheredParameters([parameter]):
                weights[name] = parameter.detach().cpu().clone()
    return weights


def moments_of(engine: Any) -> dict[str, Tensors]:
    """AdamW's moments and step of each trained weight; empty before the first step."""
    from deepspeed.utils import safe_get_full_optimizer_state

    step = _steps(engine)
    if not step:
        return {}

    _link(engine)
    moments: dict[str, Tensors] = {}
    for name, parameter in _parameters(engine).items():
        if parameter.requires_grad:
            moments[name] = {
                moment: safe_get_full_optimizer_state(parameter, moment).detach().cpu().clone()
                for moment in MOMENTS
            }
            moments[name]["step"] = torch.tensor(step)
    return moments


def put_weights(engine: nn.Module, weights: Tensors) -> None:
    """Load weights into the engine: the optimizer's float32 copies, and the weights of the next
    forward pass. Every process must hold them."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in _parameters(engine).items():
        if name in weights:
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))
            with GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(weights[name])


def put_moments(engine: Any, moments: dict[str, Tensors]) -> None:
    """Load AdamW's moments and step into the engine. Every process must hold them."""
    from deepspeed.utils import safe_set_full_optimizer_state

    step = max((float(values["step"]) for values in moments.values()), default=0.0)
    # stage 3 has another name for float32 partitions than stages 1 and 2
    partitions = (
        getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
        or engine.optimizer.single_partition_of_fp32_groups
    )
    # before the first step AdamW has no state, so create it
    for partition in partitions:
        zeros = {moment: torch.zeros_like(partition) for moment in MOMENTS}
        engine.optimizer.optimizer.state[partition] = {"step": torch.tensor(step), **zeros}

    _link(engine)
    for name, parameter in _parameters(engine).items():
        for moment, value in moments.get(name, {}).items():
            if moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)


def _parameters(engine: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by the model's names, without the engine's prefix."""
    # the engine holds the model as its `module`
    return {
        name.removeprefix("module."): parameter for name, parameter in engine.named_parameters()
    }


def _link(engine: Any) -> None:
    """Link weights to their moments again. Stages 1 and 2 do this only at the first step, when
    AdamW may have no moments yet."""
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _steps(engine: Any) -> float:
    """Number of steps that AdamW has taken."""
    wrapped = getattr(engine.optimizer, "optimizer", engine.optimizer)
    # one state for each partition
    steps = [float(state["step"]) for state in wrapped.state.values() if "step" in state]
    return max(steps, default=0.0)
