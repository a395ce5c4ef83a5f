"""How much of a judge's preferences style explains: coefficients, phi, and accuracy within and
across styles.

Controlling for style *fits* style, it does not remove it: the model beside the margin takes what
style predicts of the labels, whatever the reason that it predicts them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from worldpm.stats import bradley_terry
from worldpm.stats.uncertainty import NORMAL_975

Json = dict[str, Any]
Array = NDArray[np.float64]
Normalisation = Literal["paper", "arena"]

FOLDS = 5
ILL_CONDITIONED = 1e4
"""Condition number of the scaled features' covariance beyond which single coefficients say
nothing."""
PROMPTS_PER_COEFFICIENT = 10
"""A feature that differs in the pairs of fewer prompts is left out, and fewer prompts for each
coefficient are warned of."""
STEPS = 100
SATURATED = 1e-9
"""Where every pair is called with a chance this near to 1, larger coefficients would fit no
worse."""
LEVELS = ("short plain", "long plain", "markdown")


@dataclass(frozen=True)
class StyledPairs:
    """Pairs with what can be seen of both sides; every array has shape (pairs,)."""

    margin: Array
    probability: Array
    weight: Array
    cluster: Sequence[str]
    """The prompt's id."""
    chosen: Mapping[str, Array]
    """Counts by feature: `length` in tokens, or in characters where tokens are not known,
    `headers`, `lists`, ..."""
    rejected: Mapping[str, Array]


class Fit(NamedTuple):
    """`P(chosen) = sigmoid(alpha margin + beta z)`, z the scaled style differences."""

    coefficients: Array
    """Of the margin, then of each feature, per standard deviation of its difference."""
    deviations: Array
    """Of the coefficients, robust to pairs of one prompt that depend on each other."""
    converged: bool


def differences(chosen: Array, rejected: Array, normalisation: Normalisation) -> Array:
    """The style difference of each pair, -1 to 1: `(a - b) / (a + b)`, 0 where both are 0, or
    Arena's `(a - b) / (a + b + 1)`.

    Source: WorldPM, arXiv 2505.10527, section 3.3; https://github.com/lmarena/arena-hard-auto
    `utils/math_utils.py`.
    """
    total = chosen + rejected
    if normalisation == "arena":
        return (chosen - rejected) / (total + 1)
    return np.divide(chosen - rejected, total, out=np.zeros_like(total), where=total > 0)


def controlled(pairs: StyledPairs, normalisation: Normalisation) -> Json:
    """Style-controlled accuracy and loss, cross-fitted and in sample, the coefficients with 95 %
    intervals, and warnings.

    Cross-fitted means that a pair is judged by coefficients of other prompts' pairs (5 folds by
    prompt); in sample is the paper's way. `margin_only` is what the margin says without style, its
    coefficient cross-fitted, as in the paper's uncontrolled figures. A feature that differs in
    fewer than ten prompts is left out, and one that always speaks for the same side, whose
    coefficient would have no finite best value. The margin's coefficient is never below 0. Of one
    prompt, or of a margin that is always 0, no interval is known.
    """
    z = {
        name: differences(pairs.chosen[name], pairs.rejected[name], normalisation)
        for name in pairs.chosen
    }
    moving = {name: _prompts(pairs, column != 0) for name, column in z.items()}
    often = [name for name in z if moving[name] >= PROMPTS_PER_COEFFICIENT]
    names = [name for name in often if not _one_sided(z[name], pairs.probability)]
    warnings = [
        f"{name} differs in {moving[name]} prompts only; left out"
        for name in z
        if name not in often
    ]
    warnings += [
        f"{name} speaks for the same side in all {moving[name]} prompts; left out"
        for name in often
        if name not in names
    ]
    columns = [pairs.margin, *(z[name] for name in names)]
    scales = [_spread(column, pairs.weight) or 1.0 for column in columns]
    x = np.stack([column / scale for column, scale in zip(columns, scales, strict=True)], axis=1)
    known = len(set(pairs.cluster)) > 1 and bool(x[:, 0].any())
    warnings += _identifiable(x, pairs)
    whole = fit(x, pairs.probability, pairs.weight, pairs.cluster, forward=0)
    if whole.coefficients[0] == 0:
        warnings.append("the margin goes against the labels; its coefficient is held at 0")
    if not whole.converged:
        warnings.append(
            "margin and style together call every pair right, so the coefficients have no finite"
            " best values"
        )
    return {
        "cross_fitted": _judged(_cross_fitted(x, pairs), pairs),
        "in_sample": _judged(x @ whole.coefficients, pairs),
        "margin_only": {
            **_judged(_cross_fitted(x[:, :1], pairs), pairs),
            "accuracy": _judged(pairs.margin, pairs)["accuracy"],
        },
        "coefficients": {
            name: {
                "per_deviation": float(b),
                "interval": (
                    [float(b - NORMAL_975 * s), float(b + NORMAL_975 * s)]
                    if known and whole.converged
                    else None
                ),
                "per_unit": float(b / scale),
            }
            for name, b, s, scale in zip(
                ["margin", *names], whole.coefficients, whole.deviations, scales, strict=True
            )
        },
        "warnings": warnings,
    }


