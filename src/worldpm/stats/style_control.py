"""The share of a judge's preferences that style explains: coefficients, phi, and accuracy within
and across styles.

Controlling for style *fits* style; it does not remove it. The style features beside the margin
absorb everything that style predicts about the labels, whatever the cause.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal, NamedTuple

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from worldpm.stats import bradley_terry
from worldpm.stats.uncertainty import NORMAL_975

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Normalisation = Literal["paper", "arena"]

FOLDS = 5
"""Parts of a cross-fit; each is judged by coefficients of the others."""
ILL_CONDITIONED = 1e4
"""Condition number of the scaled features' covariance beyond which single coefficients cannot be
interpreted."""
PROMPTS_PER_COEFFICIENT = 10
"""A feature that differs in the pairs of fewer prompts is left out, and fewer prompts for each
coefficient give a warning."""
MOST_NEWTON_STEPS = 100
SATURATED_VARIANCE = 1e-9
"""If no pair has a larger `p (1 - p)`, the search did not converge: all pairs are certain, and
larger coefficients would fit no worse."""
MARGIN_COLUMN = 0
"""Index of the margin among the columns of a fit."""
LEVELS = ("short plain", "long plain", "markdown")


@dataclass(frozen=True)
class StyledPairs:
    """Pairs with the style counts of both sides; every array has shape (pairs,)."""

    margin: Array
    """Reward of the chosen minus that of the rejected response, in logits."""
    probability: Array
    """Probability that chosen is truly better, 0 to 1."""
    weight: Array
    """Weight of a pair, at least 0."""
    cluster: Sequence[str]
    """The prompt's id."""
    chosen: Mapping[str, Array]
    """Counts by feature: `length` in tokens, or in characters where tokens are not available,
    `headers`, `lists`, ..."""
    rejected: Mapping[str, Array]
    """The same features of the rejected responses."""


class Fit(NamedTuple):
    """`P(chosen) = sigmoid(alpha margin + beta z)`, z the scaled style differences."""

    coefficients: Array
    """Coefficients of the margin, then of each feature, per standard deviation of its
    difference."""
    deviations: Array
    """Standard deviations of the coefficients, robust to dependence of pairs of one prompt."""
    converged: bool
    """False if the labels are separable, so that no finite coefficients are best."""


@dataclass(frozen=True)
class Performance:
    """Agreement of logits with the labels, with each pair counted by its weight."""

    accuracy: float
    """Share of pairs with a positive logit, 0 to 1; a tie counts half."""
    loss_nats: float
    """Bradley-Terry loss, nats per pair."""


@dataclass(frozen=True)
class Coefficient:
    """The weight of the margin or of one style feature in the log odds."""

    per_deviation: float
    """Log odds per standard deviation of the column's difference."""
    interval: list[float] | None
    """95 % interval of `per_deviation`, low and high. None with a single prompt, with a margin that
    is always 0, and where the fit did not converge."""
    per_unit: float
    """Log odds per unit of the column: a logit of margin, or a style difference of 1."""


@dataclass(frozen=True)
class StyleControl:
    """A judge's performance with style as a covariate."""

    cross_fitted: Performance
    """Each pair is judged by coefficients of other prompts' pairs, in 5 folds by prompt."""
    in_sample: Performance
    """Each pair is judged by coefficients fitted to all pairs, as in the paper."""
    margin_only: Performance
    """Performance without style. The accuracy uses the raw margin, as in the paper's uncontrolled
    figures, and the loss uses a cross-fitted coefficient of the margin."""
    coefficients: dict[str, Coefficient]
    """`margin` first, then the features that could be fitted."""
    warnings: list[str]
    """Features left out, and reasons not to interpret single coefficients."""


@dataclass(frozen=True)
class Phi:
    """Phi coefficients with "has more of this feature", over the pairs that differ in it."""

    prediction: float | None
    """Phi of the sign of the margin, -1 to 1; None if no pair differs."""
    label: float | None
    """Phi of the label, -1 to 1: the taste of the people who labelled the data. None if no pair
    differs."""
    pairs: int
    """Pairs that differ in the feature."""


@dataclass(frozen=True)
class LevelAccuracy:
    """Accuracy by the styles of both sides; rows are levels of the chosen response, and columns are
    levels of the rejected response."""

    levels: list[str]
    """Names of rows and columns, plainest first."""
    accuracy: list[list[float | None]]
    """0 to 1; None in a cell without pairs."""
    pairs: list[list[int]]
    """Pairs in each cell."""
    within: float | None
    """Accuracy on the diagonal; None without pairs, as in the next two."""
    hard: float | None
    """Accuracy where the chosen response has the lower level."""
    easy: float | None
    """Accuracy where the chosen response has the higher level."""


