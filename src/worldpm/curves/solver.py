"""Least squares, plain or robust, for any form: exact coefficients on a grid of starts, then damped
Gauss-Newton steps, in batches.

Positive parameters are searched as their logarithms, so that no step can make them negative. These
"working" values and the "natural" ones of a form have the same shape: B searches, P parameters.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldpm.curves.forms import Array, Form, curve

HUBER_DELTA = 1e-3
"""Source: Hoffmann et al. 2022, arXiv 2203.15556, section 3.3."""

STARTS = 48
"""Best starts of the grid, each followed for FIRST_STEPS."""
FIRST_STEPS = 30
"""Steps before most searches are dropped."""
FINALISTS = 8
"""Best searches after FIRST_STEPS, followed to their end."""

IDLE_STEPS = 8
"""A search has converged after this number of steps in a row without a gain."""
ROUNDING_GAIN = 1e-28
"""A gain below this is rounding, also where the objective is 0."""
SAME_OPTIMUM = 1e-6
"""Optima whose objectives differ by less than this share count as equal, and all are listed."""

FIRST_DAMPING = 1e-3
"""Share of the Hessian's diagonal that is added to it in the first step."""
LEAST_DAMPING, MOST_DAMPING = 1e-14, 1e14
DAMPING_FALL, DAMPING_RISE = 5, 4
"""The damping is divided by the first after a successful step, and multiplied by the second after a
failed step."""
LONGEST_STEP = 3.0
"""In working units: a positive parameter changes at most by a factor of e^3 = 20 in one step."""

LOG_LEAST, LOG_MOST = np.log(1e-60), np.log(1e60)
"""Natural logarithms of the ends of a positive parameter's range."""
SIGNED_MOST = 1e30
"""Largest size of a parameter that may be negative."""
NEGLIGIBLE_EFFECT = 1e-6
"""A parameter that changes the curve by a smaller share of the largest y has no effect."""
OUTSIDE_FACTOR = 1e3
"""A location further outside the data than this factor is at its bound."""
NONZERO = 1e-300
"""Floor of divisors and of arguments of logarithms that may be 0."""


class Objective(NamedTuple):
    """The quantity to minimize: a weighted sum of a function of residuals."""

    name: str
    """For `laws.json`."""
    logarithmic: bool
    """True for residuals of ln y, False for residuals of y."""
    delta: float
    """Residuals beyond it count linearly; infinite for plain squares."""


HUBER = Objective("Huber(1e-3) of ln y", True, HUBER_DELTA)
SQUARES = Objective("squares of y", False, np.inf)
LOG_SQUARES = Objective("squares of ln y", True, np.inf)


class Effort(NamedTuple):
    """Limits of a search."""

    steps: int
    """Most steps, accepted or not."""
    gain: float
    """A step that lowers the objective by a smaller share gains nothing."""


FULL, ROUGH = Effort(500, 1e-10), Effort(120, 1e-7)
"""Limits for a fit, and for its many repetitions, which start from it."""


class Solutions(NamedTuple):
    """End points of B searches, in the order of their starts."""

    theta: Array
    """Shape (B, P)."""
    objective: Array
    """Shape (B,); infinite where the curve is not finite."""
    converged: NDArray[np.bool_]
    """Whether the last steps gained nothing."""
    moved: NDArray[np.bool_]
    """Whether any step was accepted."""


class Fit(NamedTuple):
    """A form fitted to points."""

    form: Form
    """The family of curves."""
    theta: Array
    """Shape (P,), in the order of `form.parameters`."""
    objective: float
    """The least value that a search reached."""
    converged: bool
    """Whether the best search ended by itself, after at least one step."""
    at_bound: tuple[str, ...]
    """Parameters that ended where they have no effect, or at the end of their range."""
    optima: tuple[tuple[float, ...], ...]
    """The distinct parameters whose objective is within SAME_OPTIMUM of the least; the first is
    `theta`."""
    condition: float
    """Condition number of the Hessian at the optimum: above 1e12, quite different parameters fit
    equally well."""

    def predict(self, x: Array) -> Array:
        """The curve at x, shape (axes, n)."""
        return np.asarray(curve(self.form, self.theta[None], x)[0][0])