def fit(
    x: Array,
    probability: Array,
    weight: Array,
    cluster: Sequence[str],
    *,
    forward: int | None = None,
) -> Fit:
    """Coefficients of least weighted Bradley-Terry loss of `x @ coefficients`, x of shape `(pairs,
    features)`, by Newton's method.

    There is no intercept: which side of a pair stands first means nothing. The coefficient numbered
    `forward` is held at 0 where it would fall below. Not converged where the labels are separable.

    Source: White 1982 for the deviations, summed by cluster as in Cameron, Gelbach and Miller 2008.
    """
    theta = np.zeros(x.shape[1])
    converged = False
    for _ in range(STEPS):
        said = _said(x @ theta)
        step = np.linalg.lstsq(
            _curvature(x, weight, said), x.T @ (weight * (probability - said)), rcond=1e-12
        )[0]
        before = _loss(x @ theta, probability, weight)
        while (
            _loss(x @ (theta + step), probability, weight) > before * (1 + 1e-12)
            and np.abs(step).max() > 1e-12
        ):
            step = step / 2
        theta = theta + step
        if np.abs(step).max() < 1e-9 * (1 + np.abs(theta).max()):
            converged = bool((said * (1 - said)).max() > SATURATED)
            break
    if forward is not None and theta[forward] < 0:
        return fit(np.where(np.arange(x.shape[1]) == forward, 0.0, x), probability, weight, cluster)
    return Fit(theta, _deviations(x, theta, probability, weight, cluster), converged)


def _loss(logits: Array, probability: Array, weight: Array) -> float:
    losses = bradley_terry.losses_nats(torch.from_numpy(logits), torch.from_numpy(probability))
    return float((losses.numpy() * weight).sum())


def _one_sided(z: Array, probability: Array) -> bool:
    """Whether all pairs that differ have certain labels, and the feature is always more, or always
    less, on the chosen side."""
    moving = z != 0
    return bool(
        (probability[moving] == 1).all() and ((z[moving] > 0).all() or (z[moving] < 0).all())
    )


def _said(logits: Array) -> Array:
    said: Array = bradley_terry.probabilities(torch.from_numpy(logits)).numpy()
    return said


def _curvature(x: Array, weight: Array, said: Array) -> Array:
    curvature: Array = (x * (weight * said * (1 - said))[:, None]).T @ x
    return curvature


def _deviations(
    x: Array, theta: Array, probability: Array, weight: Array, cluster: Sequence[str]
) -> Array:
    said = _said(x @ theta)
    _, place = np.unique(np.asarray(cluster), return_inverse=True)
    pulls = np.zeros((int(place.max()) + 1, x.shape[1]))
    np.add.at(pulls, place, x * (weight * (probability - said))[:, None])
    inverse = np.linalg.pinv(_curvature(x, weight, said))
    clusters = len(pulls)
    deviations: Array = np.sqrt(
        np.diag(inverse @ (pulls.T @ pulls) @ inverse) * clusters / max(1, clusters - 1)
    )
    return deviations


