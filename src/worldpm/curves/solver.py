"""Least squares, plain or robust, for any form: exact coefficients on a grid of starts, then damped
Gauss-Newton steps, in batches."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldpm.curves.forms import Array, Form, curve

HUBER_DELTA = 1e-3
"""Source: Hoffmann et al. 2022, arXiv 2203.15556, section 3.3."""
STARTS, FIRST_STEPS, FINALISTS = 48, 30, 8
"""So many of the grid's best starts are followed for so many steps, and the best of those to their
end."""
QUIET = 8
"""A search has converged when so many steps in a row gained nothing."""
SAME_OPTIMUM = 1e-6
"""Objectives this close, relative to the best, are optima of one height, and all are listed."""
FAR = 1e3
"""A place so many times beyond the data is at its bound."""
LEAST, MOST = np.log(1e-60), np.log(1e60)
"""Natural logarithms of what a positive parameter may be."""


class Objective(NamedTuple):
    """What is made small: the weighted sum of a function of residuals."""

    name: str
    logarithmic: bool
    """Residuals of ln y, else of y."""
    delta: float
    """Beyond it a residual counts linearly; infinite for plain squares."""


HUBER = Objective("Huber(1e-3) of ln y", True, HUBER_DELTA)
SQUARES = Objective("squares of y", False, np.inf)
LOG_SQUARES = Objective("squares of ln y", True, np.inf)


class Effort(NamedTuple):
    """How far a search is followed."""

    steps: int
    gain: float
    """A step that lowers the objective by less than this share of it gains nothing."""


FULL, ROUGH = Effort(500, 1e-10), Effort(120, 1e-7)
"""For a fit, and for its many repetitions, which start from it."""


class Solutions(NamedTuple):
    """Where B searches ended, in no order."""

    theta: Array
    """Shape (B, P)."""
    objective: Array
    """Shape (B,); infinite where the curve is not finite."""
    converged: NDArray[np.bool_]
    """Whether the last steps gained nothing more."""
    moved: NDArray[np.bool_]
    """Whether any step was accepted."""


class Fit(NamedTuple):
    """A form fitted to points."""

    form: Form
    theta: Array
    """Shape (P,), in the order of `form.parameters`."""
    objective: float
    converged: bool
    at_bound: tuple[str, ...]
    """Parameters that ended where they have no effect, or at the end of what is allowed."""
    optima: tuple[tuple[float, ...], ...]
    """The different parameters that reach the least objective, within SAME_OPTIMUM of it; the first
    is `theta`."""
    condition: float
    """Condition number of the Hessian at the optimum: beyond 1e12 some parameters can be traded for
    others."""

    def predict(self, x: Array) -> Array:
        """The curve at x, shape (axes, n)."""
        return np.asarray(curve(self.form, self.theta[None], x)[0][0])


def fit(form: Form, x: Array, y: Array, objective: Objective, weights: Array | None = None) -> Fit:
    """The best of many searches; x has shape (axes, n), y and weights (n,).

    Raises:
        ValueError: If there are fewer points of different x than parameters, or a value that the
            objective cannot take.
    """
    weighed = np.ones_like(y) if weights is None else weights
    check(form, x, y, objective, weighed)
    starts = _starts(form, x, y, objective, weighed)
    every = np.broadcast_to(weighed, (len(starts), len(y)))
    early = solve(form, x, y, objective, every, starts, effort=FULL._replace(steps=FIRST_STEPS))
    ahead = np.argsort(early.objective, kind="stable")[:FINALISTS]
    found = solve(form, x, y, objective, every[ahead], early.theta[ahead])
    found = found._replace(moved=found.moved | early.moved[ahead])
    order = np.argsort(found.objective, kind="stable")
    best = order[0]
    least, scale = found.objective[best], max(abs(float(found.objective[best])), 1e-12)
    near = [place for place in order if found.objective[place] <= least + SAME_OPTIMUM * scale]
    _, slopes = curve(form, found.theta[best : best + 1], x)
    scaled = _working_slopes(form, found.theta[best : best + 1], slopes)[0] / (
        y[:, None] if objective.logarithmic else 1
    )
    return Fit(
        form=form,
        theta=found.theta[best],
        objective=float(least),
        converged=bool(found.converged[best] and (found.moved[best] or not form.nonlinear)),
        at_bound=_at_bound(form, found.theta[best], x, y),
        optima=_different(found.theta[near]),
        condition=min(float(np.linalg.cond(scaled)), 1e150) ** 2,
    )


def check(form: Form, x: Array, y: Array, objective: Objective, weights: Array) -> None:
    """Refuse what no search could end with.

    Raises:
        ValueError: With what was found and what is needed.
    """
    counted = x[:, weights > 0]
    different = len(np.unique(counted, axis=1).T)
    if different < len(form.parameters):
        raise ValueError(
            f"{form.name} has {len(form.parameters)} parameters, and there are {different}"
            " different points"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("there are values that are not numbers")
    if (objective.logarithmic and (y <= 0).any()) or (
        form.axes and (x <= 0).any() and not form.name.startswith("gao")
    ):
        raise ValueError("there are values of 0 or below, which have no logarithm")


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
    """Levenberg and Marquardt's steps on B problems at once: x (axes, n), y (n,) or (B, n), weights
    (B, n), starts (B, P).

    The parameter at `held` stays where it starts. A residual beyond the objective's delta is
    weighed down by delta over its size, which never overshoots.

    Source: Marquardt 1963; Huber and Ronchetti 2009, section 7.8, for the weights.
    """
    theta = np.clip(_to_working(form, starts.astype(np.float64)), *_bounds(form))
    targets = np.broadcast_to(np.asarray(y, dtype=np.float64), weights.shape)
    value = _objective(form, theta, x, targets, objective, weights)
    damping, quiet = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=np.int64)
    moved = np.zeros(len(theta), dtype=np.bool_)
    active = np.flatnonzero(np.isfinite(value))
    for _ in range(effort.steps):
        if len(active) == 0:
            break
        step = _step(
            form,
            theta[active],
            x,
            targets[active],
            objective,
            weights[active],
            damping[active],
            held,
        )
        tried = np.clip(theta[active] + step, *_bounds(form))
        reached = _objective(form, tried, x, targets[active], objective, weights[active])
        better = reached < value[active]
        gain = np.where(better, value[active] - reached, 0.0)
        small = gain <= effort.gain * np.abs(value[active]) + 1e-28
        quiet[active] = np.where(small, quiet[active] + 1, 0)
        rows = active[better]
        theta[rows], value[rows], moved[rows] = tried[better], reached[better], True
        damping[active] = np.clip(
            np.where(better, damping[active] / 5, damping[active] * 4), 1e-14, 1e14
        )
        active = active[quiet[active] < QUIET]
    return Solutions(_to_natural(form, theta), value, quiet >= QUIET, moved)


def _step(
    form: Form,
    theta: Array,
    x: Array,
    y: Array,
    objective: Objective,
    weights: Array,
    damping: Array,
    held: int | None,
) -> Array:
    values, slopes = curve(form, _to_natural(form, theta), x)
    slopes = _working_slopes(form, _to_natural(form, theta), slopes)
    residuals = _residuals(values, y, objective)
    if objective.logarithmic:
        slopes = slopes / values[..., None]
    if held is not None:
        slopes[:, :, held] = 0.0
    pull = weights * np.minimum(1.0, objective.delta / np.maximum(np.abs(residuals), 1e-300))
    weighted = slopes * pull[..., None]
    hessian = np.swapaxes(slopes, 1, 2) @ weighted
    gradient = (weighted * residuals[..., None]).sum(axis=1)
    diagonal = np.einsum("bpp->bp", hessian)
    floor = 1e-12 * diagonal.max(axis=1, initial=0.0)[:, None] + 1e-300
    damped = hessian + (damping[:, None] * np.maximum(diagonal, floor))[:, :, None] * np.eye(
        theta.shape[1]
    )
    good = np.isfinite(damped).all(axis=(1, 2)) & np.isfinite(gradient).all(axis=1)
    damped[~good], gradient[~good] = np.eye(theta.shape[1]), 0.0
    scale = np.sqrt(np.einsum("bpp->bp", damped))
    scaled = damped / scale[:, :, None] / scale[:, None, :] + 1e-15 * np.eye(theta.shape[1])
    return np.asarray(
        np.clip(-np.linalg.solve(scaled, (gradient / scale)[..., None])[..., 0] / scale, -3, 3)
    )


def _objective(
    form: Form, theta: Array, x: Array, y: Array, objective: Objective, weights: Array
) -> Array:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values = _values(form, _to_natural(form, theta), x)
        size = np.abs(_residuals(values, y, objective))
        if np.isinf(objective.delta):
            losses = 0.5 * size**2
        else:
            losses = np.where(
                size <= objective.delta,
                0.5 * size**2,
                objective.delta * (size - 0.5 * objective.delta),
            )
        total = (weights * np.where(weights > 0, losses, 0.0)).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def _values(form: Form, theta: Array, x: Array) -> Array:
    return curve(form, theta, x)[0]


def _residuals(values: Array, y: Array, objective: Objective) -> Array:
    if not objective.logarithmic:
        return values - y
    return np.asarray(np.log(np.where(values > 0, values, np.nan)) - np.log(y))


def _starts(form: Form, x: Array, y: Array, objective: Objective, weights: Array) -> Array:
    """For each `eta` of the grid the coefficients of least (relative) squares, those below 0 put
    close to it; the best of all."""
    eta = form.starts(x)
    terms = form.terms(eta, x).values
    count = len(form.linear)
    rest = y - (terms[:, :, count:] @ np.array(form.fixed, dtype=np.float64) if form.fixed else 0.0)
    relative = np.sqrt(weights) / (np.abs(y) if objective.logarithmic else 1.0)
    scales = np.maximum(np.abs(terms[:, :, :count]).max(axis=1), 1e-300)
    design = terms[:, :, :count] / scales[:, None, :] * relative[:, None]
    normal = np.swapaxes(design, 1, 2) @ design + 1e-12 * np.eye(count)
    solved = np.linalg.solve(normal, (np.swapaxes(design, 1, 2) @ (rest * relative)[..., None]))[
        ..., 0
    ]
    free = np.array([name in form.signed for name in form.linear])
    least = 1e-3 * np.abs(y).mean()
    theta = np.concatenate([np.where(free | (solved > least), solved, least) / scales, eta], axis=1)
    found = _objective(
        form,
        _to_working(form, theta),
        x,
        np.broadcast_to(y, (len(theta), len(y))),
        objective,
        weights,
    )
    return theta[np.argsort(found, kind="stable")[:STARTS]]


def _positive(form: Form) -> NDArray[np.bool_]:
    return np.array([name not in form.signed for name in form.parameters], dtype=np.bool_)


def _to_working(form: Form, theta: Array) -> Array:
    return np.where(_positive(form), np.log(np.maximum(theta, 1e-300)), theta)


def _to_natural(form: Form, working: Array) -> Array:
    return np.where(_positive(form), np.exp(np.where(_positive(form), working, 0.0)), working)


def _working_slopes(form: Form, theta: Array, slopes: Array) -> Array:
    return slopes * np.where(_positive(form), theta, 1.0)[:, None, :]


def _bounds(form: Form) -> tuple[Array, Array]:
    return np.where(_positive(form), LEAST, -1e30), np.where(_positive(form), MOST, 1e30)


def _at_bound(form: Form, theta: Array, x: Array, y: Array) -> tuple[str, ...]:
    """Parameters that move the curve by less than a millionth, and places far outside the data."""
    _, slopes = curve(form, theta[None], x)
    shares = np.abs(slopes[0] * theta).max(axis=0) / np.abs(y).max()
    gone = [
        name
        for name, share in zip(form.parameters, shares, strict=True)
        if share < 1e-6 and name not in form.signed
    ]
    ends = np.abs(np.log(np.where(_positive(form), theta, 1.0))) > 0.99 * MOST
    gone += [
        name for name, end in zip(form.parameters, ends, strict=True) if end and name not in gone
    ]
    axes = {"x0": x[0], "N0": x[0], "D0": x[-1]}
    for name, value in zip(form.parameters, theta, strict=True):
        if (
            name in axes
            and name not in gone
            and not axes[name].min() / FAR <= value <= axes[name].max() * FAR
        ):
            gone.append(name)
    return tuple(gone)


def _different(optima: Array) -> tuple[tuple[float, ...], ...]:
    kept: list[Array] = []
    for one in optima:
        if not any(np.allclose(one, other, rtol=1e-3, atol=1e-12) for other in kept):
            kept.append(one)
    return tuple(tuple(map(float, one)) for one in kept)
