"""What a margin means: the temperature that makes it a probability, and how far the probabilities
hold."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from worldpm.stats import bradley_terry

SHARPEST, FLATTEST = 1e-3, 1e3
"""The temperature is sought between the first times the median size of the margins and the second
times their root mean square."""
AT_BOUND = 10.0
"""A temperature within this factor of the sharpest is no finding."""


class Bin(NamedTuple):
    """The pairs whose preference probability fell into one bin."""

    probability: float
    """Mean of what was said, 0.5 to 1."""
    right: float
    """Share that was right; a tie, or a pair whose label is a coin's, is half right."""
    pairs: int
    weight: float


class Reliability(NamedTuple):
    """Whether pairs called with 80 % are right in 80 % of cases."""

    bins: list[Bin]
    expected_error: float
    """Expected calibration error: mean over pairs of the gap between said and right in their bin, 0
    to 0.5."""


def temperature(margins: Tensor, probability: Tensor, weights: Tensor) -> float:
    """The T of least Bradley-Terry loss of `margins / T`; float tensors of shape `(pairs,)`.

    Where every margin is right no T is sharp enough; labels are then taken as if one pair more of
    each kind had been seen, so that 30 pairs without a fault do not make the next one certain. T is
    large, a bound of the search, where margins say nothing. Margins that are all 0 give 1.

    Source: Guo et al., arXiv 1706.04599, section 4.2; Platt 1999, section 2.2, for the labels `(n p
    + 1) / (n + 2)`.
    """
    sizes = margins.double().abs()
    if not (sizes > 0).any():
        return 1.0
    sharpest, flattest = (
        SHARPEST * float(sizes[sizes > 0].median()),
        FLATTEST * float(sizes.square().mean().sqrt()),
    )

    def best(labels: Tensor) -> float:
        def loss(log_temperature: float) -> float:
            return bradley_terry.weighted_mean(
                bradley_terry.losses_nats(margins.double() / math.exp(log_temperature), labels),
                weights,
            )

        bounds = (math.log(sharpest), math.log(flattest))
        return float(
            math.exp(
                minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
            )
        )

    found = best(probability)
    if found > AT_BOUND * sharpest:
        return found
    return best(bradley_terry.smoothed(probability, 2 / (float(weights.sum()) + 2)))


def reliability(
    margins: Tensor, probability: Tensor, weights: Tensor, *, bins: int = 10
) -> Reliability:
    """Said against right over equally wide bins of the preference probability of whichever response
    has the higher reward.

    `margins` are in logits, already divided by a temperature. Empty bins are left out.

    Raises:
        ValueError: If there are no pairs, or a margin is NaN.
    """
    said = bradley_terry.probabilities(margins.double().abs())
    credit = bradley_terry.pair_credits(margins)
    right = credit * probability.double() + (1 - credit) * (1 - probability.double())
    place = ((said - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found = [
        Bin(
            bradley_terry.weighted_mean(said[mask], weights[mask]),
            bradley_terry.weighted_mean(right[mask], weights[mask]),
            int(mask.sum()),
            float(weights[mask].double().sum()),
        )
        for i in range(bins)
        if (mask := place == i).any()
    ]
    gaps = torch.tensor([abs(one.probability - one.right) for one in found], dtype=torch.float64)
    return Reliability(
        found, bradley_terry.weighted_mean(gaps, torch.tensor([one.weight for one in found]))
    )


def sure_beyond(margins: Sequence[float], level: float) -> float | None:
    """The margin, in the same units and at least 0, beyond which the response of higher reward is
    called the better one.

    `margins` are of judged pairs, chosen minus rejected, one of each prompt; of new pairs like
    them, at least `level` are then either called right or not called at all. None where so few
    pairs cannot give that level.

    Source: split conformal prediction, Vovk et al. 2005; Angelopoulos and Bates, arXiv 2107.07511,
    section 1, with `-margin` as score. The set of answers always holds the likelier one.
    """
    rank = math.ceil((len(margins) + 1) * level)
    if rank > len(margins):
        return None
    return max(0.0, sorted(-margin for margin in margins)[rank - 1])
