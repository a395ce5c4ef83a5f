"""Shared-prefix attention: `[prompt | response 1 | response 2 | ...]` runs as one row of an
unmodified decoder.

Every response sees the prompt and itself, at the positions that it would have had alone, so that
rewards and gradients are those of separate rows while the prompt is computed once. The plan of a
row travels to the attention function as a keyword of the model's forward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from worldpm.model.encoder import EncodedGroup

ATTENTION = "worldpm_shared_prefix"
HALF = (torch.bfloat16, torch.float16)
WIDEST_HEAD, AMPERE = 256, (8, 0)
"""What flash attention can do, and the first GPUs that it can do it on."""
SHORT = 512
"""Keys up to which a CPU computes attention in float32: its kernels call a matrix product for each
small block, and such a call costs more in half precision than the product itself."""


class UnplannedLayerError(Exception):
    """A layer works without the plan: it would carry one response's state into the next."""


class Span(NamedTuple):
    """One group's place in a row, in tokens."""

    prefix: int
    suffixes: tuple[int, ...]

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """Queries and keys of each response's attention: the first brings the prompt's queries
        along."""
        first, *others = self.suffixes
        return ((self.prefix + first,) * 2, *((suffix, self.prefix + suffix) for suffix in others))


@dataclass
class Plan:
    """A row of groups, ready for the model. T tokens, R responses."""

    input_ids: Tensor
    """Shape (1, T)."""
    position_ids: Tensor
    """Shape (1, T): each response goes on where its prompt ended."""
    end_positions: Tensor
    """Shape (R,): where each response's end token stands, in the order of groups and responses."""
    spans: tuple[Span, ...]
    calls: int = 0
    """How often attention was asked for: once a layer, unless a layer works otherwise (a recurrent
    one)."""
    cache: dict[object, Tensor] = field(default_factory=dict)
    """Masks and indices, made when first needed and used by every layer."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with one response."""
        return max(span.prefix + max(span.suffixes) for span in self.spans)

    def bias(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """0 where a query may look, -inf where not, shape (queries, keys): the causal band, aligned
        bottom right."""
        name = (queries, keys, window, like.dtype, like.device)
        if name not in self.cache:
            bias = torch.full(
                (queries, keys), float("-inf"), device=like.device, dtype=like.dtype
            ).triu(keys - queries + 1)
            if window is not None:
                bias += torch.full_like(bias, float("-inf")).tril(keys - queries - window)
            self.cache[name] = bias
        return self.cache[name]

    def key_index(self, device: torch.device) -> Tensor:
        """The keys that each response looks at, response after response: its prompt's tokens, then
        its own."""
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
        """Where each response's `queries` or `keys` begin and end in their row, int32, shape (R +
        1,)."""
        if (of, device) not in self.cache:
            place = ("queries", "keys").index(of)
            lengths = [length[place] for span in self.spans for length in span.lengths]
            self.cache[of, device] = torch.tensor(
                [0, *np.cumsum(lengths)], dtype=torch.int32, device=device
            )
        return self.cache[of, device]


def plan_row(groups: Sequence[EncodedGroup], *, device: torch.device | str = "cpu") -> Plan:
    """The plan of one row. Every group must have a response."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    ends: list[int] = []
    spans = []
    tokens = 0
    for group in groups:
        prefix = len(group.prefix)
        spans.append(Span(prefix, tuple(map(len, group.suffixes))))
        ids += [np.asarray(piece, dtype=np.int64) for piece in (group.prefix, *group.suffixes)]
        positions += [
            np.arange(prefix),
            *(np.arange(prefix, prefix + len(suffix)) for suffix in group.suffixes),
        ]
        ends += (tokens + prefix + np.cumsum(spans[-1].suffixes) - 1).tolist()
        tokens += group.tokens
    return Plan(
        torch.from_numpy(np.concatenate(ids))[None].to(device),
        torch.from_numpy(np.concatenate(positions))[None].to(device),
        torch.tensor(ends, device=device),
        tuple(spans),
    )


# a plan differs from row to row; what lies between attentions is compiled once
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

    Raises:
        UnplannedLayerError: If the layer that asks did not hand the plan on.

    `sliding_window` is in tokens, the query's own included; `softcap` bounds the scores; `s_aux`
    are the heads' sinks.

    Source: the call every model of transformers >= 4.53 makes, `AttentionInterface`.
    """
    if plan is None:
        raise UnplannedLayerError
    plan.calls += 1
    window = (
        sliding_window if sliding_window is not None and sliding_window < plan.longest else None
    )
    dtype = _compute_type(query)
    if softcap is None and s_aux is None and _has_flash(query, value, dtype):
        return _variable_length(
            plan, query.to(dtype), key.to(dtype), value.to(dtype), scaling, window
        ), None
    pieces = []
    for q, k, v in _responses(plan, query, key, value):
        if softcap is None and s_aux is None:
            pieces.append(_fused(plan, q, k, v, dtype, scaling, window))
        else:
            pieces.append(
                _explicit(
                    q, k, v, plan.bias(q.shape[2], k.shape[2], window, q), scaling, softcap, s_aux
                )
            )
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def _compute_type(query: Tensor) -> torch.dtype:
    """What attention computes in: rotary embeddings give float32 under autocast, and only PyTorch's
    own calls cast it back."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _has_flash(query: Tensor, value: Tensor, dtype: torch.dtype) -> bool:
    """Whether the variable-length kernel takes these tensors."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and dtype in HALF
        and width == value.shape[-1]
        and width <= WIDEST_HEAD
        and torch.cuda.get_device_capability(query.device) >= AMPERE
    )


