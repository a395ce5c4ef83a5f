"""Evidence for and against a fit: intervals from resampled runs and prompts, profiles, held-out
points, and tests for a trend."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_law
from scipy.stats import t as student

from worldpm.curves.forms import Array, Form, curve
from worldpm.curves.solver import LOG_SQUARES, ROUGH, Fit, Objective, fit, solve
from worldpm.stats.uncertainty import NORMAL_80, Interval

COLLINEAR_CORRELATION = 0.999
"""Largest correlation of ln N with ln D at which their effects can be separated."""
HELD_OUT_SHARE = 1 / 3
"""Share of the distinct sizes that are held out. The largest sizes are held out."""
VALUES_A_DECADE = 100
"""Number of distinct values of an axis per decade. Values are rounded, so that the slightly
different amounts of data of two seeds count as equal."""
LEAST_DEGREES = 6
"""Least degrees of freedom at which runs at equal x show the noise."""
NOISE_DRAWS = 20
"""Draws of noise for each resample of a prediction."""
ROUNDING_SQUARE = 1e-30
"""Squared residual of a point that can result from rounding in a perfect fit."""
LEAST_PREDICTION = 1e-300
"""Lower bound of predictions, so that they have a logarithm."""


@dataclass(frozen=True)
class Points:
    """The n measured points of one series, from independent runs."""

    x: Array
    """Shape (axes, n), all above 0."""
    y: Array
    """Shape (n,)."""
    runs: NDArray[np.int64]
    """The run of each point, shape (n,). Checkpoints of one run are not independent points."""
    item_sums: Array | None = None
    """Weighted sum of y over each prompt's pairs, for each point, shape (n, clusters); None if only
    means are known."""
    item_weights: Array | None = None
    """Sum of the weights of each prompt's pairs, shape (clusters,)."""

    def take(self, marked: NDArray[np.bool_]) -> "Points":
        """The marked points; the mask has shape (n,)."""
        sums = self.item_sums[marked] if self.item_sums is not None else None
        return Points(self.x[:, marked], self.y[marked], self.runs[marked], sums, self.item_weights)


class Resamples(NamedTuple):
    """B resamples of a series. Whole runs are drawn with replacement, and so are prompts, which are
    the same in all runs."""

    y: Array
    """Shape (B, n)."""
    weights: Array
    """How often each point's run was drawn, shape (B, n)."""


def resample(points: Points, *, seed: int, resamples: int) -> Resamples:
    """Draw whole runs and, if items are known, prompts."""
    generator = np.random.default_rng(seed)
    names, run = np.unique(points.runs, return_inverse=True)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    y = np.broadcast_to(points.y, (resamples, len(points.y)))

    # The same prompts in every run, because a hard prompt raises the loss of all points.
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
    """95 % percentile intervals by parameter. Their ends are NaN if fewer than two resamples were
    fitted."""
    failed: int
    """Number of resamples that could not be fitted."""

    def band(self, form: Form, x: Array) -> tuple[Array, Array]:
        """The low and high ends of the curve's 95 % band at x, which has shape (axes, n)."""
        low, high = np.quantile(curve(form, self.theta, x)[0], [0.025, 0.975], axis=0)
        return low, high


def bootstrap(fitted: Fit, points: Points, objective: Objective, draws: Resamples) -> Spread:
    """Fit every resample, from the optimum of all points and from a perturbed optimum.

    A single run gives no intervals, because the variance between runs is unknown.
    """
    form = fitted.form
    if len(np.unique(points.runs)) < 2:
        return Spread(np.empty((0, len(form.parameters))), _intervals(form, np.empty((0, 0))), 0)

    usable = _can_be_fitted(form, points, objective, draws)
    # A resample can have another optimum, which the perturbed start may reach.
    weights, y = draws.weights[usable], draws.y[usable]
    noise = np.random.default_rng(0).normal(0, 0.2, size=fitted.theta.shape)
    starts = (fitted.theta, fitted.theta * np.exp(noise))
    plain, shaken = (
        solve(form, points.x, y, objective, weights, _repeated(start, len(y)), effort=ROUGH)
        for start in starts
    )

    # An infinite objective means that the search found no curve, so the resample failed.
    better = shaken.objective < plain.objective
    theta = np.where(better[:, None], shaken.theta, plain.theta)
    theta = theta[np.isfinite(np.minimum(plain.objective, shaken.objective))]
    return Spread(theta, _intervals(form, theta), len(draws.weights) - len(theta))


