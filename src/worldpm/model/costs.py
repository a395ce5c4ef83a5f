"""What a run costs, before it runs: operations and memory of a model on rows of groups.

Operations are counted as the field does: two for a multiplication with an addition, the backward
twice the forward. Memory of activations is not a formula but a count: the model runs on tensors
without contents, and what it keeps is added up.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from worldpm.errors import ConfigError
from worldpm.model import reward_model
from worldpm.model.encoder import EncodedGroup
from worldpm.model.shared_prefix import UnplannedLayerError

MASTER_BYTES = 16
"""Of each trained parameter: weight, gradient, and AdamW's two moments, in float32."""
GIB = 2**30
GPU_ROW_TOKENS = 16_384
"""Tokens of a row of training on a GPU, unless told otherwise."""


class ModelCost(NamedTuple):
    """What a model costs whatever is read."""

    parameters: int
    non_embedding: int
    """The N of scaling laws."""
    attention_width: int
    """Layers times query heads times the width of one: what each pair of a query and a key
    costs."""
    active: int
    """Of `non_embedding`, what one token meets: of a mixture's experts only those that it is sent
    to."""


def train_flops(cost: ModelCost, *, tokens: int, attended: int) -> int:
    """Operations of forward and backward over unique tokens, of which `attended` pairs of query and
    key meet.

    Source: 6 N D of Kaplan et al., arXiv 2001.08361, section 2.1, with attention added as in
    Hoffmann et al., 2203.15556, F.
    """
    return 6 * cost.active * tokens + 12 * cost.attention_width * attended


def matrix_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Operations per second that products of large square matrices reach here, the best of four;
    takes well under a second."""
    on_gpu = torch.device(device).type == "cuda"
    size = 8192 if on_gpu else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        if on_gpu:
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def attended_pairs(groups: Sequence[EncodedGroup]) -> int:
    """Pairs of a query and a key that it may see, in rows with a shared prefix."""
    total = 0
    for group in groups:
        prefix = len(group.prefix)
        total += prefix * (prefix + 1) // 2
        total += sum(
            len(suffix) * prefix + len(suffix) * (len(suffix) + 1) // 2 for suffix in group.suffixes
        )
    return total


def typical_row(
    row_tokens: int, *, prompt: int, response: int, responses: int, shares_prefix: bool = True
) -> list[EncodedGroup]:
    """Groups of one shape that fill a row of a model that shares prompts, or does not; the last
    group's prompt takes what is left over."""
    prompts = 1 if shares_prefix else responses
    size = prompt * prompts + response * responses
    counts = [prompt] * max(1, row_tokens // size)
    counts[-1] = max(1, counts[-1] + (row_tokens - size * len(counts)) // prompts)
    zeros = np.zeros(max(row_tokens, size), dtype=np.int64)
    return [
        EncodedGroup(
            zeros[:count],
            [zeros[:response]] * responses,
            [response] * responses,
            [False] * responses,
        )
        for count in counts
    ]


def cost_of(config: PreTrainedConfig) -> ModelCost:
    """Counted on a model without contents; of one that also sees or hears, what text never meets
    only takes memory."""
    text = config.get_text_config()
    with FakeTensorMode(), no_init_weights():
        model = reward_model.from_config(text, seed=0)
        whole = model if text is config else reward_model.from_config(config, seed=0)
        tables = {
            id(p): p.numel()
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for p in module.parameters()
        }
        parameters, own = (sum(p.numel() for p in one.parameters()) for one in (whole, model))
        experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    others = own - sum(tables.values())
    idle = 1 - _share_of_experts(text) if experts else 0.0
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelCost(
        parameters,
        others,
        text.num_hidden_layers * text.num_attention_heads * head,
        others - round(idle * experts),
    )


def _share_of_experts(text: PreTrainedConfig) -> float:
    """How many of a mixture's experts a token is sent to; all, where the config does not say."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    many = next((getattr(text, name) for name in names if getattr(text, name, None)), None)
    taken = getattr(text, "num_experts_per_tok", None)
    return taken / many if many and taken else 1.0


def shares_prefix(config: PreTrainedConfig) -> bool:
    """Whether a model of a config can share prompts, as far as a run without contents can tell."""
    text = config.get_text_config()
    if reward_model.unshareable(text) is not None:
        return False
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights(), torch.no_grad():
        model = reward_model.from_config(text, seed=0)
        model.share_prefix(True)
        try:
            model(typical_row(1, prompt=1, response=1, responses=2))
        except UnplannedLayerError:
            return False
        except Exception:
            return (
                True  # it decides by contents what to compute, which says nothing of its attention
            )
    return True


def activation_bytes(
    config: PreTrainedConfig,
    row: Sequence[EncodedGroup],
    *,
    shared: bool,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
) -> int:
    """What a training step holds for the backward of one row, at its peak, weights aside; `shared`
    says whether it shares prompts.

    With gradient checkpointing that is each layer's input, and everything that one layer keeps.

    Raises:
        ConfigError: If the model decides by the contents of tensors what to compute, as mixtures of
            experts do, or a layer depends on others.
    """
    text = config.get_text_config()
    if gradient_checkpointing:
        tokens = sum(one.tokens for group in row for one in ([group] if shared else group.apart))
        return int(
            _kept_bytes(_with_layers(text, 1), row, dtype, shared)
            + tokens * text.hidden_size * 4 * text.num_hidden_layers
        )
    return _kept_bytes(text, row, dtype, shared)


def _with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    count = config.num_hidden_layers
    of_each = {
        name: value[:layers]
        for name, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == count
    }
    try:
        return type(config)(**{**config.to_dict(), **of_each, "num_hidden_layers": layers})
    except ValueError as error:
        raise ConfigError(
            f"{config.model_type}: one layer of it cannot stand alone ({error}); measure a step on"
            " one device"
        ) from error


def _kept_bytes(
    config: PreTrainedConfig, row: Sequence[EncodedGroup], dtype: torch.dtype, shared: bool
) -> int:
    """Bytes that autograd keeps of a forward, each storage once, those of weights and of their
    copies in `dtype` not counted."""
    kept: dict[int, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights():
        model = reward_model.from_config(config, seed=0)
        weights = _Weights(model)

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if tensor not in weights:
                kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        model.share_prefix(shared)
        try:
            with (
                weights,
                hooks,
                torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
            ):
                held = model(row)  # noqa: F841  # the graph must live while its storages are counted
        except Exception as error:
            raise ConfigError(
                f"{config.model_type}: what it keeps depends on the contents of its tensors"
                f" ({type(error).__name__}); measure a step on one device instead"
            ) from error
    return sum(kept.values())


class _Weights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The weights of a model, and what autocast makes of them in another type while this is
    entered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages = {
            parameter.untyped_storage()._cdata: parameter.untyped_storage()
            for parameter in model.parameters()
        }

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.storages

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0] in self:
            self.storages[found.untyped_storage()._cdata] = found.untyped_storage()
        return found
