"""Shared-prefix attention: `[prompt | response 1 | response 2 | ...]` runs as one row of an unmodified decoder.

Every response sees the prompt and itself, at the positions that it would have had alone, so that rewards and gradients
are those of separate rows while the prompt is computed once. The plan of a row travels to the attention function as a
keyword of the model's forward.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worldpm.parts.batches import EncodedGroup

ATTENTION = "worldpm_shared_prefix"


class Span(NamedTuple):
    """One group's place in a row, in tokens."""

    start: int
    prefix: int
    suffixes: tuple[int, ...]


class Plan(NamedTuple):
    """A row of groups, ready for the model. T tokens, R responses."""

    input_ids: Tensor
    """Shape (1, T)."""
    position_ids: Tensor
    """Shape (1, T): each response goes on where its prompt ended."""
    end_positions: Tensor
    """Shape (R,): where each response's end token stands, in the order of groups and responses."""
    spans: tuple[Span, ...]
    masks: dict[tuple[int, int], Tensor]
    """Attention bias of a suffix after a prefix, by (prefix, suffix) length, shape (suffix, prefix + suffix)."""


def plan_row(groups: Sequence[EncodedGroup], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Plan:
    """The plan of one row; `dtype` is the compute type of the attention."""
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    spans = []
    masks: dict[tuple[int, int], Tensor] = {}
    for group in groups:
        prefix = len(group.prefix)
        spans.append(Span(len(ids), prefix, tuple(map(len, group.suffixes))))
        ids += group.prefix
        positions += range(prefix)
        for suffix in group.suffixes:
            ids += suffix
            positions += range(prefix, prefix + len(suffix))
            ends.append(len(ids) - 1)
        for suffix in group.suffixes[1:]:
            masks.setdefault((prefix, len(suffix)), _causal_bias(prefix, len(suffix), device, dtype))
    return Plan(
        torch.tensor([ids], device=device), torch.tensor([positions], device=device), torch.tensor(ends, device=device), tuple(spans), masks
    )


def _causal_bias(prefix: int, suffix: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """0 where a suffix token may look, -inf where not: the causal triangle, aligned bottom right."""
    bias = torch.full((suffix, prefix + suffix), float("-inf"), device=device, dtype=dtype)
    return bias.triu(diagonal=prefix + 1)


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: object
) -> tuple[Tensor, None]:
    """Attention of a planned row, as transformers calls it: query (1, heads, T, d), result (1, T, heads, d).

    A group costs one call for its prompt with the first response, and one for each further response.

    Source: the call every model of transformers >= 4.53 makes, `AttentionInterface`.
    """
    plan = options["plan"]
    assert isinstance(plan, Plan), "a planned row must pass its plan to the model's forward"
    if any(options.get(name) is not None for name in ("sliding_window", "softcap", "s_aux")):
        raise NotImplementedError(f"{type(module).__name__}: only full attention without soft-cap or sinks is shared so far")
    scale = options["scaling"]
    grouped = query.shape[1] != key.shape[1]
    sizes = [size for span in plan.spans for size in (span.prefix, *span.suffixes)]
    # one split, not many slices: the gradient of a slice is as large as the whole row
    queries, keys, values = (iter(torch.split(x, sizes, dim=2)) for x in (query, key, value))
    pieces: list[Tensor] = []
    for span in plan.spans:
        prefix_q, prefix_k, prefix_v = next(queries), next(keys), next(values)
        for place, length in enumerate(span.suffixes):
            k, v = torch.cat([prefix_k, next(keys)], dim=2), torch.cat([prefix_v, next(values)], dim=2)
            if place == 0:
                q = torch.cat([prefix_q, next(queries)], dim=2)
                out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)  # type: ignore[arg-type]
            else:
                mask = plan.masks[span.prefix, length]
                out = functional.scaled_dot_product_attention(next(queries), k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)  # type: ignore[arg-type]
            pieces.append(out)
    return torch.cat(pieces, dim=2).transpose(1, 2), None