def _can_be_fitted(
    form: Form, points: Points, objective: Objective, draws: Resamples
) -> NDArray[np.bool_]:
    """Which resamples have at least as many distinct x as parameters, and a logarithm of every y
    that needs one."""
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


def profile(
    points: Points,
    name: str,
    fitted: Fit,
    objective: Objective = LOG_SQUARES,
    *,
    steps: int = 41,
) -> Interval:
    """The 95 % profile-likelihood interval of a positive parameter, for errors of ln y whose most
    likely curve is that of the objective: normal for squares, and close to Laplace's for Huber's
    loss. An open end is 0 or infinity.

    At each value, all other parameters are fitted, first on a grid of four decades, then on a finer
    grid around the interval. `fitted` is the fit by the objective, so its value is inside. Points
    of one run count as one. The limit is the small-sample limit, which is exact for squares and
    straight lines.

    Source: Venzon and Moolgavkar 1988; Bates and Watts 1988, section 6.1.
    """
    count = independent_points(points)
    free = count - len(fitted.form.parameters)
    if free < 1:
        return Interval(0.0, float("inf"))

    # The F distribution for one parameter is Student's t squared; convert it to a deviance.
    limit = count * np.log1p(student.ppf(0.975, free) ** 2 / free)
    best = float(fitted.theta[fitted.form.parameters.index(name)])
    coarse = best * np.geomspace(1e-2, 1e2, steps)
    # If the deviance is steep, only the best value, in the middle, may be within the limit.
    inside = np.flatnonzero(_deviances(points, name, fitted, objective, coarse) <= limit)
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (steps // 2, steps // 2)

    # Start one coarse step outside, so that the fine grid contains the crossings of the limit.
    start, stop = coarse[max(first - 1, 0)], coarse[min(last + 1, steps - 1)]
    fine = np.geomspace(start, stop, 2 * steps - 1)
    within = np.flatnonzero(_deviances(points, name, fitted, objective, fine) <= limit)
    low, high = (float(fine[within[0]]), float(fine[within[-1]])) if len(within) else (best, best)
    return Interval(0.0 if first == 0 else low, float("inf") if last == steps - 1 else high)


def _deviances(
    points: Points, name: str, fitted: Fit, objective: Objective, values: Array
) -> Array:
    """Twice the decrease of the log likelihood at each value of a parameter."""
    index = fitted.form.parameters.index(name)
    weights = np.ones((len(values), len(points.y)))
    generator = np.random.default_rng(0)
    best = np.full(len(values), np.inf)

    # Also try perturbed starts: if a parameter is held far from its best value, the others can
    # move far.
    for spread in (0.0, 0.1, 0.5):
        noise = generator.normal(0, spread, size=(len(values), len(fitted.theta)))
        starts = fitted.theta * np.exp(noise)
        starts[:, index] = values
        solutions = solve(
            fitted.form,
            points.x,
            points.y,
            objective,
            weights,
            starts,
            held=index,
            effort=ROUGH,
        )
        best = np.minimum(best, solutions.objective)

    # A perfect fit has no noise, so use a lower bound.
    least = max(fitted.objective, len(points.y) * ROUNDING_SQUARE)
    deviances = independent_points(points) * np.log(np.maximum(best, least) / least)
    return np.asarray(deviances * 2 / _degree(fitted, points, objective))


def _degree(fitted: Fit, points: Points, objective: Objective) -> float:
    """The power of the residuals' scale with which the objective grows: 2 for squares, and 1 where
    Huber's loss is a straight line.

    If the objective grows with the power p of the scale, the most likely scale gives a log
    likelihood of -(n / p) ln objective.
    """
    residuals = np.abs(np.log(np.maximum(fitted.predict(points.x), LEAST_PREDICTION) / points.y))
    growth = float((residuals * np.minimum(residuals, objective.delta)).sum())
    if fitted.objective <= 0 or growth <= 0:
        return 2.0
    return float(np.clip(growth / fitted.objective, 1.0, 2.0))


class Shift(NamedTuple):
    """The change of a fit without one of its points."""

    point: int
    """Index of the point."""
    change: float
    """Change of the logarithm of the prediction at the largest x."""


def influence(points: Points, fitted: Fit, objective: Objective) -> Shift | None:
    """The point without which the prediction at the largest x of all axes changes most; None if no
    point can be left out. `fitted` is the fit by the objective.

    Source: Cook 1977 (deletion of single points).
    """
    count = len(points.y)
    if len(distinct_values(points.x).T) <= len(fitted.form.parameters):
        return None

    weights = 1.0 - np.eye(count)
    starts = _repeated(fitted.theta, count)
    without = solve(fitted.form, points.x, points.y, objective, weights, starts, effort=ROUGH).theta
    corner = points.x.max(axis=1, keepdims=True)
    predicted = np.maximum(curve(fitted.form, without, corner)[0][:, 0], LEAST_PREDICTION)
    changes = np.log(predicted) - np.log(np.maximum(fitted.predict(corner), LEAST_PREDICTION))
    index = int(np.nanargmax(np.abs(changes)))
    return Shift(index, float(changes[index]))


def noise_deviation(points: Points, fitted: Fit) -> float:
    """The standard deviation of ln y between runs at equal x; that of the residuals if no runs have
    equal x."""
    noise = replicates(points)
    if noise is not None:
        return float(np.sqrt(noise.variance))
    residuals = np.log(np.maximum(fitted.predict(points.x), LEAST_PREDICTION) / points.y)
    free = max(1, independent_points(points) - len(fitted.form.parameters))
    return float(np.sqrt((residuals**2).mean() * independent_points(points) / free))


def foretell(
    fitted: Fit, spread: Spread, deviation: float, x: Array, *, seed: int
) -> list[Interval]:
    """95 % intervals of y of one new run at each x, shape (axes, n): the spread of the fit over
    resamples, and noise of this standard deviation of ln y. The ends are NaN without resamples."""
    if len(spread.theta) < 2:
        return [Interval(float("nan"), float("nan"))] * x.shape[1]

    # several draws of noise for each resample, so that the ends are not those of few draws
    generator = np.random.default_rng(seed)
    values = np.maximum(curve(fitted.form, spread.theta, x)[0], LEAST_PREDICTION)
    noise = generator.normal(0, deviation, size=(NOISE_DRAWS, *values.shape))
    drawn = np.exp(np.log(values) + noise).reshape(-1, x.shape[1])
    lows, highs = np.quantile(drawn, [0.025, 0.975], axis=0).tolist()
    return [Interval(low, high) for low, high in zip(lows, highs, strict=True)]


def independent_points(points: Points) -> int:
    """The number of independent points of a likelihood: the number of runs or of distinct x,
    whichever is larger."""
    return max(len(np.unique(points.runs)), len(distinct_values(points.x).T))


def distinct_values(x: Array) -> Array:
    """The distinct values of x, shape (axes, k), in the order of x. Values that round to the same
    hundredth of a decade are equal."""
    # The first of equal values represents them. np.sort restores the order of x.
    _, first = np.unique(np.round(np.log10(x) * VALUES_A_DECADE), axis=1, return_index=True)
    return np.asarray(x[:, np.sort(first)])


def are_collinear(x: Array) -> bool:
    """Whether all points are on a line in the logarithms of two axes, shape (2, n), as for D = 20 N
    or D = C / N."""
    centred = np.log(x) - np.log(x).mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    along = abs(centred[0] @ centred[1])
    return bool(lengths.all() and along > COLLINEAR_CORRELATION * lengths.prod())


def aicc(fitted: Fit, points: Points) -> float:
    """Akaike's criterion for normal errors of ln y, corrected for few points; infinite with too few
    points. `fitted` is the fit by LOG_SQUARES.

    Source: Hurvich and Tsai 1989.
    """
    # The variance of the errors is also a parameter.
    n, k = independent_points(points), len(fitted.form.parameters) + 1
    if n - k - 1 <= 0:
        return float("inf")

    variance = max(2 * fitted.objective / len(points.y), ROUNDING_SQUARE)
    return float(n * np.log(variance) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


@dataclass(frozen=True)
class Noise:
    """The noise of ln y between runs."""

    cell: NDArray[np.int64]
    """The group of each point whose misfits are averaged, shape (n,): points at equal x, or each
    point alone."""
    variance: float
    """Variance of one point, times the design effect: points of one run may deviate together."""
    degrees: int
    """Degrees of freedom of the variance."""
    of_neighbours: bool = False
    """Whether it is the noise between neighbours, because no runs have equal x."""


def noise_of(points: Points, fits: Iterable[Fit]) -> Noise | None:
    """The noise between runs at equal x or, without such runs, between neighbours on the axes: the
    least over the fits. None if both are unknown."""
    known = replicates(points)
    if known is not None:
        return known
    estimates = [roughness(points, fitted) for fitted in fits]
    return min(filter(None, estimates), key=attrgetter("variance"), default=None)


def replicates(points: Points) -> Noise | None:
    """The noise between runs at equal x; None with fewer than LEAST_DEGREES degrees of freedom.

    The design effect is the variance of the runs' mean deviations, relative to that of independent
    points, and at least 1.

    Source: Draper and Smith 1998, section 2.1 (pure error); Kish 1965, section 5.4.
    """
    rounded = np.round(np.log10(points.x) * VALUES_A_DECADE)
    _, cell, sizes = np.unique(rounded, axis=1, return_inverse=True, return_counts=True)
    log_y = np.log(points.y)
    deviations = log_y - (np.bincount(cell, log_y) / sizes)[cell]

    names, run, lengths = np.unique(points.runs, return_inverse=True, return_counts=True)
    degrees = len(log_y) - len(sizes)
    # Runs that share no cell with another have no deviations.
    groups = len(np.unique(rounded[0])) if len(points.x) > 1 else 1
    degrees_of_runs = len(names) - groups
    if degrees < LEAST_DEGREES or degrees_of_runs < 1:
        return None

    variance = max(float(deviations @ deviations) / degrees, ROUNDING_SQUARE)
    of_runs = float((np.bincount(run, deviations) ** 2 / lengths).sum()) / degrees_of_runs
    return Noise(cell, variance * max(1.0, of_runs / variance), degrees)


def roughness(points: Points, fitted: Fit) -> Noise | None:
    """The noise of ln y between neighbours on an axis, where no runs have equal x: the variance of
    each residual around the line through its two neighbours. A smooth misfit of the form hardly
    changes it. None with fewer than LEAST_DEGREES degrees of freedom.

    On a plane, neighbours along an axis have the same value on the other axis. The result is the
    largest of the variances along the axes and of the runs' sums, as for a design effect.

    Source: Gasser, Sroka and Jennen-Steinmetz 1986 (variance from neighbours).
    """
    log_x = np.log10(points.x)
    residuals = np.log(points.y) - np.log(np.maximum(fitted.predict(points.x), LEAST_PREDICTION))
    variances, degrees = [], []
    for axis in range(len(log_x)):
        others = np.round(np.delete(log_x, axis, axis=0) * VALUES_A_DECADE)
        rows = np.unique(others, axis=1, return_inverse=True)[1] if len(others) else None
        middle, rough = _roughness_along(log_x[axis], residuals, rows)
        if len(rough) == 0:
            continue

        run, lengths = np.unique(points.runs[middle], return_inverse=True, return_counts=True)[1:]
        of_runs = float((np.bincount(run, rough) ** 2 / lengths).mean())
        # along the data, neighbours are often of one run, which does not show the runs' offsets
        variances += [float((rough**2).mean()), of_runs]
        # sums of neighbours overlap, so two of three are independent
        degrees.append(2 * len(rough) // 3)

    if not degrees or min(degrees) < LEAST_DEGREES:
        return None
    alone = np.arange(len(residuals))
    return Noise(alone, max(*variances, ROUNDING_SQUARE), min(degrees), of_neighbours=True)


def _roughness_along(
    position: Array, residuals: Array, rows: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], Array]:
    """Indices of the points between two neighbours of their row, and their residuals around the
    line through both, scaled to the noise of one point."""
    middles: list[NDArray[np.int64]] = []
    for row in [np.arange(len(position))] if rows is None else map(np.flatnonzero, _masks(rows)):
        order = row[np.argsort(position[row], kind="stable")]
        middles.append(np.stack([order[:-2], order[1:-1], order[2:]]))
    before, middle, after = np.concatenate(middles, axis=1)

    gap = position[after] - position[before]
    share = np.divide(
        position[middle] - position[before], gap, where=gap > 0, out=np.ones_like(gap)
    )
    around = residuals[middle] - (1 - share) * residuals[before] - share * residuals[after]
    return middle, np.asarray(around / np.sqrt(1 + (1 - share) ** 2 + share**2))


def _masks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    for row in np.unique(rows):
        yield rows == row


def imitate(points: Points, fitted: Fit, noise: Noise, *, seed: int, resamples: int) -> Resamples:
    """Draw the points again from a fit and its noise (a parametric bootstrap). If each size has a
    single run, resampled runs would lack whole sizes."""
    generator = np.random.default_rng(seed)
    shape = (resamples, len(points.y))
    drawn = generator.normal(0, np.sqrt(noise.variance), size=shape)
    y = np.maximum(fitted.predict(points.x), LEAST_PREDICTION) * np.exp(drawn)
    return Resamples(y, np.ones(shape))


class Misfit(NamedTuple):
    """A test of a form against the means of the points at equal x."""

    p: float
    """Probability of such a misfit from the noise between runs alone."""
    excess: float
    """Root mean square misfit of ln y that noise does not explain."""


def lack_of_fit(fitted: Fit, points: Points, noise: Noise) -> Misfit:
    """The F test of lack of fit against pure error.

    Source: Draper and Smith 1998, section 2.1.
    """
    squares, cells, runs = _squares_of_means(fitted, points, noise)
    free = max(1, cells - len(fitted.form.parameters))
    mean_square = squares / free
    p = float(f_law.sf(mean_square / noise.variance, free, noise.degrees))
    excess = max(0.0, mean_square - noise.variance) / runs
    return Misfit(p, float(np.sqrt(excess)))


def misfits(fits: Mapping[str, Fit], points: Points, noise: Noise | None) -> dict[str, Misfit]:
    """The misfit of each form, by name; empty if the noise is unknown."""
    if noise is None:
        return {}
    return {name: lack_of_fit(fitted, points, noise) for name, fitted in fits.items()}


class _Squares(NamedTuple):
    squares: float
    """Sum of the squared misfits of means, times the number of points of each."""
    cells: int
    runs: float
    """Mean number of points of a cell."""


def _squares_of_means(fitted: Fit, points: Points, noise: Noise) -> _Squares:
    residuals = np.log(points.y) - np.log(np.maximum(fitted.predict(points.x), LEAST_PREDICTION))
    sizes = np.bincount(noise.cell)
    means = np.bincount(noise.cell, residuals) / sizes
    return _Squares(float(sizes @ means**2), len(sizes), float(sizes.mean()))


def criterion(fitted: Fit, points: Points, noise: Noise | None) -> float:
    """Akaike's criterion of a fit by LOG_SQUARES. If the noise between runs is known, it replaces
    the variance that `aicc` estimates from the residuals of each form.

    Source: Burnham and Anderson 2002, section 2.5 (a common variance for all forms).
    """
    if noise is None:
        return aicc(fitted, points)
    squares, cells, _ = _squares_of_means(fitted, points, noise)
    # A form with as many parameters as places passes through all of them.
    if cells <= len(fitted.form.parameters):
        return float("inf")
    return squares / noise.variance + 2 * len(fitted.form.parameters)


class Slope(NamedTuple):
    """The exponent of y as a power of x, over the whole range."""

    estimate: float
    """d ln y / d ln x, by least squares."""
    interval: Interval
    """The ends are NaN if there are too few runs."""
    detectable: float
    """The smallest slope that a 5 % test on these runs detects with 80 % power."""


class SlopeError(NamedTuple):
    """The error of a slope."""

    standard_error: float
    """NaN if there are too few runs."""
    degrees: int
    """Degrees of freedom of Student's t."""


def slope(points: Points, draws: Resamples) -> Slope:
    """The slope of the straight line through ln y over ln x, for one axis.

    If every run has at least three distinct x, each run gives a slope. The error then combines the
    error of the slopes' mean with the error of the prompts, which all runs share. Otherwise the
    error comes from resampled runs and prompts. The interval uses Student's t for the number of
    runs, because the spread of a few runs is too small. Its ends are NaN with fewer than two
    slopes, or with fewer than three resampled runs.
    """
    log_x, log_y = np.log(points.x[0]), np.log(points.y)
    estimate = _line_slope(log_x, log_y, np.ones_like(log_y))
    runs = [points.runs == name for name in np.unique(points.runs)]

    if all(len(np.unique(log_x[run])) >= 3 for run in runs):
        error, degrees = _error_of_run_slopes(points, draws, runs)
    else:
        error, degrees = _error_of_resampled_slopes(points, draws, len(runs))

    # A percentile interval of a few runs is too short. Student's t gives the right width.
    reach = float(student.ppf(0.975, degrees)) * error if degrees > 0 else float("nan")
    return Slope(estimate, Interval(estimate - reach, estimate + reach), reach + NORMAL_80 * error)


def _error_of_run_slopes(
    points: Points, draws: Resamples, runs: list[NDArray[np.bool_]]
) -> SlopeError:
    """The error of the mean of the runs' slopes. `runs` marks the points of each run."""
    log_x, log_y = np.log(points.x[0]), np.log(points.y)
    ones = np.ones_like(log_y)
    slopes = np.array([_line_slope(log_x[run], log_y[run], ones[run]) for run in runs])
    error = float("nan")
    if len(slopes) > 1:
        error = float(slopes.std(ddof=1) / np.sqrt(len(slopes)))

    # All runs have the same prompts, so their agreement does not include the error of prompts.
    of_prompts = [0.0]
    if points.item_sums is not None:
        positive = (draws.y > 0).all(axis=1)
        of_prompts = [_line_slope(log_x, np.log(y), ones) for y in draws.y[positive]]
    return SlopeError(float(np.hypot(error, np.std(of_prompts))), len(slopes) - 1)


def _error_of_resampled_slopes(points: Points, draws: Resamples, runs: int) -> SlopeError:
    """The error of the slope through all points, from the slopes of resamples."""
    log_x = np.log(points.x[0])
    several = np.array([len(np.unique(log_x[weights > 0])) > 1 for weights in draws.weights])
    usable = (draws.y > 0).all(axis=1) & several
    slopes = np.array(
        [
            _line_slope(log_x, np.log(y), weights)
            for y, weights in zip(draws.y[usable], draws.weights[usable], strict=True)
        ]
    )

    # The line has two parameters, so resampling few runs understates the spread.
    degrees = runs - 2
    if degrees < 1 or len(slopes) < 2:
        return SlopeError(float("nan"), degrees)
    return SlopeError(float(slopes.std() * np.sqrt(runs / degrees)), degrees)


def _line_slope(x: Array, y: Array, weights: Array) -> float:
    """The slope of a line by weighted least squares; 0 if all x are equal."""
    center = np.average(x, weights=weights)
    spread = weights @ (x - center) ** 2
    return float(weights @ ((x - center) * y) / spread) if spread > 0 else 0.0


def largest(points: Points, *, axis: int = 0, share: float = HELD_OUT_SHARE) -> NDArray[np.bool_]:
    """Mark the points of the largest third of the values along an axis, or no points if there is
    only one value."""
    amounts = np.sort(distinct_values(points.x[axis : axis + 1])[0])
    if len(amounts) < 2:
        return np.zeros(len(points.y), dtype=np.bool_)

    # Count values, not points, because a size with many points is one size.
    held_out = max(1, round(len(amounts) * share))
    # A tolerance of 1 %, because another seed can be slightly below the value.
    return np.asarray(points.x[axis] >= amounts[-held_out] * 0.99)


def predictions(
    form: Form, points: Points, objective: Objective, held_out: NDArray[np.bool_]
) -> Array | None:
    """Predictions of the held-out points by a fit to the other points; None if there are too few
    other points."""
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
    """The mean of |prediction - y| / y over the held-out points; NaN if they cannot be
    predicted."""
    predicted = predictions(form, points, objective, held_out)
    if predicted is None:
        return float("nan")
    actual = points.y[held_out]
    return float(np.mean(np.abs(predicted - actual) / actual))


def left_out_errors(fitted: Fit, points: Points, parts: NDArray[Any]) -> Array:
    """The mean squared error of ln y of each part of the points, predicted by a fit to the other
    parts.

    `parts`, shape (n,), names the part of each point, for instance its size. There are at least two
    parts. The result has shape (parts,), sorted by the names of parts.
    """
    names = np.unique(parts)
    weights = np.array([parts != name for name in names], dtype=np.float64)
    generator = np.random.default_rng(0)
    best = np.full(len(names), np.inf)
    theta = _repeated(fitted.theta, len(names)).copy()

    # Start from the best fit to all points and from perturbed ones, because without a part another
    # optimum can be better.
    for spread in (0.0, 0.1, 0.3):
        starts = fitted.theta * np.exp(generator.normal(0, spread, size=theta.shape))
        solutions = solve(
            fitted.form, points.x, points.y, LOG_SQUARES, weights, starts, effort=ROUGH
        )
        better = solutions.objective < best
        best[better], theta[better] = solutions.objective[better], solutions.theta[better]

    predicted = np.maximum(curve(fitted.form, theta, points.x)[0], LEAST_PREDICTION)
    # A part's weights are 0 in the fit that predicts it, and 1 - weights selects its errors.
    squared = (np.log(predicted) - np.log(points.y)) ** 2
    return np.asarray(((1 - weights) * squared).sum(axis=1) / (1 - weights).sum(axis=1))