class _Features(NamedTuple):
    """The style differences that can be fitted."""

    columns: dict[str, Array]
    """Difference of each pair by feature, -1 to 1."""
    warnings: list[str]
    """One for each feature that was left out."""


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


def control(pairs: StyledPairs, normalisation: Normalisation) -> StyleControl:
    """Style-controlled accuracy and loss, cross-fitted and in sample, the coefficients with 95 %
    intervals, and warnings.

    A feature that differs in fewer than ten prompts is left out. So is a feature that always
    favours the same side, whose coefficient would have no finite best value. The margin's
    coefficient is never below 0.
    """
    features = _usable_features(pairs, normalisation)
    columns = {"margin": pairs.margin, **features.columns}

    # Columns are scaled to a deviation of 1, so that the unit of the rewards changes nothing.
    scales = [_spread(column, pairs.weight) or 1.0 for column in columns.values()]
    scaled = [column / scale for column, scale in zip(columns.values(), scales, strict=True)]
    x = np.stack(scaled, axis=1)
    fitted = fit(x, pairs.probability, pairs.weight, pairs.cluster, nonnegative=MARGIN_COLUMN)

    # One prompt has no spread between prompts, and a margin that is always 0 has no coefficient.
    has_spread = len(set(pairs.cluster)) > 1 and bool(x[:, MARGIN_COLUMN].any())
    raw_margin = _performance(pairs.margin, pairs)
    margin_fitted = _performance(_cross_fitted(x[:, : MARGIN_COLUMN + 1], pairs), pairs)

    return StyleControl(
        cross_fitted=_performance(_cross_fitted(x, pairs), pairs),
        in_sample=_performance(x @ fitted.coefficients, pairs),
        margin_only=Performance(raw_margin.accuracy, margin_fitted.loss_nats),
        coefficients={
            name: _coefficient(fitted, column, scales[column], has_spread=has_spread)
            for column, name in enumerate(columns)
        },
        warnings=features.warnings + _collinearity_warnings(x, pairs) + _fit_warnings(fitted),
    )


def _usable_features(pairs: StyledPairs, normalisation: Normalisation) -> _Features:
    z = {
        name: differences(pairs.chosen[name], pairs.rejected[name], normalisation)
        for name in pairs.chosen
    }
    prompts = {name: _prompts(pairs, column != 0) for name, column in z.items()}
    rare = [name for name in z if prompts[name] < PROMPTS_PER_COEFFICIENT]
    one_sided = [name for name in z if name not in rare and _one_sided(z[name], pairs.probability)]

    warnings = [f"{name} differs in {prompts[name]} prompts only; left out" for name in rare]
    warnings += [
        f"{name} favours the same side in all {prompts[name]} prompts; left out"
        for name in one_sided
    ]
    usable = {name: z[name] for name in z if name not in rare and name not in one_sided}
    return _Features(usable, warnings)


def _prompts(pairs: StyledPairs, mask: Mask) -> int:
    """The number of prompts of the marked pairs."""
    return len(set(compress(pairs.cluster, mask)))


def _one_sided(z: Array, probability: Array) -> bool:
    """Whether all pairs that differ have certain labels, and the feature is always more, or always
    less, on the chosen side."""
    differs = z != 0
    always_more, always_less = (z[differs] > 0).all(), (z[differs] < 0).all()
    return bool((probability[differs] == 1).all() and (always_more or always_less))


def _spread(z: Array, weight: Array) -> float:
    """Standard deviation of a difference whose mean is 0, since a pair may be read from either
    side."""
    return float(np.sqrt(np.average(z**2, weights=weight)))


def _coefficient(fitted: Fit, column: int, scale: float, *, has_spread: bool) -> Coefficient:
    """The coefficient of a column; `scale` is the standard deviation that it was divided by."""
    best = fitted.coefficients[column]
    reach = NORMAL_975 * fitted.deviations[column]
    interval = [float(best - reach), float(best + reach)]

    return Coefficient(
        per_deviation=float(best),
        interval=interval if has_spread and fitted.converged else None,
        per_unit=float(best / scale),
    )