class _Batch(NamedTuple):
    """B problems of one form, with the same x but different targets and weights."""

    form: Form
    x: Array
    """Shape (axes, n)."""
    y: Array
    """Shape (B, n)."""
    objective: Objective
    weights: Array
    """Shape (B, n)."""

    def take(self, indices: NDArray[np.int64]) -> "_Batch":
        """Some of the problems."""
        return self._replace(y=self.y[indices], weights=self.weights[indices])


class _Linearised(NamedTuple):
    """Residuals near a setting of the working parameters: r + J step."""

    residuals: Array
    """Shape (B, n)."""
    slopes: Array
    """Their derivatives, shape (B, n, P)."""


def fit(form: Form, x: Array, y: Array, objective: Objective, weights: Array | None = None) -> Fit:
    """The best of many searches; x has shape (axes, n), y and weights (n,).

    Raises:
        ValueError: If there are fewer points of different x than parameters, or a value that the
            objective cannot take.
    """
    point_weights = np.ones_like(y) if weights is None else weights
    check(form, x, y, objective, point_weights)

    ends = _search(form, x, y, objective, point_weights)
    order = np.argsort(ends.objective, kind="stable")
    best = order[0]
    theta, least = ends.theta[best], ends.objective[best]

    # A perfect fit has an objective of about 0, which would make a relative tolerance useless.
    tolerance = SAME_OPTIMUM * max(abs(float(least)), 1e-12)
    as_good = [index for index in order if ends.objective[index] <= least + tolerance]

    # A search that never moved found nothing better than its start. That does not show an optimum,
    # unless the form is linear: its start is exact.
    has_optimum = ends.converged[best] and (ends.moved[best] or not form.nonlinear)

    return Fit(
        form=form,
        theta=theta,
        objective=float(least),
        converged=bool(has_optimum),
        at_bound=_at_bound(form, theta, x, y),
        optima=_different(ends.theta[as_good]),
        condition=_condition(form, theta, x, y, objective),
    )


def check(form: Form, x: Array, y: Array, objective: Objective, weights: Array) -> None:
    """Reject points that no search could fit.

    Raises:
        ValueError: With the fault of the points.
    """
    weighted_points = x[:, weights > 0]
    different = len(np.unique(weighted_points, axis=1).T)
    if different < len(form.parameters):
        raise ValueError(
            f"{form.name} has {len(form.parameters)} parameters, but there are only {different}"
            " different points"
        )

    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("some values are not finite numbers")

    y_without_logarithm = objective.logarithmic and (y <= 0).any()
    x_without_logarithm = not form.takes_zero and (x <= 0).any()
    if y_without_logarithm or x_without_logarithm:
        raise ValueError("some values are 0 or below, and have no logarithm")


def _search(form: Form, x: Array, y: Array, objective: Objective, weights: Array) -> Solutions:
    """Follow many starts for a few steps, then the best of them to their end."""
    starts = _starts(form, x, y, objective, weights)
    all_weights = np.broadcast_to(weights, (len(starts), len(y)))
    few_steps = FULL._replace(steps=FIRST_STEPS)
    early = solve(form, x, y, objective, all_weights, starts, effort=few_steps)

    # Stable sorts everywhere, so that ties do not depend on the platform.
    ahead = np.argsort(early.objective, kind="stable")[:FINALISTS]
    ends = solve(form, x, y, objective, all_weights[ahead], early.theta[ahead])
    return ends._replace(moved=ends.moved | early.moved[ahead])


def solve(
    form: Form,
    x: Array,
    y: Array,
    objective: Objective,
    weights: Array,
    starts: Array,
    *,
    held: int | None = None,
    effort: Effort = FULL,
) -> Solutions:
    """Take Levenberg and Marquardt's steps on B problems at once: x (axes, n), y (n,) or (B, n),
    weights (B, n), starts (B, P).

    The parameter at `held` keeps its start value. A residual beyond the objective's delta gets the
    weight delta over its size, which never overshoots.

    Source: Marquardt 1963; Huber and Ronchetti 2009, section 7.8, for the weights.
    """
    targets = np.broadcast_to(np.asarray(y, dtype=np.float64), weights.shape)
    searches = _Searches(_Batch(form, x, targets, objective, weights), starts, held, effort)

    for _ in range(effort.steps):
        if len(searches.active) == 0:
            break
        searches.advance()

    return searches.ends()


