"""Preferences of groups as index tensors, the input of every formula."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from worldpm.records import Preference
from worldpm.stats.bradley_terry import Pairs


def pairs_of(
    groups: Iterable[tuple[int, Sequence[Preference]]],
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
) -> Pairs:
    """The preferences of groups as tensors; each group is its number of responses and its
    preferences.

    Indices count the responses of all groups, in order. Strengths, probabilities and weights have
    the given type: metrics take float64.

    Raises:
        ValueError: If no group has a preference.
    """
    chosen: list[int] = []
    rejected: list[int] = []
    preferences: list[Preference] = []
    start = 0

    for responses, of_group in groups:
        chosen += [start + preference.chosen for preference in of_group]
        rejected += [start + preference.rejected for preference in of_group]
        preferences += of_group
        start += responses

    if not preferences:
        raise ValueError("no preferences; leave out groups that have none")

    # Weights and labels enter losses of float32 models; doubles would promote those losses.
    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Pairs(
        chosen=torch.tensor(chosen, device=device),
        rejected=torch.tensor(rejected, device=device),
        strength=column([preference.strength for preference in preferences]),
        probability=column([preference.probability for preference in preferences]),
        weight=column([preference.weight for preference in preferences]),
    )