def _collinearity_warnings(x: Array, pairs: StyledPairs) -> list[str]:
    """Reasons not to interpret single coefficients, from the columns alone."""
    warnings = []
    prompts, coefficients = len(set(pairs.cluster)), x.shape[1]
    if prompts < PROMPTS_PER_COEFFICIENT * coefficients:
        warnings.append(
            f"{prompts} prompts for {coefficients} coefficients; at least"
            f" {PROMPTS_PER_COEFFICIENT} prompts per coefficient are needed"
        )

    # The units of features differ and must not matter. A column of zeros has no size.
    sizes = np.sqrt((x**2).mean(axis=0))
    scaled = x / np.where(sizes > 0, sizes, 1)
    if np.linalg.cond(scaled.T @ scaled) > ILL_CONDITIONED:
        warnings.append(
            "margin and style features are correlated so strongly that single coefficients are not"
            " identified"
        )

    return warnings


def _fit_warnings(fitted: Fit) -> list[str]:
    """Reasons not to interpret single coefficients, from the fit."""
    warnings = []
    if fitted.coefficients[MARGIN_COLUMN] == 0:
        warnings.append("the margin contradicts the labels; its coefficient is held at 0")
    if not fitted.converged:
        warnings.append(
            "margin and style together predict every pair correctly, so the coefficients have no"
            " finite best values"
        )
    return warnings


def fit(
    x: Array,
    probability: Array,
    weight: Array,
    cluster: Sequence[str],
    *,
    nonnegative: int | None = None,
) -> Fit:
    """Coefficients with the least weighted Bradley-Terry loss of `x @ coefficients`, for x of shape
    `(pairs, features)`, by Newton's method.

    The model has no intercept, because the order of the two sides of a pair is arbitrary. The
    coefficient of the column `nonnegative` is held at 0 if it would be negative; None leaves all
    free. The fit does not converge if the labels are separable.

    Source: White 1982 for the deviations, summed by cluster as in Cameron, Gelbach and Miller 2008.
    """
    theta = np.zeros(x.shape[1])
    converged = False

    for _ in range(MOST_NEWTON_STEPS):
        predicted = _predicted(x @ theta)
        step = _newton_step(x, theta, probability, weight, predicted)
        theta = theta + step

        # Separable labels drive all probabilities to 0 or 1, where steps shrink without an optimum.
        if np.abs(step).max() < 1e-9 * (1 + np.abs(theta).max()):
            converged = bool((predicted * (1 - predicted)).max() > SATURATED_VARIANCE)
            break

    # The best fit on the bound is the best fit without that column, since the loss is convex.
    if nonnegative is not None and theta[nonnegative] < 0:
        without = np.where(np.arange(x.shape[1]) == nonnegative, 0.0, x)
        return fit(without, probability, weight, cluster)

    return Fit(theta, _deviations(x, theta, probability, weight, cluster), converged)


def _newton_step(
    x: Array, theta: Array, probability: Array, weight: Array, predicted: Array
) -> Array:
    """A Newton step, halved until the loss does not rise."""
    gradient = x.T @ (weight * (probability - predicted))

    # Least squares instead of `solve`: a column that is all 0 makes the curvature singular, and its
    # coefficient then stays at 0.
    curvature = _curvature(x, weight, predicted)
    step = np.asarray(np.linalg.lstsq(curvature, gradient, rcond=1e-12)[0], dtype=np.float64)

    # Near the optimum the loss changes by rounding alone; that is not a rise.
    ceiling = _loss(x @ theta, probability, weight) * (1 + 1e-12)
    while _loss(x @ (theta + step), probability, weight) > ceiling and np.abs(step).max() > 1e-12:
        step = step / 2

    return step


def _loss(logits: Array, probability: Array, weight: Array) -> float:
    losses = bradley_terry.losses_nats(torch.from_numpy(logits), torch.from_numpy(probability))
    return float((losses.numpy() * weight).sum())


def _predicted(logits: Array) -> Array:
    """The probability that the chosen response is preferred."""
    predicted: Array = bradley_terry.probabilities(torch.from_numpy(logits)).numpy()
    return predicted


def _curvature(x: Array, weight: Array, predicted: Array) -> Array:
    """The Hessian of the loss, shape (features, features)."""
    curvature: Array = (x * (weight * predicted * (1 - predicted))[:, None]).T @ x
    return curvature


