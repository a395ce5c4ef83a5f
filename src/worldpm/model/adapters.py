"""Low-rank adapters: train few weights beside the frozen ones, and merge them into a plain
checkpoint.

Source: Hu et al., arXiv 2106.09685, equation 3.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from worldpm import extras
from worldpm.errors import ConfigError, first_line
from worldpm.model import quantization
from worldpm.model.reward_model import RewardModel

logger = logging.getLogger(__name__)

ALPHA_PER_RANK = 2
BACKBONE = "backbone."
BASE, DOWN, UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."
"""PEFT's names for a frozen layer and for the two factors of its adapter."""


def package(needed_by: str) -> Any:
    """Import PEFT, which is an extra; `needed_by` starts the error if it is missing.

    Raises:
        ConfigError: If PEFT is not installed.
    """
    return extras.load("peft", extra="lora", needed_by=needed_by)


def add(model: RewardModel, *, rank: int, seed: int) -> None:
    """Give every linear layer of the backbone an adapter, and freeze all other weights except the
    head's.

    Experts that share one parameter stay frozen. The layers of state-space mixers stay frozen too,
    because their kernels read the weights directly and would bypass an adapter.

    Raises:
        ConfigError: If PEFT is not installed, or the adapters could not be merged at the end.
    """
    peft = package("--lora-rank")
    before = dict(model.state_dict())
    names = _adapted_layers(model)
    # No shorthand such as `all-linear`: for mixtures of experts PEFT would extend it to parameters.
    config = peft.LoraConfig(
        r=rank, lora_alpha=ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules=names
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        raise _refusal(first_line(error)) from error

    _check_mergeable(before, model.state_dict())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))
        # AdamW's small steps vanish in bfloat16
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _adapted_layers(model: RewardModel) -> list[str]:
    """The names of the layers that get an adapter.

    Raises:
        ConfigError: If the model stores its linear layers transposed, or has none.
    """
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise _refusal("adapters of transposed linear layers (Conv1D) cannot be merged")

    modules = dict(model.named_modules())
    mixers = tuple(f"{name}." for name, module in modules.items() if _is_state_space(module))
    names = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and name.startswith(BACKBONE)
    ]
    adapted = [name for name in names if not name.startswith(mixers)]
    if not adapted:
        raise _refusal("no layer of the model can have an adapter")

    if any(".experts." in name and tensor.ndim == 3 for name, tensor in model.named_parameters()):
        logger.info("--lora-rank: the experts have no adapters and stay unchanged")
    return adapted


def _is_state_space(module: nn.Module) -> bool:
    """Whether a module is a mixer of the Mamba family: it has a state's decay and a skip."""
    parameters = {name for name, _ in module.named_parameters(recurse=False)}
    return {"A_log", "D"} <= parameters


def _check_mergeable(before: Collection[str], after: Mapping[str, Tensor]) -> None:
    """Reject adapters that `merged` could not merge, before the first step."""
    frozen = [name for name in after if BASE in name and name.endswith(".weight")]
    factors = {f"{name[: name.index(BASE)]}{side}weight" for name in frozen for side in (UP, DOWN)}
    merged_names = [name.replace(BASE, ".") for name in after if name not in factors]
    if set(merged_names) != set(before) or not factors <= set(after):
        odd = sorted(set(merged_names) ^ set(before))
        raise _refusal(f"adapters of its layers cannot be merged ({', '.join(odd[:3])})")


def _refusal(reason: str) -> ConfigError:
    return ConfigError(f"--lora-rank: {reason}. Train without --lora-rank.")


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge the weights of a model with adapters into weights of the plain model, in float32.

    If the sums were rounded to bfloat16 like the frozen weights, most of what the adapters learned
    would be lost. Weights without adapters are returned unchanged.
    """
    if not any(BASE in name for name in weights):
        return weights

    weights = quantization.dequantized(weights)
    plain_weights: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if BASE in name:
            plain_weights[name.replace(BASE, ".")] = _with_adapter(name, weights)
        elif DOWN not in name and UP not in name:
            plain_weights[name] = tensor.float() if tensor.is_floating_point() else tensor
    return plain_weights


def _with_adapter(name: str, weights: dict[str, Tensor]) -> Tensor:
    """The frozen weight `name` plus the product of its adapter's factors; biases have no
    adapter."""
    frozen = weights[name].float()
    if not name.endswith(".weight"):
        return frozen

    stem = name[: name.index(BASE)]
    up = weights[f"{stem}{UP}weight"].float()
    down = weights[f"{stem}{DOWN}weight"].float()
    return frozen + ALPHA_PER_RANK * up @ down
