"""Calibration of margins: the temperature that turns them into probabilities, and the agreement of
the probabilities with the labels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from worldpm.stats import bradley_terry

SHARPEST_TEMPERATURE = 1e-3
"""Lower end of the search for a temperature, in median sizes of the margins."""
FLATTEST_TEMPERATURE = 1e3
"""Upper end of the search, in root mean squares of the margins."""
AT_BOUND_FACTOR = 10.0
"""A temperature within this factor of the sharpest was stopped by the bound: the data has no
optimum."""


class Bin(NamedTuple):
    """The pairs whose preference probability is in one bin."""

    probability: float
    """Mean predicted probability, 0.5 to 1."""
    right: float
    """Share of right pairs; a tie, or a pair whose label is 0.5, counts as half right."""
    pairs: int
    """Number of pairs, at least 1."""
    weight: float
    """Sum of the pairs' weights."""


class Reliability(NamedTuple):
    """Agreement of predictions and labels: of pairs predicted at 80 %, 80 % should be right."""

    bins: list[Bin]
    """From 0.5 to 1, without empty ones."""
    expected_error: float
    """Expected calibration error: mean over pairs of the gap between predicted and right in their
    bin, 0 to 0.5."""


def temperature(margins: Tensor, probability: Tensor, weights: Tensor) -> float:
    """The T with the least Bradley-Terry loss of `margins / T`; float tensors of shape `(pairs,)`.

    If every margin is right, the loss falls without limit as T falls. The labels are then smoothed
    by one more pair of each kind, so that 30 right pairs do not make the next one certain. If
    margins carry no information, T is large, at the bound of the search. Margins that are all 0
    give 1.

    Source: Guo et al., arXiv 1706.04599, section 4.2; Platt 1999, section 2.2, for the labels `(n p
    + 1) / (n + 2)`.
    """
    sizes = margins.double().abs()
    if not (sizes > 0).any():
        return 1.0

    # The median, not the mean: a single huge margin must not move the lower end.
    sharpest = SHARPEST_TEMPERATURE * float(sizes[sizes > 0].median())
    flattest = FLATTEST_TEMPERATURE * float(sizes.square().mean().sqrt())

    best = _best_temperature(margins, probability, weights, sharpest, flattest)
    if best > AT_BOUND_FACTOR * sharpest:
        return best

    # `(n p + 1) / (n + 2)` is smoothing by a share of 2 / (n + 2).
    labels = bradley_terry.smoothed(probability, 2 / (float(weights.sum()) + 2))
    return _best_temperature(margins, labels, weights, sharpest, flattest)


def _best_temperature(
    margins: Tensor, labels: Tensor, weights: Tensor, sharpest: float, flattest: float
) -> float:
    """The temperature with the least loss between two bounds."""

    def loss(log_temperature: float) -> float:
        scaled = margins.double() / math.exp(log_temperature)
        return bradley_terry.weighted_mean(bradley_terry.losses_nats(scaled, labels), weights)

    # The bounds span many decades, so the search is over the logarithm.
    minimum = minimize_scalar(
        loss,
        bounds=(math.log(sharpest), math.log(flattest)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(minimum.x))


def reliability(
    margins: Tensor, probability: Tensor, weights: Tensor, *, bins: int = 10
) -> Reliability:
    """Predicted probability against the share of right pairs, over bins of equal width.

    The probability of a pair belongs to the response with the higher reward, 0.5 to 1.

    `margins` are in logits, already divided by a temperature. Empty bins are left out.

    Raises:
        ValueError: If `margins` is empty, or a margin is NaN.
    """
    predicted = bradley_terry.probabilities(margins.double().abs())
    credit = bradley_terry.pair_credits(margins)
    right = credit * probability.double() + (1 - credit) * (1 - probability.double())

    # A probability of exactly 1 belongs to the last bin, not to one beyond it.
    bin_of_pair = ((predicted - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    filled = []
    for index in range(bins):
        mask = bin_of_pair == index
        if mask.any():
            filled.append(_bin(predicted[mask], right[mask], weights[mask]))

    gaps = [abs(bin_.probability - bin_.right) for bin_ in filled]
    bin_weights = torch.tensor([bin_.weight for bin_ in filled])
    expected_error = bradley_terry.weighted_mean(
        torch.tensor(gaps, dtype=torch.float64), bin_weights
    )
    return Reliability(filled, expected_error)


def _bin(predicted: Tensor, right: Tensor, weights: Tensor) -> Bin:
    return Bin(
        probability=bradley_terry.weighted_mean(predicted, weights),
        right=bradley_terry.weighted_mean(right, weights),
        pairs=len(predicted),
        weight=float(weights.double().sum()),
    )


def sure_beyond(margins: Sequence[float], level: float) -> float | None:
    """The margin, in the same units and at least 0, beyond which a pair is decided: the response
    with the higher reward is then called better.

    `margins` are chosen minus rejected, of labelled pairs, one from each prompt. Of new pairs like
    them, at least a share of `level` is then decided correctly or left undecided. None if there are
    too few pairs for this level.

    Source: split conformal prediction, Vovk et al. 2005; Angelopoulos and Bates, arXiv 2107.07511,
    section 1, with `-margin` as score. The set of answers always contains the likelier answer.
    """
    # The new pair is one of n + 1 exchangeable pairs, hence the + 1.
    rank = math.ceil((len(margins) + 1) * level)
    if rank > len(margins):
        return None

    scores = sorted(-margin for margin in margins)
    return max(0.0, scores[rank - 1])