def _deviations(
    x: Array, theta: Array, probability: Array, weight: Array, cluster: Sequence[str]
) -> Array:
    """Standard deviations of the coefficients: the sandwich `H^-1 (sum of g g^T) H^-1`, with one
    gradient g per cluster."""
    predicted = _predicted(x @ theta)
    _, cluster_of_pair = np.unique(np.asarray(cluster), return_inverse=True)
    clusters = int(cluster_of_pair.max()) + 1

    gradients = np.zeros((clusters, x.shape[1]))
    np.add.at(gradients, cluster_of_pair, x * (weight * (probability - predicted))[:, None])

    # A pseudo-inverse, since a column of zeros makes the Hessian singular.
    inverse = np.linalg.pinv(_curvature(x, weight, predicted))
    variances = np.diag(inverse @ (gradients.T @ gradients) @ inverse)

    # The usual correction for few clusters; with one there is none.
    deviations: Array = np.sqrt(variances * clusters / max(1, clusters - 1))
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
        inside, rest = fold == held_out, fold != held_out
        # With few prompts a fold may be empty, or hold all pairs: those get logits of 0.
        if not (inside.any() and rest.any()):
            continue

        fitted = fit(
            x[rest],
            pairs.probability[rest],
            pairs.weight[rest],
            list(compress(pairs.cluster, rest)),
            nonnegative=MARGIN_COLUMN,
        )
        logits[inside] = x[inside] @ fitted.coefficients

    return logits


def _performance(logits: Array, pairs: StyledPairs) -> Performance:
    margins, weights = torch.from_numpy(logits), torch.from_numpy(pairs.weight)
    credit = bradley_terry.pair_credits(margins)
    losses = bradley_terry.losses_nats(margins, torch.from_numpy(pairs.probability))
    return Performance(
        accuracy=bradley_terry.weighted_mean(credit, weights),
        loss_nats=bradley_terry.weighted_mean(losses, weights),
    )


def phi_by_feature(pairs: StyledPairs) -> dict[str, Phi]:
    """The phi coefficients of prediction and of label with "has more of this feature", by feature.

    Over pairs that differ in the feature, read from both sides, phi is the share where they agree
    minus the share where they do not; a tied margin counts as 0.
    """
    coefficients: dict[str, Phi] = {}
    label = 2 * pairs.probability - 1

    for name in pairs.chosen:
        more = np.sign(pairs.chosen[name] - pairs.rejected[name])
        weight = pairs.weight * (more != 0)
        if not weight.any():
            coefficients[name] = Phi(prediction=None, label=None, pairs=0)
            continue

        coefficients[name] = Phi(
            prediction=float(np.average(np.sign(pairs.margin) * more, weights=weight)),
            label=float(np.average(label * more, weights=weight)),
            pairs=int((more != 0).sum()),
        )

    return coefficients


def by_length(pairs: StyledPairs) -> dict[str, float | None]:
    """Accuracy where the chosen response is longer, shorter, or as long; None without such a
    pair."""
    more = np.sign(pairs.chosen["length"] - pairs.rejected["length"])
    return {
        "chosen longer": _accuracy(pairs, more == 1),
        "chosen shorter": _accuracy(pairs, more == -1),
        "as long": _accuracy(pairs, more == 0),
    }


def accuracy_by_level(pairs: StyledPairs) -> LevelAccuracy:
    """Accuracy by the styles of chosen and rejected: RM-Bench's 3 x 3 for any set.

    A response has the level `markdown` if it has a header, list or bold. Otherwise it is `long` if
    it is longer than the median of the set's plain responses.
    """
    sides = (pairs.chosen, pairs.rejected)
    marked = [side["headers"] + side["lists"] + side["bold"] > 0 for side in sides]
    plain_lengths = np.concatenate(
        [side["length"][~mask] for side, mask in zip(sides, marked, strict=True)]
    )
    median = float(np.median(plain_lengths)) if len(plain_lengths) else 0.0

    chosen, rejected = (
        np.where(mask, LEVELS.index("markdown"), side["length"] > median)
        for side, mask in zip(sides, marked, strict=True)
    )

    accuracy: list[list[float | None]] = []
    counts: list[list[int]] = []
    for row in range(len(LEVELS)):
        cells = [(chosen == row) & (rejected == column) for column in range(len(LEVELS))]
        accuracy.append([_accuracy(pairs, cell) for cell in cells])
        counts.append([int(cell.sum()) for cell in cells])

    return LevelAccuracy(
        levels=list(LEVELS),
        accuracy=accuracy,
        pairs=counts,
        within=_accuracy(pairs, chosen == rejected),
        hard=_accuracy(pairs, chosen < rejected),
        easy=_accuracy(pairs, chosen > rejected),
    )


def _accuracy(pairs: StyledPairs, mask: Mask) -> float | None:
    if not mask.any():
        return None
    credit = bradley_terry.pair_credits(torch.from_numpy(pairs.margin[mask]))
    return bradley_terry.weighted_mean(credit, torch.from_numpy(pairs.weight[mask]))
