"""Low-rank adapters: train few weights beside the frozen ones, and merge them into a plain
checkpoint.

Source: Hu et al., arXiv 2106.09685, equation 3.
"""

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from worldpm.errors import ConfigError
from worldpm.model.reward_model import RewardModel

ALPHA_PER_RANK = 2
BASE, DOWN, UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."
"""PEFT's names for a frozen layer and for the two factors of its adapter."""


def add(model: RewardModel, *, rank: int, seed: int) -> None:
    """Give every linear layer of the backbone an adapter, and freeze all other weights but the
    head's.

    Raises:
        ConfigError: If PEFT is not installed, or the model stores its linear layers transposed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("--lora-rank needs PEFT: pip install 'worldpm[lora]'") from error

    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise ConfigError(
            "--lora-rank: adapters of transposed linear layers (Conv1D) cannot be merged. Train"
            " without --lora-rank."
        )

    config = LoraConfig(
        r=rank, lora_alpha=ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules="all-linear"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.backbone)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))
        # AdamW's small steps vanish in bfloat16
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model with adapters as those of the plain model, in float32.

    Frozen bfloat16 weights lie on the grid of bfloat16, so rounding their sums to it would lose
    most of what the adapters learned. Weights without adapters are returned unchanged.
    """
    if not any(BASE in name for name in weights):
        return weights

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
