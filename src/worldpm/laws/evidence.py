"""Evidence for and against a fit: intervals by resampling runs and prompts, profiles, held-out
points, and tests for a trend."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from worldpm.curves.forms import Array, Form, curve
from worldpm.curves.solver import LOG_SQUARES, ROUGH, Fit, Objective, fit, solve
from worldpm.stats.uncertainty import NORMAL_80, Interval

COLLINEAR_CORRELATION = 0.999
"""A correlation of ln N with ln D beyond which their effects cannot be separated."""
HELD_OUT_SHARE = 1 / 3
"""Share of the distinct sizes that are held out, the largest ones."""
VALUES_A_DECADE = 100
"""Values of an axis that count as different: the slightly different amounts of data of two seeds
round to the same one."""
ROUNDING_SQUARE = 1e-30
"""Squared residual of a point that a perfect fit may have by rounding."""
LEAST_PREDICTION = 1e-300
"""A prediction below it has no logarithm."""


@dataclass(frozen=True)
class Points:
    """Measured points of one series: n of them, from runs that are independent of each other."""

    x: Array
    """Shape (axes, n), all above 0."""
    y: Array
    """Shape (n,)."""
    runs: NDArray[np.int64]
    """Shape (n,): the run of each point. Checkpoints of one run are not independent points."""
    item_sums: Array | None = None
    """Shape (n, clusters): each point's weighted sum of y over each prompt's pairs; None where only
    means are known."""
    item_weights: Array | None = None
    """Shape (clusters,): the sums of weights that belong to them."""

    def take(self, marked: NDArray[np.bool_]) -> "Points":
        """The marked points; the mask has shape (n,)."""
        sums = self.item_sums[marked] if self.item_sums is not None else None
        return Points(self.x[:, marked], self.y[marked], self.runs[marked], sums, self.item_weights)


class Resamples(NamedTuple):
    """B draws of a series: whole runs with replacement, and prompts with replacement, the same for
    all runs."""

    y: Array
    """Shape (B, n)."""
    weights: Array
    """Shape (B, n): how often a point's run was drawn."""


def resample(points: Points, *, seed: int, resamples: int) -> Resamples:
    """Draw whole runs and, where items are known, prompts."""
    generator = np.random.default_rng(seed)
    names, run = np.unique(points.runs, return_inverse=True)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    y = np.broadcast_to(points.y, (resamples, len(points.y)))

    # The same prompts in every run: what a hard prompt adds to the loss is common to all points.
    if points.item_sums is not None and points.item_weights is not None:
        clusters = len(points.item_weights)
        shares = np.full(clusters, 1 / clusters)
        drawn = generator.multinomial(clusters, shares, size=resamples).astype(np.float64)
        y = drawn @ points.item_sums.T / (drawn @ points.item_weights)[:, None]

    return Resamples(y, counts[:, run].astype(np.float64))


class Spread(NamedTuple):
    """The spread of a fit over resamples."""

    theta: Array
    """Parameters of the resamples that could be fitted, shape (B', P)."""
    intervals: dict[str, Interval]
    """95 % percentile intervals by parameter; NaN ends where fewer than two were fitted."""
    failed: int
    """Resamples with too few different points."""

    def band(self, form: Form, x: Array) -> tuple[Array, Array]:
        """The 95 % band of the curve at x, of shape (axes, n): its low and its high end."""
        low, high = np.quantile(curve(form, self.theta, x)[0], [0.025, 0.975], axis=0)
        return low, high


def bootstrap(fitted: Fit, points: Points, objective: Objective, draws: Resamples) -> Spread:
    """Fit every resample, from the optimum of all points and from a shaken one.

    The points of one run have no intervals: the variance between runs is unknown.
    """
    form = fitted.form
    if len(np.unique(points.runs)) < 2:
        return Spread(np.empty((0, len(form.parameters))), _intervals(form, np.empty((0, 0))), 0)

    usable = _can_be_fitted(form, points, objective, draws)
    # A resample may have its optimum in another valley, which the shaken start may lead to.
    weights, y = draws.weights[usable], draws.y[usable]
    noise = np.random.default_rng(0).normal(0, 0.2, size=fitted.theta.shape)
    starts = (fitted.theta, fitted.theta * np.exp(noise))
    plain, shaken = (
        solve(form, points.x, y, objective, weights, _repeated(start, len(y)), effort=ROUGH)
        for start in starts
    )

    # A search whose objective is infinite found no curve; its resample counts as failed.
    better = shaken.objective < plain.objective
    theta = np.where(better[:, None], shaken.theta, plain.theta)
    theta = theta[np.isfinite(np.minimum(plain.objective, shaken.objective))]
    return Spread(theta, _intervals(form, theta), len(draws.weights) - len(theta))


