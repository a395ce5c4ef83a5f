"""Costs of a run, computed before it starts: operations and memory of a model on rows of groups.

As usual in the field, a multiplication with an addition counts as two operations, and the backward
as twice the forward. Memory of activations is counted, not computed by a formula: the model runs on
tensors without contents, and the sizes of the tensors that it keeps are added up.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from worldpm.errors import ConfigError
from worldpm.model import reward_model
from worldpm.model.encoder import EncodedGroup
from worldpm.model.shared_prefix import UnplannedLayerError

MASTER_BYTES = 16
"""Bytes for each trained parameter: weight, gradient, and AdamW's two moments, in float32."""
GIB = 2**30
GPU_ROW_TOKENS = 16_384
"""Tokens of a row of training on a GPU, unless the user sets them."""


class ModelCost(NamedTuple):
    """Sizes of a model that determine its costs."""

    parameters: int
    """All parameters, embeddings included."""
    non_embedding: int
    """Parameters that are not embeddings, the N of scaling laws."""
    attention_width: int
    """Layers times query heads times the width of a head: the cost of each pair of a query and a
    key."""
    active: int
    """Part of `non_embedding` that computes one token: in a mixture of experts, only the experts
    that the token is sent to."""
    linear: int = 0
    """Weights of the linear layers, which can be stored in fewer bits."""
    adapter_width: int = 0
    """Inputs and outputs of the linear layers together: adapters of rank r have r times this many
    weights."""


def train_flops(cost: ModelCost, *, tokens: int, attended: int, frozen_share: float = 0.0) -> int:
    """Operations of forward and backward over unique tokens with `attended` pairs of query and key.
    `frozen_share` of the layers run forward only.

    Source: 6 N D of Kaplan et al., arXiv 2001.08361, section 2.1, with attention added as in
    Hoffmann et al., 2203.15556, F.
    """
    operations = 6 * cost.active * tokens + 12 * cost.attention_width * attended
    # the forward is a third of the operations
    return round(operations * (1 - frozen_share * 2 / 3)) if frozen_share else operations


def matrix_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """Operations per second that products of large square matrices reach on this device, the best
    of four; takes well under a second."""
    kind = torch.device(device).type
    size = 8192 if kind == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        a @ b
        # a GPU's products return before they are computed
        if kind != "cpu":
            torch.accelerator.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def attended_pairs(groups: Sequence[EncodedGroup]) -> int:
    """Pairs of a query and a key that it may attend to, in rows with a shared prefix."""
    total = 0
    for group in groups:
        prefix = len(group.prefix)
        total += prefix * (prefix + 1) // 2
        for suffix in map(len, group.suffixes):
            total += suffix * prefix + suffix * (suffix + 1) // 2
    return total


