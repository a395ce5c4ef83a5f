"""Verdicts on planted surfaces of 6 sizes, 12 amounts of data and 3 seeds."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from worldpm.curves.forms import FORMS, Array, curve
from worldpm.curves.solver import LOG_SQUARES, fit
from worldpm.laws import evidence, planes
from worldpm.laws.evidence import Points
from worldpm.laws.law import Word

SIZES, AMOUNTS, SEEDS = np.geomspace(1e6, 1e8, 6), np.geomspace(1e4, 1e7, 12), 3
SHAPE = (len(SIZES), len(AMOUNTS), SEEDS)
N: Array = np.broadcast_to(SIZES[:, None, None], SHAPE).ravel()
D: Array = np.broadcast_to(AMOUNTS[:, None], SHAPE).ravel()
SEED = np.broadcast_to(np.arange(SEEDS), SHAPE).ravel()
RUNS = (np.searchsorted(SIZES, N * 0.99) * SEEDS + SEED).astype(np.int64)


def falling(n: Array, d: Array, *, of_size: float = 0.12) -> Array:
    fall: Array = 0.35 + of_size * (n / 1e6) ** -0.25 + 0.15 * (d / 1e4) ** -0.3
    return fall


def gated(n: Array, d: Array) -> Array:
    gate = 1 / (1 + (n / 1e7) ** -6.0)
    loss: Array = np.log(2) - (np.log(2) - 0.3) * gate * (1 - (1 + d / 2e5) ** -0.8)
    return loss


SURFACES: dict[str, tuple[Callable[[Array, Array], Array], Word]] = {
    "power": (lambda n, d: 0.45 * ((n / 1e6) ** -0.15 + (d / 1e4) ** -0.12), "power law"),
    "power with floor": (falling, "power law"),
    "U over data": (lambda n, d: falling(n, d) + 0.05 * (d / 1e7) ** 0.9, "turns"),
    "plateau over size": (
        lambda n, d: falling(np.minimum(n, SIZES[3]), d, of_size=0.144),
        "saturates",
    ),
    "gate": (gated, "emergent"),
    "drift": (lambda n, d: np.full(len(n), 0.62), "no trend"),
    "noise": (lambda n, d: np.full(len(n), 0.62), "no trend"),
}


def planted(name: str, noise: float, draw: int) -> Points:
    """A surface with normal noise of ln y. With "drift", each run also wanders over its data."""
    generator = np.random.default_rng([draw, sum(map(ord, name)), int(noise * 1e4)])
    log_y = np.log(SURFACES[name][0](N, D))
    if name == "drift":
        for run in np.unique(RUNS):
            steps = np.cumsum(generator.normal(0, 0.004, len(AMOUNTS)))
            log_y[run == RUNS] += steps - steps.mean()
    log_y = log_y + generator.normal(0, noise, len(log_y))
    return Points(np.stack([N, D]), np.exp(log_y), RUNS)


@pytest.mark.parametrize("name", ["gate", "drift", "noise"])
def test_a_planted_surface_gets_its_verdict(name: str) -> None:
    assert planes.judge(planted(name, 0.02, 0)).word == SURFACES[name][1]


def test_a_turn_over_data_is_found_with_its_place_and_rise() -> None:
    verdict = planes.judge(planted("U over data", 0.02, 0))
    # the minimum of 0.15 (d / 1e4)^-0.3 + 0.05 (d / 1e7)^0.9
    minimum = (0.15 * 0.3 * 1e4**0.3 / (0.05 * 0.9 * 1e7**-0.9)) ** (1 / 1.2)
    assert verdict.word == "turns"
    turn, rise = verdict.evidence.turn, verdict.evidence.rise
    assert turn is not None
    assert turn.low is not None
    assert turn.high is not None
    assert turn.low * 0.8 < minimum < turn.high * 1.25
    assert rise is not None
    assert rise.low is not None
    assert rise.low > 0.03


def test_a_plateau_over_size_is_found_with_its_start() -> None:
    verdict = planes.judge(planted("plateau over size", 0.02, 0))
    assert verdict.word == "saturates"
    plateau = verdict.evidence.plateau
    assert plateau is not None
    assert plateau.low is not None
    assert plateau.high is not None
    assert plateau.low * 0.8 < SIZES[3] < plateau.high * 1.25


def test_noise_between_runs_is_that_of_the_seeds_and_grows_with_the_offsets_of_runs() -> None:
    noise = evidence.replicates(planted("noise", 0.02, 3))
    assert noise is not None
    assert noise.degrees == 6 * 12 * 2
    assert noise.variance == pytest.approx(0.02**2, rel=0.6)

    generator = np.random.default_rng(0)
    offsets = generator.normal(0, 0.05, RUNS.max() + 1)[RUNS]
    moved = Points(np.stack([N, D]), np.exp(offsets + generator.normal(0, 0.001, len(N))), RUNS)
    grown = evidence.replicates(moved)
    assert grown is not None
    # twelve points of a run share its offset, so their mean is no more certain than one point
    assert grown.variance == pytest.approx(12 * 0.05**2, rel=0.6)


def test_neighbours_show_the_noise_of_one_seed_whatever_smooth_surface_lies_under_it() -> None:
    for name, noise in (("noise", 0.02), ("U over data", 0.005)):
        points = planted(name, noise, 0).take(SEED == 0)
        assert evidence.replicates(points) is None
        flat = fit(FORMS["joint"], points.x, points.y, LOG_SQUARES)
        estimate = evidence.roughness(points, flat)
        assert estimate is not None
        assert noise**2 / 2 < estimate.variance < 3 * noise**2
        # two of three of the (6 - 2) x 12 neighbours are independent
        assert estimate.degrees == 32

    # one amount of data a size has no neighbours along either axis
    assert evidence.roughness(points.take(D[SEED == 0] == AMOUNTS[0]), flat) is None


def test_neighbours_show_the_offsets_of_runs() -> None:
    generator = np.random.default_rng(0)
    one = SEED == 0
    offsets = generator.normal(0, 0.05, RUNS.max() + 1)[RUNS[one]]
    y = np.exp(offsets + generator.normal(0, 0.001, one.sum()))
    points = Points(np.stack([N[one], D[one]]), y, RUNS[one])
    estimate = evidence.roughness(points, fit(FORMS["constant"], points.x, y, LOG_SQUARES))
    assert estimate is not None
    assert estimate.variance > 4 * 0.05**2


@pytest.mark.parametrize("name", list(SURFACES))
def test_a_planted_surface_of_one_seed_gets_its_verdict(name: str) -> None:
    verdict = planes.judge(planted(name, 0.005, 0).take(SEED == 0))
    assert verdict.word == SURFACES[name][1], verdict


def test_an_error_that_turns_gets_its_verdict_but_is_never_emergent() -> None:
    turning = planes.judge(planted("U over data", 0.02, 0), of_loss=False)
    assert turning.word == "turns"
    gate = planes.judge(planted("gate", 0.02, 0), of_loss=False)
    assert gate.word not in ("emergent", "power law")


def test_the_misfit_is_the_distance_that_noise_does_not_explain() -> None:
    points = planted("noise", 0.005, 0)
    noise = evidence.replicates(points)
    assert noise is not None
    flat = fit(FORMS["constant"], points.x, points.y, LOG_SQUARES)
    assert evidence.lack_of_fit(flat, points, noise).p > 0.001

    # every second size is 4 % higher, which is 2 % from the mean
    steps = np.where(np.searchsorted(SIZES, N * 0.99) % 2, 0.04, 0.0)
    stepped = Points(points.x, points.y * np.exp(steps), points.runs)
    missed = evidence.lack_of_fit(
        fit(FORMS["constant"], stepped.x, stepped.y, LOG_SQUARES), stepped, noise
    )
    assert missed.p < 1e-6
    assert missed.excess == pytest.approx(0.02, rel=0.05)


def test_a_law_that_misses_the_points_is_not_identified() -> None:
    wavy = falling(N, D) * (1 + 0.03 * np.sin(3 * np.log(D)))
    generator = np.random.default_rng(0)
    points = Points(np.stack([N, D]), wavy * np.exp(generator.normal(0, 0.005, len(N))), RUNS)
    verdict = planes.judge(points)
    assert verdict.word == "not identified"
    assert "more than noise explains" in verdict.reason


@pytest.mark.parametrize("form", ["turning_joint", "plateau_joint"])
def test_slopes_of_the_new_forms_are_derivatives(form: str) -> None:
    theta = np.array([[0.3, 5.0, 6.0, *([1e-8] * (form == "turning_joint")), 0.3, 0.3, 0.9]])
    if form == "plateau_joint":
        theta[0, -1] = 1.1e7
    x = np.array([[1e6, 1e7, 5e7, 2e6], [1e4, 1e5, 1e6, 3e6]])
    values, slopes = curve(FORMS[form], theta, x)
    for index in range(theta.shape[1]):
        step = theta[0, index] * 1e-6
        moved = theta.copy()
        moved[0, index] += step
        measured = (curve(FORMS[form], moved, x)[0] - values) / step
        np.testing.assert_allclose(measured, slopes[:, :, index], rtol=2e-3, atol=1e-12)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("noise", "seeds", "least"), [(0.005, SEEDS, 90), (0.02, SEEDS, 75), (0.005, 1, 90)]
)
@pytest.mark.parametrize("name", list(SURFACES))
def test_a_hundred_draws_of_a_surface_get_their_verdict(
    name: str, noise: float, seeds: int, least: int
) -> None:
    words = Counter(
        planes.judge(planted(name, noise, draw).take(seeds > SEED)).word for draw in range(100)
    )
    truth = SURFACES[name][1]
    assert words[truth] >= least, words
    assert all(number <= 10 for word, number in words.items() if word != truth), words