def _can_be_fitted(
    form: Form, points: Points, objective: Objective, draws: Resamples
) -> NDArray[np.bool_]:
    """Which resamples have as many different x as parameters, and a y that has a logarithm."""
    column = np.unique(points.x, axis=1, return_inverse=True)[1]
    counts = np.array([len(set(column[weights > 0])) for weights in draws.weights])
    enough = counts >= len(form.parameters)
    return enough & (draws.y > 0).all(axis=1) if objective.logarithmic else enough


def _repeated(theta: Array, count: int) -> Array:
    return np.broadcast_to(theta, (count, len(theta)))


def _intervals(form: Form, theta: Array) -> dict[str, Interval]:
    if len(theta) < 2:
        return dict.fromkeys(form.parameters, Interval(float("nan"), float("nan")))
    lows, highs = np.quantile(theta, [0.025, 0.975], axis=0).tolist()
    return {
        name: Interval(low, high)
        for name, low, high in zip(form.parameters, lows, highs, strict=True)
    }


def profile(points: Points, name: str, fitted: Fit, *, steps: int = 41) -> Interval:
    """The 95 % profile-likelihood interval of one positive parameter, for normal errors of ln y; an
    open end is 0 or infinite.

    All other parameters are fitted at each value, on a grid of four decades and then on a finer one
    around the interval. `fitted` is the fit by LOG_SQUARES. Points of one run count as one, and the
    limit is that of few points, which is exact for straight lines.

    Source: Venzon and Moolgavkar 1988; Bates and Watts 1988, section 6.1.
    """
    count = independent_points(points)
    free = count - len(fitted.form.parameters)
    if free < 1:
        return Interval(0.0, float("inf"))

    # The F distribution of one parameter: Student's t squared, turned into a deviance.
    limit = count * np.log1p(student.ppf(0.975, free) ** 2 / free)
    best = float(fitted.theta[fitted.form.parameters.index(name)])
    coarse = best * np.geomspace(1e-2, 1e2, steps)
    # A steep deviance may have no value within the limit but the best one, in the middle.
    inside = np.flatnonzero(_deviances(points, name, fitted, coarse) <= limit)
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (steps // 2, steps // 2)

    # One coarse step beyond either end, so that the crossing of the limit is within the fine grid.
    start, stop = coarse[max(first - 1, 0)], coarse[min(last + 1, steps - 1)]
    fine = np.geomspace(start, stop, 2 * steps - 1)
    within = np.flatnonzero(_deviances(points, name, fitted, fine) <= limit)
    low, high = (float(fine[within[0]]), float(fine[within[-1]])) if len(within) else (best, best)
    return Interval(0.0 if first == 0 else low, float("inf") if last == steps - 1 else high)


def _deviances(points: Points, name: str, fitted: Fit, values: Array) -> Array:
    """Twice the loss of log likelihood at each value of a parameter."""
    index = fitted.form.parameters.index(name)
    weights = np.ones((len(values), len(points.y)))
    generator = np.random.default_rng(0)
    best = np.full(len(values), np.inf)

    # Rougher starts too: with a parameter held far from its best value, the others may move far.
    for spread in (0.0, 0.1, 0.5):
        noise = generator.normal(0, spread, size=(len(values), len(fitted.theta)))
        starts = fitted.theta * np.exp(noise)
        starts[:, index] = values
        solutions = solve(
            fitted.form,
            points.x,
            points.y,
            LOG_SQUARES,
            weights,
            starts,
            held=index,
            effort=ROUGH,
        )
        best = np.minimum(best, solutions.objective)

    # A perfect fit leaves no noise to measure by.
    least = max(fitted.objective, len(points.y) * ROUNDING_SQUARE)
    return np.asarray(independent_points(points) * np.log(np.maximum(best, least) / least))


def independent_points(points: Points) -> int:
    """The number of independent points of a likelihood: one of each run, or of each different x
    where there are more of them."""
    return max(len(np.unique(points.runs)), len(distinct_values(points.x).T))


def distinct_values(x: Array) -> Array:
    """The different values of x, shape (axes, k), in the order of x; values that round to the same
    hundredth of a decade are equal."""
    # The first of equal values represents them; np.sort brings back the order of x.
    _, first = np.unique(np.round(np.log10(x) * VALUES_A_DECADE), axis=1, return_index=True)
    return np.asarray(x[:, np.sort(first)])


def are_collinear(x: Array) -> bool:
    """Whether two axes, shape (2, n), act as one: all points are on a line of their logarithms, as
    where D is 20 N or C / N."""
    centred = np.log(x) - np.log(x).mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    along = abs(centred[0] @ centred[1])
    return bool(lengths.all() and along > COLLINEAR_CORRELATION * lengths.prod())


def aicc(fitted: Fit, points: Points) -> float:
    """Akaike's criterion for normal errors of ln y, corrected for few points; infinite with too
    few. `fitted` is by LOG_SQUARES.

    Source: Hurvich and Tsai 1989.
    """
    # The variance of the errors is a parameter too.
    n, k = independent_points(points), len(fitted.form.parameters) + 1
    if n - k - 1 <= 0:
        return float("inf")

    variance = max(2 * fitted.objective / len(points.y), ROUNDING_SQUARE)
    return float(n * np.log(variance) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


class Slope(NamedTuple):
    """The power by which y changes with x, over the whole range."""

    estimate: float
    """d ln y / d ln x, by least squares."""
    interval: Interval
    """NaN ends with too few runs."""
    detectable: float
    """The smallest slope that these runs would show at 5 % in 80 % of cases."""


class SlopeError(NamedTuple):
    """How far a slope may be from the true one."""

    standard_error: float
    """NaN where the runs do not suffice."""
    degrees: int
    """Degrees of freedom of Student's t."""


def slope(points: Points, draws: Resamples) -> Slope:
    """The straight line through ln y over ln x, for one axis.

    Where every run has at least three different x, each gives a slope, and the error is that of
    their mean, with that of the prompts that all runs have in common. Elsewhere runs and prompts
    are resampled. The interval is Student's, for the number of runs, because the spread of a few
    runs is too small. NaN ends with fewer than two slopes, or three runs without.
    """
    log_x, log_y = np.log(points.x[0]), np.log(points.y)
    estimate = _line_slope(log_x, log_y, np.ones_like(log_y))
    runs = [points.runs == name for name in np.unique(points.runs)]

    if all(len(np.unique(log_x[run])) >= 3 for run in runs):
        error, degrees = _error_of_run_slopes(points, draws, runs)
    else:
        error, degrees = _error_of_resampled_slopes(points, draws, len(runs))

    # An interval of a few runs by percentiles is too short: Student's t has the right width.
    reach = float(student.ppf(0.975, degrees)) * error if degrees > 0 else float("nan")
    return Slope(estimate, Interval(estimate - reach, estimate + reach), reach + NORMAL_80 * error)


def _error_of_run_slopes(
    points: Points, draws: Resamples, runs: list[NDArray[np.bool_]]
) -> SlopeError:
    """The error of the mean of the runs' own slopes; `runs` marks the points of each."""
    log_x, log_y = np.log(points.x[0]), np.log(points.y)
    ones = np.ones_like(log_y)
    slopes = np.array([_line_slope(log_x[run], log_y[run], ones[run]) for run in runs])
    error = float("nan")
    if len(slopes) > 1:
        error = float(slopes.std(ddof=1) / np.sqrt(len(slopes)))

    # Runs share their prompts, so their agreement does not show what other prompts would give.
    of_prompts = [0.0]
    if points.item_sums is not None:
        positive = (draws.y > 0).all(axis=1)
        of_prompts = [_line_slope(log_x, np.log(y), ones) for y in draws.y[positive]]
    return SlopeError(float(np.hypot(error, np.std(of_prompts))), len(slopes) - 1)


def _error_of_resampled_slopes(points: Points, draws: Resamples, runs: int) -> SlopeError:
    """The error of the slope through all points, by the slopes of resamples."""
    log_x = np.log(points.x[0])
    several = np.array([len(np.unique(log_x[weights > 0])) > 1 for weights in draws.weights])
    usable = (draws.y > 0).all(axis=1) & several
    slopes = np.array(
        [
            _line_slope(log_x, np.log(y), weights)
            for y, weights in zip(draws.y[usable], draws.weights[usable], strict=True)
        ]
    )

    # The line has two parameters, and resampling few runs understates the spread accordingly.
    degrees = runs - 2
    if degrees < 1 or len(slopes) < 2:
        return SlopeError(float("nan"), degrees)
    return SlopeError(float(slopes.std() * np.sqrt(runs / degrees)), degrees)


def _line_slope(x: Array, y: Array, weights: Array) -> float:
    """The slope of the line of weighted least squares; 0 where all x are equal."""
    center = np.average(x, weights=weights)
    spread = weights @ (x - center) ** 2
    return float(weights @ ((x - center) * y) / spread) if spread > 0 else 0.0


def largest(points: Points, *, axis: int = 0, share: float = HELD_OUT_SHARE) -> NDArray[np.bool_]:
    """Mark the points of the largest third of the values along an axis; none where there is one
    value only."""
    amounts = np.sort(distinct_values(points.x[axis : axis + 1])[0])
    if len(amounts) < 2:
        return np.zeros(len(points.y), dtype=np.bool_)

    # By values, not by points: a size with many points is one size.
    held_out = max(1, round(len(amounts) * share))
    # 1 % of tolerance: another seed may be a little below the value that it rounds to.
    return np.asarray(points.x[axis] >= amounts[-held_out] * 0.99)


def predictions(
    form: Form, points: Points, objective: Objective, held_out: NDArray[np.bool_]
) -> Array | None:
    """Predictions of the held-out points by a fit to the others; None where the others do not
    suffice."""
    if not held_out.any() or held_out.all():
        return None

    try:
        fitted = fit(form, points.x[:, ~held_out], points.y[~held_out], objective)
    except ValueError:
        return None

    return fitted.predict(points.x[:, held_out])


def extrapolation_error(
    form: Form, points: Points, objective: Objective, held_out: NDArray[np.bool_]
) -> float:
    """The mean of |prediction - y| / y over the held-out points; NaN where they cannot be
    predicted."""
    predicted = predictions(form, points, objective, held_out)
    if predicted is None:
        return float("nan")
    actual = points.y[held_out]
    return float(np.mean(np.abs(predicted - actual) / actual))


def left_out_errors(fitted: Fit, points: Points, parts: NDArray[Any]) -> Array:
    """The mean squared error of ln y of each part of the points, predicted by a fit to the other
    parts.

    `parts`, shape (n,), names the part of each point, for instance its size; there are at least
    two. The result has shape (parts,), sorted by their names.
    """
    names = np.unique(parts)
    weights = np.array([parts != name for name in names], dtype=np.float64)
    generator = np.random.default_rng(0)
    best = np.full(len(names), np.inf)
    theta = _repeated(fitted.theta, len(names)).copy()

    # The best fit to all points, and shaken starts: without a part, another valley may be deeper.
    for spread in (0.0, 0.1, 0.3):
        starts = fitted.theta * np.exp(generator.normal(0, spread, size=theta.shape))
        solutions = solve(
            fitted.form, points.x, points.y, LOG_SQUARES, weights, starts, effort=ROUGH
        )
        better = solutions.objective < best
        best[better], theta[better] = solutions.objective[better], solutions.theta[better]

    predicted = np.maximum(curve(fitted.form, theta, points.x)[0], LEAST_PREDICTION)
    # Weights are 0 on the part that was left out, and only there its errors count.
    squared = (np.log(predicted) - np.log(points.y)) ** 2
    return np.asarray(((1 - weights) * squared).sum(axis=1) / (1 - weights).sum(axis=1))
