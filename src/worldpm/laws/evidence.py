"""What speaks for and against a fit: intervals by resampling runs and items, profiles, held-out
points, and tests for a trend."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from worldpm.curves.forms import Array, Form, curve
from worldpm.curves.solver import LOG_SQUARES, ROUGH, Fit, Objective, fit, solve
from worldpm.stats.uncertainty import NORMAL_80, Interval

TOGETHER = 0.999
"""A correlation of ln N with ln D beyond which their effects cannot be told apart."""
HELD_OUT_SHARE = 1 / 3
"""Of the distinct sizes, the largest."""


@dataclass(frozen=True)
class Points:
    """Measured points of one series: n of them, from runs that are independent of each other."""

    x: Array
    """Shape (axes, n), all above 0."""
    y: Array
    """Shape (n,)."""
    runs: NDArray[np.int64]
    """Which run each point is of; checkpoints of one run are not independent points."""
    item_sums: Array | None = None
    """Shape (n, clusters): each point's weighted sum of y over each prompt's pairs; None where only
    means are known."""
    item_weights: Array | None = None
    """Shape (clusters,): the sums of weights that belong to them."""

    def take(self, kept: NDArray[np.bool_]) -> "Points":
        """The points that are marked."""
        sums = self.item_sums[kept] if self.item_sums is not None else None
        return Points(self.x[:, kept], self.y[kept], self.runs[kept], sums, self.item_weights)


class Resamples(NamedTuple):
    """B draws of a series: whole runs with replacement, and the same prompts with replacement for
    all of them."""

    y: Array
    """Shape (B, n)."""
    weights: Array
    """Shape (B, n): how often a point's run was drawn."""


def resample(points: Points, *, seed: int, resamples: int) -> Resamples:
    """Draws of whole runs and, where items are known, of prompts."""
    generator = np.random.default_rng(seed)
    names, run = np.unique(points.runs, return_inverse=True)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    y = np.broadcast_to(points.y, (resamples, len(points.y)))
    if points.item_sums is not None and points.item_weights is not None:
        clusters = len(points.item_weights)
        counts = generator.multinomial(
            clusters, np.full(clusters, 1 / clusters), size=resamples
        ).astype(np.float64)
        y = counts @ points.item_sums.T / (counts @ points.item_weights)[:, None]
    return Resamples(y, drawn[:, run].astype(np.float64))


class Spread(NamedTuple):
    """What resampling says of a fit."""

    theta: Array
    """Parameters of the resamples that could be fitted, shape (B', P)."""
    intervals: dict[str, Interval]
    failed: int
    """Resamples with too few different points."""

    def band(self, form: Form, x: Array) -> tuple[Array, Array]:
        """The 95 % band of the curve at x."""
        low, high = np.quantile(curve(form, self.theta, x)[0], [0.025, 0.975], axis=0)
        return low, high


def bootstrap(found: Fit, points: Points, objective: Objective, draws: Resamples) -> Spread:
    """95 % percentile intervals; every resample starts from the optimum of all points, and from a
    shaken one.

    The points of one run have none: nothing tells what another run would give.
    """
    form = found.form
    missing = Interval(float("nan"), float("nan"))
    if len(np.unique(points.runs)) < 2:
        return Spread(
            np.empty((0, len(form.parameters))), dict.fromkeys(form.parameters, missing), 0
        )
    axes = np.unique(points.x, axis=1, return_inverse=True)[1]
    enough = np.array(
        [len(set(axes[weights > 0])) >= len(form.parameters) for weights in draws.weights]
    )
    usable = enough & (draws.y > 0).all(axis=1) if objective.logarithmic else enough
    weights, y = draws.weights[usable], draws.y[usable]
    shaken = found.theta * np.exp(np.random.default_rng(0).normal(0, 0.2, size=found.theta.shape))
    tries = [
        solve(
            form,
            points.x,
            y,
            objective,
            weights,
            np.broadcast_to(start, (len(weights), len(start))),
            effort=ROUGH,
        )
        for start in (found.theta, shaken)
    ]
    better = tries[1].objective < tries[0].objective
    theta = np.where(better[:, None], tries[1].theta, tries[0].theta)
    theta = theta[np.isfinite(np.minimum(tries[0].objective, tries[1].objective))]
    ends = (
        np.quantile(theta, [0.025, 0.975], axis=0).T
        if len(theta) > 1
        else [missing] * len(form.parameters)
    )
    intervals = {
        name: Interval(float(low), float(high))
        for name, (low, high) in zip(form.parameters, ends, strict=True)
    }
    return Spread(theta, intervals, len(draws.weights) - len(theta))


