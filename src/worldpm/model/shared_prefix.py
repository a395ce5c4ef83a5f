"""Shared-prefix attention: `[prompt | response 1 | response 2 | ...]` runs as one row of an
unmodified decoder.

Every response attends to the prompt and itself, at the positions that it would have alone. Rewards
and gradients are therefore those of separate rows, but the prompt is computed once. The plan of a
row reaches the attention function as a keyword of the model's forward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel

from worldpm.model.encoder import EncodedGroup

ATTENTION = "worldpm_shared_prefix"
"""Name under which transformers knows our attention function."""
HALF_PRECISION = (torch.bfloat16, torch.float16)
FLASH_HEAD_WIDTH, FLASH_CAPABILITY = 256, (8, 0)
"""The widest head of flash attention, and the CUDA capability that it needs (Ampere)."""
FLOAT32_KEYS = 512
"""With at most this number of keys, a CPU computes attention in float32. Its kernels call a matrix
product for each small block, and in half precision such a call costs more than the product."""


class UnplannedLayerError(Exception):
    """A layer that ignores the plan: it would carry the state of one response into the next."""


class Span(NamedTuple):
    """Tokens of one group in a row."""

    prefix: int
    """Tokens of the shared prefix."""
    suffixes: tuple[int, ...]
    """Tokens after the prefix, for each response."""

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """Queries and keys of each response's attention; the first response includes the prompt's
        queries."""
        first, *rest = self.suffixes
        return ((self.prefix + first,) * 2, *((suffix, self.prefix + suffix) for suffix in rest))


@dataclass
class Plan:
    """A row of groups, ready for the model. T tokens, R responses."""

    input_ids: Tensor
    """Shape (1, T)."""
    position_ids: Tensor
    """Shape (1, T): each response continues where its prompt ends."""
    end_positions: Tensor
    """Shape (R,): index of each response's end token, in the order of groups and responses."""
    spans: tuple[Span, ...]
    calls: int = 0
    """Calls of attention: one per layer, except for layers without attention (recurrent ones)."""
    cache: dict[object, Tensor] = field(default_factory=dict)
    """Masks and indices, which are made at the first use and shared by all layers."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with one response."""
        return max(span.prefix + max(span.suffixes) for span in self.spans)

    def bias(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """0 where a query may attend, -inf elsewhere, shape (queries, keys): the causal band,
        aligned bottom right."""
        name = (queries, keys, window, like.dtype, like.device)
        if name not in self.cache:
            bias = torch.full(
                (queries, keys), float("-inf"), device=like.device, dtype=like.dtype
            ).triu(keys - queries + 1)
            # a window of n tokens includes the query's token
            if window is not None:
                bias += torch.full_like(bias, float("-inf")).tril(keys - queries - window)
            self.cache[name] = bias

        return self.cache[name]

    def key_index(self, device: torch.device) -> Tensor:
        """Indices of the keys of each response, one response after another: the prompt's tokens,
        then the response's tokens."""
        if ("key index", device) not in self.cache:
            pieces, start = [], 0
            for span in self.spans:
                prefix = np.arange(start, start + span.prefix)
                start += span.prefix
                for suffix in span.suffixes:
                    pieces += [prefix, np.arange(start, start + suffix)]
                    start += suffix

            self.cache["key index", device] = torch.from_numpy(np.concatenate(pieces)).to(device)
        return self.cache["key index", device]

    def borders(self, of: str, device: torch.device) -> Tensor:
        """Start and end of each response's `queries` or `keys` in their row, int32, shape (R +
        1,)."""
        if (of, device) not in self.cache:
            side = ("queries", "keys").index(of)
            lengths = [length[side] for span in self.spans for length in span.lengths]
            self.cache[of, device] = torch.tensor(
                [0, *np.cumsum(lengths)], dtype=torch.int32, device=device
            )
        return self.cache[of, device]


class _Attended(NamedTuple):
    """Inputs of one response's attention, each of shape (1, heads, length, d)."""

    queries: Tensor
    keys: Tensor
    values: Tensor


def plan_row(groups: Sequence[EncodedGroup], *, device: torch.device | str = "cpu") -> Plan:
    """The plan of one row. Every group must have a response."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    ends: list[int] = []
    spans: list[Span] = []
    tokens = 0
    for group in groups:
        span = Span(len(group.prefix), tuple(map(len, group.suffixes)))
        spans.append(span)
        ids += [np.asarray(piece, dtype=np.int64) for piece in (group.prefix, *group.suffixes)]

        positions.append(np.arange(span.prefix))
        positions += [np.arange(span.prefix, span.prefix + suffix) for suffix in span.suffixes]

        ends += (tokens + span.prefix + np.cumsum(span.suffixes) - 1).tolist()
        tokens += group.tokens

    return Plan(
        torch.from_numpy(np.concatenate(ids))[None].to(device),
        torch.from_numpy(np.concatenate(positions))[None].to(device),
        torch.tensor(ends, device=device),
        tuple(spans),
    )


def run_row(backbone: PreTrainedModel, plan: Plan, *, skipped: int = 0) -> Tensor:
    """The last hidden states of a planned row, shape (1, T, width). `skipped` is the number of
    layers that do not run.

    Raises:
        UnplannedLayerError: If a layer that runs has no attention.
    """
    hidden: Tensor = backbone(
        input_ids=plan.input_ids,
        position_ids=plan.position_ids,
        attention_mask=None,
        use_cache=False,
        plan=plan,
    ).last_hidden_state

    # a recurrent layer calls no attention, so responses would read each other
    if plan.calls < backbone.config.get_text_config().num_hidden_layers - skipped:
        raise UnplannedLayerError
    return hidden


# plans differ between rows, so only the code between attentions is compiled, once
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: Plan | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of a planned row, as transformers calls it: query (1, heads, T, d), result (1, T,
    heads, d).

    `sliding_window` is in tokens, including the query's token; `softcap` bounds the scores. `s_aux`
    are the heads' sinks.

    Raises:
        UnplannedLayerError: If the layer did not pass the plan on.

    Source: `AttentionInterface`, the call of every model of transformers >= 4.53.
    """
    if plan is None:
        raise UnplannedLayerError
    plan.calls += 1

    # a window longer than all sequences would only add the cost of a mask
    is_windowed = sliding_window is not None and sliding_window < plan.longest
    window = sliding_window if is_windowed else None
    if softcap is not None or s_aux is not None:
        return _by_hand(plan, query, key, value, window, scaling, softcap, s_aux), None

    dtype = _compute_type(query)
    if _has_flash(query, value, dtype):
        q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
        return _variable_length(plan, q, k, v, scaling, window), None

    outputs = [
        _fused(plan, response, dtype, scaling, window)
        for response in _responses(plan, query, key, value)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _compute_type(query: Tensor) -> torch.dtype:
    """The compute type of attention. Under autocast, rotary embeddings give float32, and only
    PyTorch's functions cast it back."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _has_flash(query: Tensor, value: Tensor, dtype: torch.dtype) -> bool:
    """Whether the variable-length kernel supports these tensors."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and dtype in HALF_PRECISION
        and width == value.shape[-1]
        and width <= FLASH_HEAD_WIDTH
        and torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY
    )


def _responses(plan: Plan, query: Tensor, key: Tensor, value: Tensor) -> Iterator[_Attended]:
    """Queries, keys and values of each response in turn; the first of a group includes the prompt's
    queries."""
    sizes = [size for span in plan.spans for size in (span.prefix, *span.suffixes)]
    # one split instead of many slices, because the gradient of a slice is as large as the row
    queries, keys, values = (iter(torch.split(x, sizes, dim=2)) for x in (query, key, value))

    for span in plan.spans:
        prefix_q, prefix_k, prefix_v = next(queries), next(keys), next(values)
        for index in range(len(span.suffixes)):
            suffix_q, suffix_k, suffix_v = next(queries), next(keys), next(values)
            yield _Attended(
                suffix_q if index else torch.cat([prefix_q, suffix_q], dim=2),
                torch.cat([prefix_k, suffix_k], dim=2),
                torch.cat([prefix_v, suffix_v], dim=2),
            )


def _fused(
    plan: Plan,
    response: _Attended,
    dtype: torch.dtype,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """PyTorch's attention of one response, with a result in `dtype`."""
    device = response.queries.device.type
    is_short = response.keys.shape[2] <= FLOAT32_KEYS
    inner = torch.float32 if device == "cpu" and dtype in HALF_PRECISION and is_short else dtype
    q, k, v = (x.to(inner) for x in response)

    # `is_causal` is faster than a mask, but its band is aligned top left
    is_square = q.shape[2] == k.shape[2] and window is None
    bias = None if is_square else plan.bias(q.shape[2], k.shape[2], window, q)
    with torch.autocast(device, enabled=False):
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias,
            is_causal=bias is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        ).to(dtype)


def _by_hand(
    plan: Plan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of all responses for layers that the fused kernels lack."""
    outputs = []
    for response in _responses(plan, query, key, value):
        q, k, _ = response
        bias = plan.bias(q.shape[2], k.shape[2], window, q)
        outputs.append(_explicit(response, bias, scaling, softcap, sinks))

    return torch.cat(outputs, dim=2).transpose(1, 2)


def _explicit(
    response: _Attended,
    bias: Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of one response by explicit operations, with soft-capped scores and sinks, which
    absorb attention weight."""
    q, k, v = response
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)

    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    # the softmax is in float32 for weights of any type, as in transformers
    scores = (scores + bias).float()

    if sinks is not None:
        columns = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, columns], dim=-1)
    weights = scores.softmax(dim=-1)[..., : k.shape[2]].to(v.dtype)
    return weights @ v


def _variable_length(
    plan: Plan, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """All responses in one flash-attention call; each gets copies of its prompt's keys and values.

    The kernel aligns its causal mask bottom right if the numbers of queries and keys differ.
    """
    index = plan.key_index(query.device)
    q = query[0].transpose(0, 1)
    k, v = key[0].transpose(0, 1)[index], value[0].transpose(0, 1)[index]

    output = varlen_attn(
        q,
        k,
        v,
        plan.borders("queries", q.device),
        plan.borders("keys", q.device),
        *_longest(plan),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
        # more splits would depend on the batch's longest sequence, and change bits of a reward
        num_splits=1,
    )
    assert isinstance(output, Tensor)
    return output[None]


def _longest(plan: Plan) -> tuple[int, int]:
    """The largest number of queries, and of keys, of one response."""
    lengths = [length for span in plan.spans for length in span.lengths]
    return max(queries for queries, _ in lengths), max(keys for _, keys in lengths)