class _Searches:
    """B searches of one form, which share each step's computation."""

    def __init__(self, problems: _Batch, starts: Array, held: int | None, effort: Effort) -> None:
        self.problems, self.held, self.effort = problems, held, effort
        self.lower, self.upper = _bounds(problems.form)

        working = _to_working(problems.form, starts.astype(np.float64))
        self.theta = np.clip(working, self.lower, self.upper)
        self.value = _objective(problems, self.theta)
        self.damping = np.full(len(starts), FIRST_DAMPING)
        self.idle_steps = np.zeros(len(starts), dtype=np.int64)
        self.moved = np.zeros(len(starts), dtype=np.bool_)

        # Indices of the searches that continue; a search without a finite objective never starts.
        self.active = np.flatnonzero(np.isfinite(self.value))

    def advance(self) -> None:
        """Try a step in every active search, and keep the steps that lower the objective."""
        active = self.active
        batch = self.problems.take(active)
        step = _step(batch, self.theta[active], self.damping[active], self.held)
        trial = np.clip(self.theta[active] + step, self.lower, self.upper)
        trial_value = _objective(batch, trial)
        better = trial_value < self.value[active]

        # A rejected step gains nothing.
        gain = np.where(better, self.value[active] - trial_value, 0.0)
        least_gain = self.effort.gain * np.abs(self.value[active]) + ROUNDING_GAIN
        self.idle_steps[active] = np.where(gain <= least_gain, self.idle_steps[active] + 1, 0)

        accepted = active[better]
        self.theta[accepted] = trial[better]
        self.value[accepted] = trial_value[better]
        self.moved[accepted] = True

        self.damping[active] = _next_damping(self.damping[active], better)
        self.active = active[self.idle_steps[active] < IDLE_STEPS]

    def ends(self) -> Solutions:
        """The state of every search."""
        return Solutions(
            theta=_to_natural(self.problems.form, self.theta),
            objective=self.value,
            converged=self.idle_steps >= IDLE_STEPS,
            moved=self.moved,
        )


def _next_damping(damping: Array, better: NDArray[np.bool_]) -> Array:
    """Less damping after a successful step, so that the next is nearly a Newton step; more damping
    after a failed step, so that the next is short."""
    changed = np.where(better, damping / DAMPING_FALL, damping * DAMPING_RISE)
    return np.clip(changed, LEAST_DAMPING, MOST_DAMPING)


def _step(batch: _Batch, theta: Array, damping: Array, held: int | None) -> Array:
    """A damped Gauss-Newton step of the working parameters, shape (B, P)."""
    residuals, slopes = _linearise(batch, theta)
    if held is not None:
        # Without a slope the parameter has no gradient, so its step is 0.
        slopes[:, :, held] = 0.0

    # Huber's loss as least squares: a residual beyond delta has the weight delta over its size.
    sizes = np.maximum(np.abs(residuals), NONZERO)
    pull = batch.weights * np.minimum(1.0, batch.objective.delta / sizes)

    # Normal equations: (J^T W J) step = -J^T W r.
    weighted = slopes * pull[..., None]
    hessian = np.swapaxes(slopes, 1, 2) @ weighted
    gradient = (weighted * residuals[..., None]).sum(axis=1)
    damped = _damped(hessian, damping)

    # Slopes may leave the range of floats. The identity and a gradient of 0 then give a step of 0,
    # which gains nothing, so the problem is damped further.
    finite = np.isfinite(damped).all(axis=(1, 2)) & np.isfinite(gradient).all(axis=1)
    damped[~finite], gradient[~finite] = np.eye(theta.shape[1]), 0.0

    step = -_solve_scaled(damped, gradient)
    return np.asarray(np.clip(step, -LONGEST_STEP, LONGEST_STEP))


def _linearise(batch: _Batch, theta: Array) -> _Linearised:
    """Residuals and their slopes at a setting of the working parameters."""
    natural = _to_natural(batch.form, theta)
    values, natural_slopes = curve(batch.form, natural, batch.x)
    slopes = _working_slopes(batch.form, natural, natural_slopes)

    # d ln y = dy / y.
    if batch.objective.logarithmic:
        slopes = slopes / values[..., None]

    return _Linearised(_residuals(values, batch.y, batch.objective), slopes)