def _responses(
    plan: Plan, query: Tensor, key: Tensor, value: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values of each response in turn; the first of a group brings the prompt's
    queries along."""
    sizes = [size for span in plan.spans for size in (span.prefix, *span.suffixes)]
    # one split, not many slices: the gradient of a slice is as large as the whole row
    queries, keys, values = (iter(torch.split(x, sizes, dim=2)) for x in (query, key, value))
    for span in plan.spans:
        prefix_q, prefix_k, prefix_v = next(queries), next(keys), next(values)
        for place in range(len(span.suffixes)):
            own = next(queries)
            q = own if place else torch.cat([prefix_q, own], dim=2)
            yield (
                q,
                torch.cat([prefix_k, next(keys)], dim=2),
                torch.cat([prefix_v, next(values)], dim=2),
            )


def _fused(
    plan: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dtype: torch.dtype,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """PyTorch's own attention of one response, given in `dtype`."""
    inner = (
        torch.float32 if q.device.type == "cpu" and dtype in HALF and k.shape[2] <= SHORT else dtype
    )
    q, k, v = q.to(inner), k.to(inner), v.to(inner)
    bias = (
        None
        if q.shape[2] == k.shape[2] and window is None
        else plan.bias(q.shape[2], k.shape[2], window, q)
    )
    with torch.autocast(q.device.type, enabled=False):
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias,
            is_causal=bias is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        ).to(dtype)


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out, for what the fused kernels lack: soft-capped scores, and sinks that
    take weight away."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = (scores + bias).float()
    if sinks is not None:
        scores = torch.cat(
            [scores, sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1
        )
    weights = scores.softmax(dim=-1)[..., : k.shape[2]].to(v.dtype)
    return weights @ v


def _variable_length(
    plan: Plan, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """All responses in one flash-attention call: keys and values are gathered, so that each
    response has its prompt's.

    The kernel's causal mask is aligned bottom right where queries and keys differ in number. A
    split of the keys over thread blocks would depend on the longest sequence of the batch, hence
    `num_splits`: the bits of a reward do not.
    """
    index = plan.key_index(query.device)
    q, k, v = (
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[index],
        value[0].transpose(0, 1)[index],
    )
    out = varlen_attn(
        q,
        k,
        v,
        plan.borders("queries", q.device),
        plan.borders("keys", q.device),
        *_longest(plan),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
        num_splits=1,
    )
    assert isinstance(out, Tensor)
    return out[None]


def _longest(plan: Plan) -> tuple[int, int]:
    """The largest number of queries, and of keys, of one response."""
    lengths = [length for span in plan.spans for length in span.lengths]
    return max(queries for queries, _ in lengths), max(keys for _, keys in lengths)
