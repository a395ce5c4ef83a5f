"""Preferences of groups as index tensors, in which every formula takes them."""

from collections.abc import Iterable, Sequence

import torch

from worldpm.records import Preference
from worldpm.stats.bradley_terry import Pairs


def pairs_of(
    groups: Iterable[tuple[int, Sequence[Preference]]], device: torch.device | str = "cpu"
) -> Pairs:
    """The preferences of groups, each given with its number of responses, as tensors; indices count
    all their responses."""
    columns: list[tuple[float, ...]] = []
    start = 0
    for responses, preferences in groups:
        columns += [
            (start + p.chosen, start + p.rejected, p.strength, p.probability, p.weight)
            for p in preferences
        ]
        start += responses
    chosen, rejected, *numbers = zip(*columns, strict=True)
    indices = (torch.tensor(places, device=device) for places in (chosen, rejected))
    return Pairs(
        *indices, *(torch.tensor(values, dtype=torch.float32, device=device) for values in numbers)
    )