def _damped(hessian: Array, damping: Array) -> Array:
    """Marquardt's damping: a share of the diagonal is added to it, so that it does not depend on
    the parameters' units."""
    diagonal = np.einsum("bpp->bp", hessian)

    # A parameter without effect has a diagonal of 0. A floor relative to the largest entry keeps
    # the matrix regular, and NONZERO does so where all entries are 0.
    floor = 1e-12 * diagonal.max(axis=1, initial=0.0)[:, None] + NONZERO
    added = damping[:, None] * np.maximum(diagonal, floor)
    return np.asarray(hessian + added[:, :, None] * np.eye(hessian.shape[1]))


def _solve_scaled(matrices: Array, vectors: Array) -> Array:
    """Solutions of B symmetric systems, shapes (B, P, P) and (B, P)."""
    # Entries differ by many decades. Rows and columns are divided by the roots of the diagonal,
    # which is then 1; 1e-15 more keeps a system regular that is singular up to rounding.
    scale = np.sqrt(np.einsum("bpp->bp", matrices))
    scaled = matrices / scale[:, :, None] / scale[:, None, :] + 1e-15 * np.eye(matrices.shape[1])

    # NumPy 2 reads a right side of two axes as a matrix, not as B vectors, so add a third axis.
    solved = np.linalg.solve(scaled, (vectors / scale)[..., None])[..., 0]
    return np.asarray(solved / scale)


def _objective(batch: _Batch, theta: Array) -> Array:
    """The objective of each problem, shape (B,); infinite where the curve is not finite."""
    # Trial steps may leave the range of floats; the result is then infinite, and rejected.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values, _ = curve(batch.form, _to_natural(batch.form, theta), batch.x)
        losses = _losses(np.abs(_residuals(values, batch.y, batch.objective)), batch.objective)

        # A point of weight 0 must not count even if its loss is NaN, and 0 times NaN is NaN.
        counted = np.where(batch.weights > 0, losses, 0.0)
        total = (batch.weights * counted).sum(axis=1)

    return np.where(np.isfinite(total), total, np.inf)


def _losses(sizes: Array, objective: Objective) -> Array:
    """Huber's loss of residuals of these sizes: half the square up to delta, then a straight
    line."""
    squares = 0.5 * sizes**2
    if np.isinf(objective.delta):
        return squares

    lines = objective.delta * (sizes - 0.5 * objective.delta)
    return np.where(sizes <= objective.delta, squares, lines)


def _residuals(values: Array, y: Array, objective: Objective) -> Array:
    """Curve minus points; NaN where the curve has no logarithm."""
    if not objective.logarithmic:
        return values - y
    positive = np.where(values > 0, values, np.nan)
    return np.asarray(np.log(positive) - np.log(y))


def _starts(form: Form, x: Array, y: Array, objective: Objective, weights: Array) -> Array:
    """The best settings of the grid, each with its best coefficients, shape (at most STARTS, P)."""
    eta = form.starts(x)
    coefficients = _coefficients(form, eta, x, y, objective, weights)
    theta = np.concatenate([coefficients, eta], axis=1)

    targets = np.broadcast_to(y, (len(theta), len(y)))
    batch = _Batch(form, x, targets, objective, weights)
    values = _objective(batch, _to_working(form, theta))
    return theta[np.argsort(values, kind="stable")[:STARTS]]


def _coefficients(
    form: Form, eta: Array, x: Array, y: Array, objective: Objective, weights: Array
) -> Array:
    """Linear coefficients of least squares at each `eta`, shape (S, J).

    Squares are relative for a logarithmic objective: to first order they are squares of ln y.
    """
    terms = form.terms(eta, x).values
    count = len(form.linear)
    fitted_terms, fixed_terms = terms[:, :, :count], terms[:, :, count:]

    # Fixed terms need no fit, so only the rest of y is fitted.
    rest = y - (fixed_terms @ np.array(form.fixed, dtype=np.float64) if form.fixed else 0.0)
    root_weights = np.sqrt(weights) / (np.abs(y) if objective.logarithmic else 1.0)

    # Columns are scaled to a largest value of 1: a term like x^-2 would vanish beside a constant.
    scales = np.maximum(np.abs(fitted_terms).max(axis=1), NONZERO)
    design = fitted_terms / scales[:, None, :] * root_weights[:, None]
    transposed = np.swapaxes(design, 1, 2)

    # Terms may coincide at some eta; a ridge of 1e-12 keeps these systems regular.
    normal = transposed @ design + 1e-12 * np.eye(count)
    solved = np.linalg.solve(normal, transposed @ (rest * root_weights)[..., None])[..., 0]

    # The search uses logarithms, so a positive coefficient cannot start at 0 or below. A small
    # share of the mean y takes its place.
    may_be_negative = np.array([name in form.signed for name in form.linear])
    least = 1e-3 * np.abs(y).mean()
    return np.asarray(np.where(may_be_negative | (solved > least), solved, least) / scales)