def profile(points: Points, name: str, found: Fit, *, steps: int = 41) -> Interval:
    """The 95 % profile-likelihood interval of one positive parameter, for normal errors of ln y; an
    open end is 0 or infinite.

    All other parameters are fitted anew at each value, on a grid of four decades and then on a
    finer one around the interval. `found` is the fit by LOG_SQUARES. Points of one run count as
    one, and the limit is that of few points, which is exact for straight lines.

    Source: Venzon and Moolgavkar 1988; Bates and Watts 1988, section 6.1.
    """
    count = independent(points)
    free = count - len(found.form.parameters)
    if free < 1:
        return Interval(0.0, float("inf"))
    limit = count * np.log1p(student.ppf(0.975, free) ** 2 / free)
    best = float(found.theta[found.form.parameters.index(name)])
    tries = best * np.geomspace(1e-2, 1e2, steps)
    inside = np.flatnonzero(_deviances(points, name, found, tries) <= limit)
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (steps // 2, steps // 2)
    fine = np.geomspace(tries[max(first - 1, 0)], tries[min(last + 1, steps - 1)], 2 * steps - 1)
    within = np.flatnonzero(_deviances(points, name, found, fine) <= limit)
    low, high = (float(fine[within[0]]), float(fine[within[-1]])) if len(within) else (best, best)
    return Interval(0.0 if first == 0 else low, float("inf") if last == steps - 1 else high)


def _deviances(points: Points, name: str, found: Fit, tries: Array) -> Array:
    """Twice what the log likelihood loses at each value of a parameter."""
    place = found.form.parameters.index(name)
    generator = np.random.default_rng(0)
    best = np.full(len(tries), np.inf)
    for spread in (0.0, 0.1, 0.5):
        starts = found.theta * np.exp(
            generator.normal(0, spread, size=(len(tries), len(found.theta)))
        )
        starts[:, place] = tries
        reached = solve(
            found.form,
            points.x,
            points.y,
            LOG_SQUARES,
            np.ones((len(tries), len(points.y))),
            starts,
            held=place,
            effort=ROUGH,
        )
        best = np.minimum(best, reached.objective)
    # a perfect fit leaves no noise to measure by; rounding is the least there is
    least = max(found.objective, len(points.y) * 1e-30)
    return np.asarray(independent(points) * np.log(np.maximum(best, least) / least))


def independent(points: Points) -> int:
    """How many independent points a likelihood may count: one of each run, or of each place where
    that is more."""
    return max(len(np.unique(points.runs)), len(places(points.x).T))


def places(x: Array) -> Array:
    """The different places along axes, shape (axes, k): amounts that round to one hundredth of a
    decade are one, as those of two seeds."""
    _, first = np.unique(np.round(np.log10(x) * 100), axis=1, return_index=True)
    return np.asarray(x[:, np.sort(first)])


def go_together(x: Array) -> bool:
    """Whether two axes, shape (2, n), are one: all places lie on a line of their logarithms, as
    where D is 20 N or C / N."""
    spread = np.log(x) - np.log(x).mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(spread, axis=1)
    return bool(sizes.all() and abs(spread[0] @ spread[1]) > TOGETHER * sizes.prod())


def aicc(found: Fit, points: Points) -> float:
    """Akaike's criterion for normal errors of ln y, corrected for few points; infinite with too
    few. `found` is by LOG_SQUARES.

    Source: Hurvich and Tsai 1989.
    """
    n, k = independent(points), len(found.form.parameters) + 1
    if n - k - 1 <= 0:
        return float("inf")
    return float(
        n * np.log(max(2 * found.objective / len(points.y), 1e-30))
        + 2 * k
        + 2 * k * (k + 1) / (n - k - 1)
    )


class Slope(NamedTuple):
    """By what power y changes with x, over the whole range."""

    estimate: float
    """d ln y / d ln x, by least squares."""
    interval: Interval
    detectable: float
    """The smallest slope that these runs would show at 5 % in 80 % of cases."""


def slope(points: Points, draws: Resamples) -> Slope:
    """The straight line through ln y over ln x, for one axis.

    Where every run has at least three places, each gives a slope, and the error is that of their
    mean, with that of the prompts that all runs have in common; else runs and prompts are drawn
    anew. The interval is Student's, of so many runs, since the spread of a few is too small. NaN
    ends with fewer than two slopes, or three runs without.
    """
    log_x, log_y = np.log(points.x[0]), np.log(points.y)
    names = np.unique(points.runs)
    once = np.ones_like(log_y)
    estimate = _line(log_x, log_y, once)
    positive = (draws.y > 0).all(axis=1)
    if all(len(np.unique(log_x[points.runs == name])) >= 3 for name in names):
        slopes = np.array(
            [
                _line(log_x[own], log_y[own], once[own])
                for own in (points.runs == name for name in names)
            ]
        )
        of_prompts = (
            [_line(log_x, np.log(y), once) for y in draws.y[positive]]
            if points.item_sums is not None
            else [0.0]
        )
        free, runs = (
            len(slopes) - 1,
            float(slopes.std(ddof=1) / np.sqrt(len(slopes))) if len(slopes) > 1 else float("nan"),
        )
        error = float(np.hypot(runs, np.std(of_prompts)))
    else:
        kept = positive & np.array(
            [len(np.unique(log_x[weights > 0])) > 1 for weights in draws.weights]
        )
        slopes = np.array(
            [
                _line(log_x, np.log(y), weights)
                for y, weights in zip(draws.y[kept], draws.weights[kept], strict=True)
            ]
        )
        free = len(names) - 2
        error = (
            float(slopes.std() * np.sqrt(len(names) / free))
            if free > 0 and len(slopes) > 1
            else float("nan")
        )
    reach = float(student.ppf(0.975, free)) * error if free > 0 else float("nan")
    return Slope(estimate, Interval(estimate - reach, estimate + reach), reach + NORMAL_80 * error)


def _line(x: Array, y: Array, weights: Array) -> float:
    center = np.average(x, weights=weights)
    spread = weights @ (x - center) ** 2
    return float(weights @ ((x - center) * y) / spread) if spread > 0 else 0.0


def largest(points: Points, *, axis: int = 0, share: float = HELD_OUT_SHARE) -> NDArray[np.bool_]:
    """Marks the points of the largest third of the places along an axis; none where there is one
    place only."""
    there = np.sort(places(points.x[axis : axis + 1])[0])
    held_out = max(1, round(len(there) * share))
    return (
        np.asarray(points.x[axis] >= there[-held_out] * 0.99)
        if len(there) > 1
        else np.zeros(len(points.y), dtype=np.bool_)
    )


def foretold(
    form: Form, points: Points, objective: Objective, held_out: NDArray[np.bool_]
) -> Array | None:
    """What a fit to the other points says of those held out; None where the others do not
    suffice."""
    if not held_out.any() or held_out.all():
        return None
    try:
        found = fit(form, points.x[:, ~held_out], points.y[~held_out], objective)
    except ValueError:
        return None
    return found.predict(points.x[:, held_out])


def extrapolation_error(
    form: Form, points: Points, objective: Objective, held_out: NDArray[np.bool_]
) -> float:
    """The mean of |prediction - y| / y over the points held out; NaN where they cannot be
    foretold."""
    predicted = foretold(form, points, objective, held_out)
    return (
        float("nan")
        if predicted is None
        else float(np.mean(np.abs(predicted - points.y[held_out]) / points.y[held_out]))
    )


def left_out_errors(found: Fit, points: Points, parts: NDArray[Any]) -> Array:
    """The mean squared error of ln y of each part of the points, predicted by a fit to all others.

    `parts`, shape (n,), says of which each point is, for instance its size; at least two. The
    result has shape (parts,), sorted by their names.
    """
    names = np.unique(parts)
    weights = np.array([parts != name for name in names], dtype=np.float64)
    generator = np.random.default_rng(0)
    best = np.full(len(names), np.inf)
    theta = np.broadcast_to(found.theta, (len(names), len(found.theta))).copy()
    for spread in (0.0, 0.1, 0.3):
        sign = generator.normal(0, spread, size=theta.shape)
        reached = solve(
            found.form,
            points.x,
            points.y,
            LOG_SQUARES,
            weights,
            found.theta * np.exp(sign),
            effort=ROUGH,
        )
        better = reached.objective < best
        best[better], theta[better] = reached.objective[better], reached.theta[better]
    predicted = np.maximum(curve(found.form, theta, points.x)[0], 1e-300)
    squared = (np.log(predicted) - np.log(points.y)) ** 2
    return np.asarray(((1 - weights) * squared).sum(axis=1) / (1 - weights).sum(axis=1))