def folds(cluster: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each pair, 0 to 4, which depends on its prompt's id alone."""
    return np.array(
        [xxhash.xxh64_intdigest(name.encode()) % FOLDS for name in cluster], dtype=np.int64
    )


def _cross_fitted(x: Array, pairs: StyledPairs) -> Array:
    """The logits of each pair under the coefficients of the other folds."""
    fold = folds(pairs.cluster)
    logits = np.zeros(len(x))
    for held_out in range(FOLDS):
        rest, own = fold != held_out, fold == held_out
        if own.any() and rest.any():
            others = [name for name, kept in zip(pairs.cluster, rest, strict=True) if kept]
            logits[own] = (
                x[own]
                @ fit(
                    x[rest], pairs.probability[rest], pairs.weight[rest], others, forward=0
                ).coefficients
            )
    return logits


def _judged(logits: Array, pairs: StyledPairs) -> Json:
    margins, weights = torch.from_numpy(logits), torch.from_numpy(pairs.weight)
    losses = bradley_terry.losses_nats(margins, torch.from_numpy(pairs.probability))
    return {
        "accuracy": bradley_terry.weighted_mean(bradley_terry.pair_credits(margins), weights),
        "loss_nats": bradley_terry.weighted_mean(losses, weights),
    }


def _spread(z: Array, weight: Array) -> float:
    """Standard deviation of a difference whose mean is 0, since a pair may be read from either
    side."""
    return float(np.sqrt(np.average(z**2, weights=weight)))


def _prompts(pairs: StyledPairs, mask: NDArray[np.bool_]) -> int:
    return len({name for name, kept in zip(pairs.cluster, mask, strict=True) if kept})


def _identifiable(x: Array, pairs: StyledPairs) -> list[str]:
    """What forbids reading single coefficients."""
    warnings = []
    prompts = len(set(pairs.cluster))
    if prompts < PROMPTS_PER_COEFFICIENT * x.shape[1]:
        warnings.append(
            f"{prompts} prompts for {x.shape[1]} coefficients; {PROMPTS_PER_COEFFICIENT} for each"
            " are few already"
        )
    scale = np.sqrt((x**2).mean(axis=0))
    if (
        np.linalg.cond((x / np.where(scale > 0, scale, 1)).T @ (x / np.where(scale > 0, scale, 1)))
        > ILL_CONDITIONED
    ):
        warnings.append(
            "margin and style features go together so closely that single coefficients are not"
            " identified"
        )
    return warnings


def phi(pairs: StyledPairs) -> dict[str, Json]:
    """The phi coefficients of prediction and of label with "has more of this feature", by feature,
    -1 to 1.

    Over pairs that differ in the feature, read from both sides, phi is the share where they agree
    minus the share where they do not; a tied margin counts nothing. None where no pair differs. Phi
    of the label is what the judges of the data did themselves.
    """
    found: dict[str, Json] = {}
    for name in pairs.chosen:
        more = np.sign(pairs.chosen[name] - pairs.rejected[name])
        weight = pairs.weight * (more != 0)
        if not weight.any():
            found[name] = {"prediction": None, "label": None, "pairs": 0}
            continue
        label = 2 * pairs.probability - 1
        found[name] = {
            "prediction": float(np.average(np.sign(pairs.margin) * more, weights=weight)),
            "label": float(np.average(label * more, weights=weight)),
            "pairs": int((more != 0).sum()),
        }
    return found


def by_length(pairs: StyledPairs) -> Json:
    """Accuracy where the chosen response is the longer, the shorter, or as long; None where there
    is no such pair."""
    more = np.sign(pairs.chosen["length"] - pairs.rejected["length"])
    return {
        name: _accuracy(pairs, more == sign)
        for name, sign in (("chosen longer", 1), ("chosen shorter", -1), ("as long", 0))
    }


def by_level(pairs: StyledPairs) -> Json:
    """Accuracy by the styles of chosen (row) and rejected (column): RM-Bench's 3 x 3 for any set.

    A response has `markdown` if it has a header, list or bold; else it is `long` beyond the median
    length of the set's plain responses. `within` is the diagonal, `hard` where the chosen has the
    lower level, `easy` where it has the higher; None where there is no pair.
    """
    sides = [pairs.chosen, pairs.rejected]
    marked = [side["headers"] + side["lists"] + side["bold"] > 0 for side in sides]
    plain = np.concatenate(
        [side["length"][~mark] for side, mark in zip(sides, marked, strict=True)]
    )
    middle = float(np.median(plain)) if len(plain) else 0.0
    chosen, rejected = (
        np.where(mark, 2, side["length"] > middle) for side, mark in zip(sides, marked, strict=True)
    )
    cells = [[(chosen == i) & (rejected == j) for j in range(3)] for i in range(3)]
    return {
        "levels": list(LEVELS),
        "accuracy": [[_accuracy(pairs, cell) for cell in row] for row in cells],
        "pairs": [[int(cell.sum()) for cell in row] for row in cells],
        "within": _accuracy(pairs, chosen == rejected),
        "hard": _accuracy(pairs, chosen < rejected),
        "easy": _accuracy(pairs, chosen > rejected),
    }


def _accuracy(pairs: StyledPairs, mask: NDArray[np.bool_]) -> float | None:
    if not mask.any():
        return None
    credit = bradley_terry.pair_credits(torch.from_numpy(pairs.margin[mask]))
    return bradley_terry.weighted_mean(credit, torch.from_numpy(pairs.weight[mask]))
