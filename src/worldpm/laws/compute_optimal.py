"""How to spend compute: the three approaches of Chinchilla side by side, and the frontier of sizes
with its interval."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldpm.curves.forms import FORMS, Array
from worldpm.curves.solver import HUBER, ROUGH, fit, solve
from worldpm.stats.uncertainty import Interval

Json = dict[str, Any]

LEVELS = 9
"""Compute budgets at which sizes are compared."""
BIASED = (
    "biased where the grid of sizes is narrow or off centre, and where alpha differs from beta,"
    " even without noise"
)


@dataclass(frozen=True)
class Runs:
    """Points of many training runs, n in all."""

    n: Array
    d: Array
    c: Array
    """Operations spent, as counted in the run."""
    loss: Array
    runs: NDArray[np.int64]

    def take(self, drawn: NDArray[np.int64]) -> "Runs":
        """Those runs, as often as they are named, each a run of its own."""
        rows = [np.flatnonzero(self.runs == name) for name in drawn]
        order = np.concatenate(rows)
        again = np.repeat(np.arange(len(drawn)), [len(row) for row in rows])
        return Runs(self.n[order], self.d[order], self.c[order], self.loss[order], again)


def compare(runs: Runs, *, seed: int, resamples: int) -> Json:
    """The exponent a of N*(C) = G C^a by each approach, with 95 % intervals over runs, and the
    frontier of the third.

    Approach 1: the envelope of all training curves. 2: a parabola through the losses over ln N at
    one budget. 3: the joint law in closed form. An approach that the runs do not suffice for is
    null.

    Source: Hoffmann et al. 2022, arXiv 2203.15556, section 3; their a is 0.50, 0.49 and 0.46.
    """
    levels = _levels(runs)
    generator = np.random.default_rng(seed)
    names = np.unique(runs.runs)
    drawn = names[generator.integers(0, len(names), size=(resamples, len(names)))]
    draws = [runs.take(one) for one in drawn]
    told: Json = {"budgets_flops": levels.tolist(), "flops_per_parameter_and_pair": _price(runs)}
    for name, approach in (("envelope", envelope), ("isoflop", isoflop)):
        exponent = _exponent(levels, approach(runs, levels))
        spread = [
            value
            for one in draws
            if (value := _exponent(levels, approach(one, levels))) is not None
        ]
        told[name] = {
            "exponent": exponent,
            "interval": _interval(spread, resamples),
            "optimal_n": _listed(approach(runs, levels)),
        }
    told["isoflop"]["warning"] = BIASED
    told["curves"] = _curves(runs, levels)
    return told | {"joint": _joint(runs, drawn, levels)}


def envelope(runs: Runs, levels: Array) -> Array:
    """Approach 1: the size of least loss at each budget, among all curves interpolated there; NaN
    where none reaches it."""
    losses, sizes = _at(runs, levels)
    best = np.full(len(levels), np.nan)
    for place in range(len(levels)):
        if np.isfinite(losses[:, place]).any():
            best[place] = sizes[np.nanargmin(losses[:, place])]
    return best


def isoflop(runs: Runs, levels: Array) -> Array:
    """Approach 2: the lowest point of a parabola over ln N at each budget; NaN with fewer than four
    sizes or no lowest point."""
    losses, sizes = _at(runs, levels)
    best = np.full(len(levels), np.nan)
    for place in range(len(levels)):
        there = np.isfinite(losses[:, place])
        if len(np.unique(sizes[there])) < 4:
            continue
        log_n = np.log(sizes[there])
        bend, tilt, _ = np.polyfit(log_n, losses[there, place], 2)
        lowest = -tilt / (2 * bend) if bend > 0 else np.nan
        if log_n.min() <= lowest <= log_n.max():
            best[place] = np.exp(lowest)
    return best


def _curves(runs: Runs, levels: Array) -> list[Json]:
    """The mean loss of each size at each budget."""
    losses, sizes = _at(runs, levels)
    curves = []
    for place in range(len(levels)):
        there = np.isfinite(losses[:, place])
        names = np.unique(sizes[there])
        curves.append(
            {
                "n": names.tolist(),
                "loss": [float(losses[there & (sizes == n), place].mean()) for n in names],
            }
        )
    return curves


def _at(runs: Runs, levels: Array) -> tuple[Array, Array]:
    names = np.unique(runs.runs)
    losses, sizes = np.full((len(names), len(levels)), np.nan), np.zeros(len(names))
    for row, name in enumerate(names):
        own = np.flatnonzero(runs.runs == name)
        own = own[np.argsort(runs.c[own])]
        sizes[row] = runs.n[own[0]]
        reached = (levels >= runs.c[own[0]] * (1 - 1e-9)) & (levels <= runs.c[own[-1]] * (1 + 1e-9))
        losses[row, reached] = np.interp(
            np.log(levels[reached]), np.log(runs.c[own]), runs.loss[own]
        )
    return losses, sizes


def _levels(runs: Runs) -> Array:
    """Budgets that at least four sizes reach, spread evenly over the logarithm; empty where there
    are none."""
    reach = {
        float(n): (runs.c[runs.n == n].min(), runs.c[runs.n == n].max()) for n in np.unique(runs.n)
    }
    tries = np.geomspace(runs.c.min(), runs.c.max(), 200)
    enough = [c for c in tries if sum(low <= c <= high for low, high in reach.values()) >= 4]
    return np.geomspace(enough[0], enough[-1], LEVELS) if len(enough) > 1 else np.empty(0)


def _price(runs: Runs) -> float:
    """Operations for each parameter and pair: C = price N D; 6 times the tokens of a pair, and
    attention."""
    return float(np.exp(np.mean(np.log(runs.c / (runs.n * runs.d)))))


def _exponent(levels: Array, best: Array) -> float | None:
    there = np.isfinite(best)
    if len(np.unique(levels[there])) < 3 or len(np.unique(best[there])) < 2:
        return None
    return float(np.polyfit(np.log(levels[there]), np.log(best[there]), 1)[0])


def _joint(runs: Runs, drawn: NDArray[np.int64], levels: Array) -> Json | None:
    """Approach 3: N*(C) = G (C / price)^a, G = (alpha A / beta B)^(1 / (alpha + beta)), a = beta /
    (alpha + beta)."""
    form, x = FORMS["joint"], np.stack([runs.n, runs.d])
    try:
        found = fit(form, x, runs.loss, HUBER)
    except ValueError:
        return None
    weights = (drawn[:, :, None] == runs.runs).sum(axis=1).astype(np.float64)
    theta = solve(
        form,
        x,
        runs.loss,
        HUBER,
        weights,
        np.broadcast_to(found.theta, (len(drawn), 5)),
        effort=ROUGH,
    ).theta
    price = _price(runs)
    best = _frontier(found.theta, price, levels)
    spread = np.array([_frontier(one, price, levels) for one in theta])
    return {
        "exponent": float(found.theta[4] / (found.theta[3] + found.theta[4])),
        "interval": _interval((theta[:, 4] / (theta[:, 3] + theta[:, 4])).tolist(), len(drawn)),
        "optimal_n": _listed(best),
        "optimal_n_intervals": np.quantile(spread, [0.025, 0.975], axis=0).T.tolist(),
        "optimal_d": _listed(levels / price / best) if len(levels) else [],
        "at_bound": list(found.at_bound),
    }


def _frontier(theta: Array, price: float, levels: Array) -> Array:
    _, a, b, alpha, beta = theta
    # in logarithms: where the exponents are near 0 the best size is beyond all numbers
    log_scale = (np.log(alpha) + np.log(a) - np.log(beta) - np.log(b)) / (alpha + beta)
    return np.asarray(
        np.exp(np.clip(log_scale + np.log(levels / price) * beta / (alpha + beta), -700, 700))
    )


def _interval(values: list[float], resamples: int) -> list[float] | None:
    """Percentiles, where at least nine of ten resamples gave a value."""
    if len(values) < max(2, 0.9 * resamples):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return list(Interval(float(low), float(high)))


def _listed(values: Array) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
