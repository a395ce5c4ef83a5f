"""The best size for a budget, from tables of given budgets."""

import numpy as np
import pytest

from worldpm.curves.forms import FORMS, Array
from worldpm.curves.solver import HUBER, LOG_SQUARES, Objective, fit
from worldpm.laws import compute_optimal, evidence
from worldpm.laws.compute_optimal import Runs
from worldpm.laws.evidence import Points

ALPHA, BETA = 0.34, 0.28
BUDGETS = np.geomspace(1e18, 1e21, 7)


def chinchilla(n: Array, d: Array) -> Array:
    """Source: Hoffmann et al. 2022, arXiv 2203.15556, section 3.3."""
    loss: Array = 1.69 + 406.4 * n**-ALPHA + 410.7 * d**-BETA
    return loss


def isoflop_table(noise: float, seed: int = 0) -> Runs:
    """Seven sizes around the best one for each of seven budgets; no size occurs twice."""
    generator = np.random.default_rng(seed)
    scale = (ALPHA * 406.4 / (BETA * 410.7)) ** (1 / (ALPHA + BETA))
    best = scale * (BUDGETS / 6) ** (BETA / (ALPHA + BETA))
    n = (best[:, None] * np.geomspace(0.25, 4, 7) * generator.uniform(0.97, 1.03, (7, 7))).ravel()
    c = np.repeat(BUDGETS, 7)
    loss = chinchilla(n, c / 6 / n) * np.exp(generator.normal(0, noise, len(n)))
    return Runs(n, c / 6 / n, c, loss, np.arange(len(n)))


def test_given_budgets_with_unique_sizes_give_the_parabola_its_exponent() -> None:
    optimum = compute_optimal.compare(isoflop_table(0.0005), seed=0, resamples=60)
    assert optimum.budgets_flops == pytest.approx(BUDGETS.tolist())
    expected = BETA / (ALPHA + BETA)
    assert optimum.isoflop.exponent == pytest.approx(expected, abs=0.03)
    assert optimum.joint is not None
    assert optimum.joint.exponent == pytest.approx(expected, abs=0.03)
    assert [len(curve.n) for curve in optimum.curves] == [7] * 7

    # the approaches agree within their intervals
    for approach, other in (
        (optimum.isoflop, optimum.joint),
        (optimum.joint, optimum.isoflop),
    ):
        assert approach.interval is not None
        assert approach.interval.low is not None
        assert approach.interval.high is not None
        assert other.exponent is not None
        assert approach.interval.low - 0.02 < other.exponent < approach.interval.high + 0.02


def test_budgets_with_too_few_sizes_are_not_compared() -> None:
    table = isoflop_table(0.0)
    few = Runs(table.n[::3], table.d[::3], table.c[::3], table.loss[::3], table.runs[::3])
    assert compute_optimal.compare(few, seed=0, resamples=8).budgets_flops == []


@pytest.mark.parametrize("objective", [HUBER, LOG_SQUARES])
def test_the_joint_approach_uses_the_objective_asked_for(objective: Objective) -> None:
    table = isoflop_table(0.01)
    optimum = compute_optimal.compare(table, seed=0, resamples=8, objective=objective)
    theta = fit(FORMS["joint"], np.stack([table.n, table.d]), table.loss, objective).theta
    assert optimum.joint is not None
    assert optimum.joint.exponent == pytest.approx(theta[4] / (theta[3] + theta[4]))


@pytest.mark.parametrize("objective", [HUBER, LOG_SQUARES])
@pytest.mark.parametrize("seed", range(4))
def test_an_estimate_is_inside_its_own_profile_interval(objective: Objective, seed: int) -> None:
    x = np.tile(np.geomspace(1e5, 1e8, 8), 3)
    generator = np.random.default_rng(seed)
    # heavy tails, for which the two objectives differ
    noise = 0.01 * generator.standard_t(2, len(x))
    y = (0.3 + 20 * x**-0.4) * np.exp(noise)
    points = Points(x[None], y, np.arange(len(x)))
    fitted = fit(FORMS["power_floor"], points.x, points.y, objective)
    for name in ("E", "alpha"):
        low, high = evidence.profile(points, name, fitted, objective)
        value = fitted.theta[fitted.form.parameters.index(name)]
        assert low <= value * (1 + 1e-9)
        assert value <= high * (1 + 1e-9)
