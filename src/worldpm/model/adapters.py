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


def add(model: RewardModel, *, rank: int, seed: int) -> None:
    """Give every linear layer of the backbone an adapter, and freeze all else but the head.

    Raises:
        ConfigError: If PEFT is not installed, or the model has linear layers that are stored the
            other way round.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("--lora-rank needs PEFT: pip install 'worldpm[lora]'") from error
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise ConfigError(
            "--lora-rank: the model's linear layers are transposed (Conv1D), which are not merged;"
            " train it whole"
        )
    config = LoraConfig(
        r=rank, lora_alpha=ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules="all-linear"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.backbone)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model with adapters as those of one without, in float32: rounded to bfloat16
    the frozen ones, which lie on its grid, would lose most of what was learned. Without adapters
    all pass through."""
    if not any(BASE in name for name in weights):
        return weights
    found = {}
    for name, tensor in weights.items():
        if BASE not in name:
            if DOWN not in name and UP not in name:
                found[name] = tensor.float() if tensor.is_floating_point() else tensor
            continue
        plain = name.replace(BASE, ".")
        stem = name[: name.index(BASE)]
        whole = tensor.float()
        if plain.endswith(".weight"):
            whole = (
                whole
                + ALPHA_PER_RANK
                * weights[f"{stem}{UP}weight"].float()
                @ weights[f"{stem}{DOWN}weight"].float()
            )
        found[plain] = whole
    return found
