"""Compute-optimal sizes: the three approaches of Chinchilla, and the frontier of sizes with its
interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldpm.curves.forms import FORMS, Array
from worldpm.curves.solver import HUBER, ROUGH, Fit, Objective, fit, solve
from worldpm.laws.law import Approach, Ends, IsoflopCurve, Optimum, all_finite

BUDGETS = 9
"""Number of compute budgets at which sizes are compared."""
BUDGETS_TRIED = 200
LEAST_SIZES = 4
"""Least number of sizes that must reach a budget. A parabola needs three; the fourth is a
reserve."""
LEAST_BUDGETS = 3
"""Least number of budgets with a best size for an exponent."""
LEAST_SHARE_OF_RESAMPLES = 0.9
"""Least share of resamples with an exponent for an interval."""
LARGEST_LOGARITHM = 700.0
"""Largest absolute value whose exponential is finite and above 0."""
VALUES_A_DECADE = 100
"""Given budgets that round to the same hundredth of a decade are equal."""
BIASED = (
    "biased if the grid of sizes is narrow or off centre, or if alpha differs from beta, even"
    " without noise"
)


@dataclass(frozen=True)
class Runs:
    """Points of many training runs. Every array has shape (n,), where n is the number of points."""

    n: Array
    """Parameters without embeddings."""
    d: Array
    """Effective pairs."""
    c: Array
    """Operations used (FLOPs)."""
    loss: Array
    """Nats per pair."""
    runs: NDArray[np.int64]
    """The run of each point."""
    operations: Literal["counted", "6 N D"] = "counted"
    """Source of the number of operations."""

    def take(self, names: NDArray[np.int64]) -> "Runs":
        """The named runs. If a name occurs several times, each occurrence is a separate run."""
        rows = [np.flatnonzero(self.runs == name) for name in names]
        order = np.concatenate(rows)
        runs = np.repeat(np.arange(len(names)), [len(row) for row in rows])
        return Runs(
            self.n[order], self.d[order], self.c[order], self.loss[order], runs, self.operations
        )


class LossesAtBudgets(NamedTuple):
    """The training curves of all runs, interpolated at the budgets."""

    losses: Array
    """Shape (runs, budgets); NaN if the run does not reach the budget."""
    sizes: Array
    """Shape (runs,)."""

    def at(self, index: int) -> tuple[Array, Array]:
        """Losses and sizes of the runs that reach a budget, given by its index."""
        reached = np.isfinite(self.losses[:, index])
        return self.losses[reached, index], self.sizes[reached]


def compare(runs: Runs, *, seed: int, resamples: int, objective: Objective = HUBER) -> Optimum:
    """The exponent a of N*(C) = G C^a by each approach, with 95 % intervals over runs, and the
    frontier of the third approach.

    Approach 1: the envelope of all training curves. Approach 2: for each budget, a parabola through
    the losses over ln N. Approach 3: the joint law in closed form, fitted by the objective. Results
    are None for an approach that needs more runs.

    In a table without training curves, in which several sizes were trained for each of some given
    budgets (IsoFLOP), these budgets are compared.

    Source: Hoffmann et al. 2022, arXiv 2203.15556, section 3; their a is 0.50, 0.49 and 0.46.
    """
    # Without training curves nothing can be interpolated, so only given budgets are compared.
    has_curves = 2 * len(np.unique(runs.n)) <= len(runs.n)
    budgets, runs = (_budgets(runs), runs) if has_curves else _given_budgets(runs)
    generator = np.random.default_rng(seed)
    names = np.unique(runs.runs)
    # Draw whole runs, because the points of a training curve are not independent.
    drawn = names[generator.integers(0, len(names), size=(resamples, len(names)))]
    draws = [runs.take(draw) for draw in drawn]

    return Optimum(
        operations=runs.operations,
        budgets_flops=budgets.tolist(),
        flops_per_parameter_and_pair=_price(runs),
        envelope=_approach(envelope, runs, draws, budgets),
        isoflop=replace(_approach(isoflop, runs, draws, budgets), warning=BIASED),
        curves=_curves(runs, budgets),
        joint=_joint(runs, drawn, budgets, objective),
    )


def _approach(
    best_sizes: Callable[[Runs, Array], Array], runs: Runs, draws: Sequence[Runs], budgets: Array
) -> Approach:
    """The result of an approach that gives a best size for each budget, with its interval over the
    draws."""
    sizes = best_sizes(runs, budgets)
    exponents = [_exponent(budgets, best_sizes(draw, budgets)) for draw in draws]
    return Approach(
        exponent=_exponent(budgets, sizes),
        interval=_interval([value for value in exponents if value is not None], len(draws)),
        optimal_n=all_finite(sizes),
    )


def envelope(runs: Runs, budgets: Array) -> Array:
    """Approach 1: the size of least loss at each budget, among all interpolated curves; NaN if no
    curve reaches the budget."""
    curves = _at_budgets(runs, budgets)
    best = np.full(len(budgets), np.nan)
    for index in range(len(budgets)):
        losses, sizes = curves.at(index)
        # The envelope consists of trained sizes, so it moves in steps.
        if len(losses):
            best[index] = sizes[np.argmin(losses)]
    return best


def isoflop(runs: Runs, budgets: Array) -> Array:
    """Approach 2: the lowest point of a parabola over ln N at each budget; NaN if there are fewer
    than four sizes, or no lowest point."""
    curves = _at_budgets(runs, budgets)
    best = np.full(len(budgets), np.nan)

    for index in range(len(budgets)):
        losses, sizes = curves.at(index)
        if len(np.unique(sizes)) < LEAST_SIZES:
            continue

        log_n = np.log(sizes)
        bend, tilt, _ = np.polyfit(log_n, losses, 2)
        lowest = -tilt / (2 * bend) if bend > 0 else np.nan
        # Outside the trained sizes, the parabola is an extrapolation.
        if log_n.min() <= lowest <= log_n.max():
            best[index] = np.exp(lowest)
    return best


def _curves(runs: Runs, budgets: Array) -> list[IsoflopCurve]:
    """The mean loss of each size at each budget."""
    at_budgets = _at_budgets(runs, budgets)
    curves = []
    for index in range(len(budgets)):
        losses, sizes = at_budgets.at(index)
        names = np.unique(sizes)
        means = [float(losses[sizes == n].mean()) for n in names]
        curves.append(IsoflopCurve(n=names.tolist(), loss=means))
    return curves


def _at_budgets(runs: Runs, budgets: Array) -> LossesAtBudgets:
    names = np.unique(runs.runs)
    losses, sizes = np.full((len(names), len(budgets)), np.nan), np.zeros(len(names))

    for index, name in enumerate(names):
        rows = np.flatnonzero(runs.runs == name)
        # np.interp needs ascending operations.
        rows = rows[np.argsort(runs.c[rows])]
        sizes[index] = runs.n[rows[0]]

        # A tolerance of 1e-9, because logarithms rounded the budgets.
        first, last = runs.c[rows[0]] * (1 - 1e-9), runs.c[rows[-1]] * (1 + 1e-9)
        reached = (budgets >= first) & (budgets <= last)
        losses[index, reached] = np.interp(
            np.log(budgets[reached]), np.log(runs.c[rows]), runs.loss[rows]
        )
    return LossesAtBudgets(losses, sizes)


def _budgets(runs: Runs) -> Array:
    """Budgets that at least four sizes reach, evenly spread over their logarithm; empty if there
    are none."""
    of_size = [runs.c[runs.n == n] for n in np.unique(runs.n)]
    least = np.array([c.min() for c in of_size])
    most = np.array([c.max() for c in of_size])

    tries = np.geomspace(runs.c.min(), runs.c.max(), BUDGETS_TRIED)[:, None]
    reached_by = ((least <= tries) & (tries <= most)).sum(axis=1)
    enough = tries[reached_by >= LEAST_SIZES, 0]
    return np.geomspace(enough[0], enough[-1], BUDGETS) if len(enough) > 1 else np.empty(0)


def _given_budgets(runs: Runs) -> tuple[Array, Runs]:
    """The budgets that at least four sizes were trained for, and the runs with these budgets as
    their operations; each point is a run, because no run has points at two budgets. Without such
    budgets the runs are unchanged."""
    rounded = np.round(np.log10(runs.c) * VALUES_A_DECADE)
    values, of_point = np.unique(rounded, return_inverse=True)
    sizes = np.array([len(np.unique(runs.n[of_point == index])) for index in range(len(values))])
    budgets = np.array(
        [np.exp(np.log(runs.c[of_point == index]).mean()) for index in range(len(values))]
    )
    enough = sizes >= LEAST_SIZES
    if not enough.any():
        return np.empty(0), runs
    points = np.arange(len(runs.n))
    return budgets[enough], replace(runs, c=budgets[of_point], runs=points)


def _price(runs: Runs) -> float:
    """Operations per parameter and pair, such that C = price N D: 6 times the tokens of a pair,
    plus attention."""
    # The geometric mean, because the variation is multiplicative.
    return float(np.exp(np.mean(np.log(runs.c / (runs.n * runs.d)))))


def _exponent(budgets: Array, best: Array) -> float | None:
    """The slope of ln best size over ln budget; None if there are too few distinct values."""
    usable = np.isfinite(best)
    if len(np.unique(budgets[usable])) < LEAST_BUDGETS or len(np.unique(best[usable])) < 2:
        return None
    return float(np.polyfit(np.log(budgets[usable]), np.log(best[usable]), 1)[0])


def _joint(
    runs: Runs, drawn: NDArray[np.int64], budgets: Array, objective: Objective
) -> Approach | None:
    """Approach 3: N*(C) = G (C / price)^a, G = (alpha A / beta B)^(1 / (alpha + beta)), a = beta /
    (alpha + beta). `drawn` has the names of each resample's runs, shape (resamples, runs)."""
    try:
        fitted = fit(FORMS["joint"], np.stack([runs.n, runs.d]), runs.loss, objective)
    except ValueError:
        return None

    # The exponent depends on two parameters, so its interval uses their joint draws.
    theta = _joint_resamples(runs, drawn, fitted, objective)
    price = _price(runs)
    best = _frontier(fitted.theta, price, budgets)
    spread = np.array([_frontier(resample, price, budgets) for resample in theta])
    low, high = np.quantile(spread, [0.025, 0.975], axis=0).tolist()

    alpha, beta = fitted.theta[3:]
    exponents = theta[:, 4] / (theta[:, 3] + theta[:, 4])
    return Approach(
        exponent=float(beta / (alpha + beta)),
        interval=_interval(exponents.tolist(), len(drawn)),
        optimal_n=all_finite(best),
        optimal_n_intervals=[Ends(*ends) for ends in zip(low, high, strict=True)],
        optimal_d=all_finite(budgets / price / best) if len(budgets) else [],
        at_bound=list(fitted.at_bound),
    )