def typical_row(
    row_tokens: int, *, prompt: int, response: int, responses: int, shares_prefix: bool = True
) -> list[EncodedGroup]:
    """Groups of one shape that fill a row of a model with or without shared prompts; the last
    group's prompt has the remaining tokens."""
    prompts = 1 if shares_prefix else responses
    size = prompt * prompts + response * responses
    # at least one group, even if it is longer than the row
    lengths = [prompt] * max(1, row_tokens // size)
    lengths[-1] = max(1, lengths[-1] + (row_tokens - size * len(lengths)) // prompts)

    zeros = np.zeros(max(row_tokens, size), dtype=np.int64)
    suffixes = [zeros[:response]] * responses
    return [
        EncodedGroup(zeros[:length], suffixes, [response] * responses, [False] * responses)
        for length in lengths
    ]


def cost_of(config: PreTrainedConfig) -> ModelCost:
    """The costs of a config's model, counted on tensors without contents.

    The parts of a model for images and sound only need memory, because texts do not use them.

    Raises:
        ConfigError: If the model's attention cannot be replaced by ours.
    """
    text_config = config.get_text_config()
    with FakeTensorMode(), no_init_weights():
        try:
            model = reward_model.from_config(text_config, seed=0)
        except KeyError as error:
            raise ConfigError(
                f"{config.model_type}: has attention of its own, which cannot be replaced. Use"
                " another model."
            ) from error
        is_text_model = text_config is config
        full_model = model if is_text_model else reward_model.from_config(config, seed=0)
        non_embedding = _parameters(model) - _embedding_parameters(model)
        experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
        linear = [module for module in model.backbone.modules() if isinstance(module, nn.Linear)]
        parameters = _parameters(full_model)

    idle_share = 1 - _share_of_experts(text_config) if experts else 0.0
    heads = text_config.num_attention_heads
    head_width = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    return ModelCost(
        parameters,
        non_embedding,
        attention_width=text_config.num_hidden_layers * heads * head_width,
        active=non_embedding - round(idle_share * experts),
        linear=sum(module.weight.numel() for module in linear),
        adapter_width=sum(module.in_features + module.out_features for module in linear),
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _embedding_parameters(model: nn.Module) -> int:
    """Parameters of the embedding tables; a table that layers share counts once."""
    tables: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            tables |= {id(parameter): parameter.numel() for parameter in module.parameters()}
    return sum(tables.values())


def _share_of_experts(config: PreTrainedConfig) -> float:
    """Share of a mixture's experts that a token is sent to; 1 if the config names no number."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    experts = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / experts if experts and used else 1.0


def shares_prefix(config: PreTrainedConfig) -> bool:
    """Whether a model of a config can share prompts, as far as a run on empty tensors shows."""
    text_config = config.get_text_config()
    if reward_model.unshareable(text_config) is not None:
        return False

    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights(), torch.no_grad():
        model = reward_model.from_config(text_config, seed=0)
        model.share_prefix(True)
        try:
            model(typical_row(1, prompt=1, response=1, responses=2))
        except UnplannedLayerError:
            return False
        # a model whose operations depend on contents fails here, whatever its attention
        except Exception:
            return True
    return True


def activation_bytes(
    config: PreTrainedConfig,
    row: Sequence[EncodedGroup],
    *,
    shared: bool,
    dtype: torch.dtype,
    gradient_checkpointing: bool,
    lora_rank: int | None = None,
) -> int:
    """Peak bytes that a training step keeps for the backward of one row, without weights; `shared`
    is whether the row shares prompts. With `lora_rank`, only adapters and the head are trained.

    With gradient checkpointing these are the inputs of all layers and everything that one layer
    keeps.

    Raises:
        ConfigError: If the computation depends on the contents of tensors, as in mixtures of
            experts, or a layer depends on other layers.
    """
    text_config = config.get_text_config()
    if not gradient_checkpointing:
        return _kept_bytes(text_config, row, dtype, shared, lora_rank)

    tokens = sum(group.tokens for group in row)
    if not shared:
        tokens = sum(part.tokens for group in row for part in group.apart)
    # hidden states between layers have the type of the weights
    width = text_config.hidden_size * (dtype.itemsize if lora_rank else 4)
    inputs = tokens * width * text_config.num_hidden_layers
    layer = _kept_bytes(_with_layers(text_config, 1), row, dtype, shared, lora_rank)
    return int(layer + inputs)


def scoring_bytes(
    config: PreTrainedConfig, row: Sequence[EncodedGroup], *, shared: bool, dtype: torch.dtype
) -> int:
    """Bytes of a row without gradients, an upper limit: everything that one layer computes.

    Raises:
        ConfigError: See `activation_bytes`.
    """
    return _kept_bytes(_with_layers(config.get_text_config(), 1), row, dtype, shared, None)


def _with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config with its first layers only."""
    settings = config.to_dict()
    count = config.num_hidden_layers
    # lists with an entry for each layer, such as `layer_types`
    for name, value in settings.items():
        if isinstance(value, list) and len(value) == count:
            settings[name] = value[:layers]

    try:
        return type(config)(**{**settings, "num_hidden_layers": layers})
    except ValueError as error:
        raise ConfigError(
            f"{config.model_type}: its layers cannot be measured separately ({error}). Measure a"
            " step on one device."
        ) from error


def _kept_bytes(
    config: PreTrainedConfig,
    row: Sequence[EncodedGroup],
    dtype: torch.dtype,
    shared: bool,
    lora_rank: int | None,
) -> int:
    """Bytes that autograd keeps after a forward, each storage once, without weights and their
    copies in `dtype`."""
    kept_storages: dict[int, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights():
        model = reward_model.from_config(config, seed=0)
        if lora_rank is not None:
            _add_adapters(model.backbone, lora_rank, dtype)
        weights = _Weights(model)

        def note(tensor: torch.Tensor) -> torch.Tensor:
            if tensor not in weights:
                storage = tensor.untyped_storage()
                kept_storages[storage._cdata] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        is_half = dtype == torch.bfloat16
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half)
        model.share_prefix(shared)
        try:
            with weights, hooks, autocast:
                # the graph must live while its storages are counted
                rewards = model(row)  # noqa: F841
        except Exception as error:
            raise ConfigError(
                f"{config.model_type}: its memory depends on the contents of its tensors"
                f" ({type(error).__name__}). Measure a step on one device instead."
            ) from error

    return sum(kept_storages.values())


def _add_adapters(backbone: nn.Module, rank: int, dtype: torch.dtype) -> None:
    """Freeze a backbone in the compute type, and give its linear layers adapters, as `adapters.add`
    does with PEFT."""
    for module in list(backbone.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            frozen = torch.empty(parameter.shape, dtype=dtype)
            setattr(module, name, nn.Parameter(frozen, requires_grad=False))
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _Adapted(child, rank))


class _Adapted(nn.Module):
    """A frozen linear layer with an adapter."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """The sum of layer and adapter."""
        result: Tensor = self.base(inputs) + self.up(self.down(inputs))
        return result


class _Weights(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The weights of a model, and their copies that autocast makes in another type while this
    context is active."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # keep the storages too: the address of a freed storage may be used for another
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
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0] in self:
            self.storages[result.untyped_storage()._cdata] = result.untyped_storage()
        return result