def _positive(form: Form) -> NDArray[np.bool_]:
    """Which parameters must be above 0, shape (P,)."""
    return np.array([name not in form.signed for name in form.parameters], dtype=np.bool_)


def _to_working(form: Form, theta: Array) -> Array:
    # `where` computes both branches, so the logarithm needs a floor for signed parameters too.
    return np.where(_positive(form), np.log(np.maximum(theta, NONZERO)), theta)


def _to_natural(form: Form, working: Array) -> Array:
    # Signed parameters go into exp as 0: their own values could overflow.
    return np.where(_positive(form), np.exp(np.where(_positive(form), working, 0.0)), working)


def _working_slopes(form: Form, theta: Array, slopes: Array) -> Array:
    """Derivatives by the working parameters: dy / d ln p = p dy / dp."""
    return slopes * np.where(_positive(form), theta, 1.0)[:, None, :]


def _bounds(form: Form) -> tuple[Array, Array]:
    """The range of the working parameters: lower and upper ends, each of shape (P,)."""
    positive = _positive(form)
    return np.where(positive, LOG_LEAST, -SIGNED_MOST), np.where(positive, LOG_MOST, SIGNED_MOST)


def _condition(form: Form, theta: Array, x: Array, y: Array, objective: Objective) -> float:
    """Condition number of the Hessian by the working parameters."""
    _, natural_slopes = curve(form, theta[None], x)
    slopes = _working_slopes(form, theta[None], natural_slopes)[0]
    if objective.logarithmic:
        slopes = slopes / y[:, None]

    # The Hessian is J^T J, and its condition is that of J squared. Squaring at the end loses fewer
    # digits than a product of matrices; the cap keeps the square finite.
    return min(float(np.linalg.cond(slopes)), 1e150) ** 2


def _at_bound(form: Form, theta: Array, x: Array, y: Array) -> tuple[str, ...]:
    """Parameters that have no effect, are at the end of their range, or are far outside the data,
    in this order."""
    _, slopes = curve(form, theta[None], x)
    effects = np.abs(slopes[0] * theta).max(axis=0) / np.abs(y).max()
    # A signed parameter has little effect also where it is close to 0, which is an ordinary value.
    without_effect = _positive(form) & (effects < NEGLIGIBLE_EFFECT)

    # A signed parameter counts as 1 here, so it is never at an end.
    log_sizes = np.abs(np.log(np.where(_positive(form), theta, 1.0)))
    at_end = log_sizes > 0.99 * LOG_MOST

    names = np.array(form.parameters)
    values = dict(zip(form.parameters, theta, strict=True))
    outside = [
        location.parameter
        for location in form.locations
        if _is_outside(values[location.parameter], x[location.axis])
    ]

    # A parameter may be at a bound for several reasons; each is named once.
    return tuple(
        dict.fromkeys([*names[without_effect].tolist(), *names[at_end].tolist(), *outside])
    )


def _is_outside(value: float, axis: Array) -> bool:
    """Whether a location is far beyond either end of the data."""
    return not axis.min() / OUTSIDE_FACTOR <= value <= axis.max() * OUTSIDE_FACTOR


def _different(optima: Array) -> tuple[tuple[float, ...], ...]:
    """The optima without repetitions; the first of each is kept."""
    distinct: list[Array] = []
    for theta in optima:
        if not any(np.allclose(theta, earlier, rtol=1e-3, atol=1e-12) for earlier in distinct):
            distinct.append(theta)
    return tuple(tuple(map(float, theta)) for theta in distinct)