def _joint_resamples(
    runs: Runs, drawn: NDArray[np.int64], fitted: Fit, objective: Objective
) -> Array:
    """The parameters of the joint law in every resample, shape (resamples, 5)."""
    # Weights count how often each point's run was drawn, instead of repeated points.
    weights = (drawn[:, :, None] == runs.runs).sum(axis=1).astype(np.float64)
    starts = np.broadcast_to(fitted.theta, (len(drawn), len(fitted.theta)))
    x = np.stack([runs.n, runs.d])
    return solve(fitted.form, x, runs.loss, objective, weights, starts, effort=ROUGH).theta


def _frontier(theta: Array, price: float, budgets: Array) -> Array:
    """The best size for each budget by a joint law."""
    _, a, b, alpha, beta = theta
    # In logarithms, because the best size overflows if the exponents are near 0.
    log_scale = (np.log(alpha) + np.log(a) - np.log(beta) - np.log(b)) / (alpha + beta)
    log_n = log_scale + np.log(budgets / price) * beta / (alpha + beta)
    return np.asarray(np.exp(np.clip(log_n, -LARGEST_LOGARITHM, LARGEST_LOGARITHM)))


def _interval(values: list[float], resamples: int) -> Ends | None:
    """The percentile interval; None if fewer than nine in ten resamples gave a value."""
    if len(values) < max(2, LEAST_SHARE_OF_RESAMPLES * resamples):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return Ends(float(low), float(high))
