"""Weights in 8 or 4 bits, for models that are larger than a card: frozen linear layers only.

int8: one scale for each row of a matrix, and products in the compute type (torchao). int4: NF4 in
blocks of 64 weights (bitsandbytes; Dettmers et al., arXiv 2305.14314, section 3). Embeddings, norms
and the head are not changed. Rewards differ from those of the full weights.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from worldpm import extras
from worldpm.errors import ConfigError

logger = logging.getLogger(__name__)

Bits = Literal["int8", "int4"]
NF4_STATE = ".quant_state.bitsandbytes__nf4"
"""End of the name of the packed constants that bitsandbytes stores beside a weight."""
BLOCK = 64
"""Weights that share a scale in int4."""
BYTES_A_WEIGHT: Mapping[Bits, float] = {"int8": 1.0, "int4": 0.5 + 4 / BLOCK}
"""Bytes of a weight with its share of scales; those of int8 rows are negligible."""


def package(name: str) -> Any:
    """Import torchao or bitsandbytes.

    Raises:
        ConfigError: If it is not installed.
    """
    return extras.load(name, extra="quant", needed_by="--quantize or --optimizer adamw-8bit")


def settings(bits: Bits, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Keywords of transformers' `from_pretrained` that quantize each weight as it is read, so that
    the full weights are never in memory together.

    Raises:
        ConfigError: If a package is not installed.
    """
    extras.load("accelerate", extra="train", needed_by="--quantize")
    if bits == "int8":
        config: Any = TorchAoConfig(package("torchao.quantization").Int8WeightOnlyConfig())
    else:
        package("bitsandbytes")
        config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return {"quantization_config": config, "device_map": {"": device}}


def forget(model: PreTrainedModel) -> None:
    """Remove transformers' record of the quantization, so that the model is saved as a plain one
    once its weights are plain again, and turn off a layout that gives wrong gradients."""
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes packs weights for a kernel without gradients
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
    vars(model).pop("hf_quantizer", None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def check(model: PreTrainedModel, name: object) -> None:
    """Reject a model whose layers cannot be quantized, and warn if most weights stay full.

    Raises:
        ConfigError: If the model has no linear layers of PyTorch, or transposed or changed ones.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    quantized = [module for module in linear if type(module.weight) is not nn.Parameter]
    # bitsandbytes also replaces transposed layers, which adapters cannot be merged into. torchao
    # changes subclasses that have a computation of their own
    odd = [
        module
        for module in quantized
        if getattr(module, "source_cls", nn.Linear) is not nn.Linear
        or (type(module) is not nn.Linear and not hasattr(module, "quant_state"))
    ]
    if not quantized or odd:
        raise ConfigError(
            f"--quantize: the layers of {name} ({model.config.model_type}) cannot be quantized."
            " Leave it out."
        )
    small = sum(module.in_features * module.out_features for module in quantized)
    embeddings = sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    )
    stored = sum(
        parameter.numel() for parameter in model.parameters() if type(parameter) is nn.Parameter
    )
    full = stored - embeddings
    if small < full:
        logger.warning(
            "--quantize: only %.0f %% of the weights are quantized; the others, such as experts,"
            " stay full",
            100 * small / (small + full),
        )


def dequantized(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a state dict with those in int4 as plain float32 tensors."""
    names = [name.removesuffix(NF4_STATE) for name in weights if name.endswith(NF4_STATE)]
    if not names:
        return dict(weights)

    functional = package("bitsandbytes").functional
    constants = tuple(f"{name}." for name in names)
    plain = {name: tensor for name, tensor in weights.items() if not name.startswith(constants)}
    for name in names:
        parts = {key: part for key, part in weights.items() if key.startswith(f"{name}.")}
        # The function empties the dictionary that it gets
        state = functional.QuantState.from_dict(parts, device=weights[name].device)
        plain[name] = functional.dequantize_4bit(weights[name], state).float()
    return plain
