"""Fits recover planted parameters with intervals, and unsuitable points raise errors."""

import math

import numpy as np
import pytest

from worldpm.curves.forms import FORMS, Array, Form, curve
from worldpm.curves.solver import HUBER, LOG_SQUARES, SQUARES, Objective, fit
from worldpm.laws import compute_optimal, evidence, lines, planes
from worldpm.laws.compute_optimal import Runs
from worldpm.laws.evidence import Points

SIZES = np.geomspace(1e4, 1e7, 8)


def points(y: Array, x: Array = SIZES) -> Points:
    return Points(np.atleast_2d(x), y, np.arange(len(y)))


def seeds(
    of_size: Array, sizes: Array = SIZES, *, noise: float, count: int = 3, seed: int = 0
) -> Points:
    """`count` runs of every size, each with independent noise."""
    generator = np.random.default_rng(seed)
    y = np.repeat(of_size, count) * np.exp(generator.normal(0, noise, size=count * len(of_size)))
    return points(y, np.repeat(sizes, count))


def grid(surface: Array, n: Array, d: Array, *, noise: float, seed: int = 0) -> Points:
    """A ladder of three seeds: `surface` over sizes and amounts. There is one run per size and
    seed, and the points of a run share some of their noise."""
    generator = np.random.default_rng(seed)
    x, y, runs = [], [], []
    for row, size in enumerate(n):
        for run in range(3):
            shared = generator.normal(0, noise)
            for column, amount in enumerate(d):
                x.append((size, amount))
                y.append(surface[row, column] * math.exp(shared + generator.normal(0, noise)))
                runs.append(3 * row + run)
    return Points(np.array(x).T, np.array(y), np.array(runs))


@pytest.mark.parametrize("name", FORMS)
def test_the_slopes_of_a_form_match_numerical_differences(name: str) -> None:
    form = FORMS[name]
    generator = np.random.default_rng(0)
    x = generator.uniform(1, 50, size=(form.axes, 9))
    theta = generator.uniform(0.3, 1.5, size=(3, len(form.parameters)))
    _, slopes = curve(form, theta, x)

    for index in range(len(form.parameters)):
        step = np.zeros(len(form.parameters))
        step[index] = 1e-6
        numeric = (curve(form, theta + step, x)[0] - curve(form, theta - step, x)[0]) / 2e-6
        np.testing.assert_allclose(slopes[:, :, index], numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_locations_name_parameters_and_axes_in_their_order(form: Form) -> None:
    names = [location.parameter for location in form.locations]
    assert names == [name for name in form.parameters if name in names]
    assert all(location.axis < form.axes for location in form.locations)


def test_values_of_forms_by_hand() -> None:
    x = np.array([[4.0, 16.0]])
    values = {
        "power": ([8.0, 0.5], [4.0, 2.0]),
        "power_floor": ([1.0, 8.0, 0.5], [5.0, 3.0]),
        "saturating": ([0.0, 1.0, 4.0], [math.log(2) / 2, math.log(2) / 5]),
        "sigmoid": ([1.0, 3.0, 2.0, 4.0], [2.0, 1 + 2 / 17]),
        "broken": ([0.0, 1.0, 0.0, 1.0, 4.0, 1.0], [0.5, 0.2]),
        "gao_best_of_n": ([2.0, 0.25], [4.0, -32.0]),
        "gao_rl": ([2.0, 1.0], [4 * (2 - math.log(4)), 16 * (2 - math.log(16))]),
        "error_of_loss": ([1.0, 1.0, 0.5], [1 - math.exp(-2), 1 - math.exp(-8)]),
    }
    for name, (theta, expected) in values.items():
        np.testing.assert_allclose(
            curve(FORMS[name], np.array([theta]), x)[0][0], expected, err_msg=name
        )


@pytest.mark.parametrize("objective", [HUBER, SQUARES, LOG_SQUARES])
@pytest.mark.parametrize(
    "planted", [(1.69, 406.4, 410.7, 0.465, 0.155), (1.69, 406.4, 410.7, 0.34, 0.28)]
)
def test_noiseless_points_recover_the_planted_parameters(
    objective: Objective, planted: tuple[float, ...]
) -> None:
    n, d = (
        axis.ravel()
        for axis in np.meshgrid(np.geomspace(5e7, 1e10, 10), np.geomspace(1e9, 5e11, 10))
    )
    x = np.stack([n, d])
    y = curve(FORMS["joint"], np.array([planted]), x)[0][0]

    fitted = fit(FORMS["joint"], x, y, objective)
    np.testing.assert_allclose(fitted.theta, planted, rtol=1e-6)
    assert fitted.converged
    assert (fitted.at_bound, len(fitted.optima)) == ((), 1)


def test_an_outlier_does_not_move_a_huber_fit() -> None:
    y = 5 * SIZES**-0.1
    y[3] *= 3
    assert fit(FORMS["power"], SIZES[None], y, HUBER).theta[1] == pytest.approx(0.1, abs=1e-3)
    assert abs(fit(FORMS["power"], SIZES[None], y, LOG_SQUARES).theta[1] - 0.1) > 0.005


def test_an_absent_floor_is_at_its_bound() -> None:
    assert fit(FORMS["power_floor"], SIZES[None], 5 * SIZES**-0.3, LOG_SQUARES).at_bound == ("E",)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.ones(2), "3 parameters, but there are only 2"),
        (np.array([1, 0, 2, 3.0]), "0 or below"),
        (np.array([1, np.nan, 2, 3]), "not finite numbers"),
    ],
)
def test_points_that_cannot_be_fitted_are_an_error(y: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(FORMS["power_floor"], SIZES[None, : len(y)], y, HUBER)


def test_only_curves_over_a_distance_accept_an_x_of_zero() -> None:
    x, y = np.linspace(0, 3, 12)[None], np.linspace(0.1, 0.5, 12)
    assert fit(FORMS["gao_best_of_n"], x, y, SQUARES).converged
    with pytest.raises(ValueError, match="0 or below"):
        fit(FORMS["power"], x, y, SQUARES)


def test_a_turn_far_outside_the_data_is_at_its_bound() -> None:
    # all points are beyond the turn, so any earlier turn fits equally well
    y = math.log(2) * (1 + SIZES / 1e-3) ** -0.3
    assert "x0" in fit(FORMS["saturating"], SIZES[None], y, LOG_SQUARES).at_bound


def test_whole_runs_and_whole_prompts_are_resampled() -> None:
    sums, weights = np.array([[1.0, 0.0], [2.0, 2.0], [3.0, 0.0]]), np.ones(2)
    drawn = evidence.resample(
        Points(np.array([[1, 2, 3.0]]), sums.sum(axis=1) / 2, np.array([0, 0, 1]), sums, weights),
        seed=0,
        resamples=50,
    )
    assert (drawn.weights[:, 0] == drawn.weights[:, 1]).all()
    assert set(drawn.weights.sum(axis=1)) <= {0 + 2 * 1.0, 2 * 2.0, 2 + 1.0}
    # the share of the first prompt determines all points
    share = drawn.y[:, 0]
    np.testing.assert_allclose(drawn.y[:, 2], 3 * share)
    assert set(share) == {0.0, 0.5, 1.0}


@pytest.mark.proof
def test_intervals_contain_the_planted_value_about_as_often_as_stated() -> None:
    held = {"bootstrap": 0, "profile": 0}
    for seed in range(30):
        some = seeds(0.3 + 20 * SIZES**-0.4, noise=0.01, seed=seed)
        fitted = fit(FORMS["power_floor"], some.x, some.y, LOG_SQUARES)
        low, high = evidence.bootstrap(
            fitted, some, LOG_SQUARES, evidence.resample(some, seed=seed, resamples=200)
        ).intervals["alpha"]
        held["bootstrap"] += low <= 0.4 <= high
        low, high = evidence.profile(some, "alpha", fitted)
        held["profile"] += low <= 0.4 <= high
    assert held["bootstrap"] >= 25
    assert held["profile"] >= 25


def test_the_slope_of_a_power_law_is_minus_its_exponent_and_runs_are_the_units() -> None:
    exact = seeds(5 * SIZES**-0.25, noise=0.0)
    assert evidence.slope(
        exact, evidence.resample(exact, seed=0, resamples=20)
    ).estimate == pytest.approx(-0.25)
    # two runs with slopes of -0.2 and -0.4: mean -0.3, standard error 0.1, Student's 12.706 with
    # one degree of freedom
    x = np.tile(SIZES, 2)
    two = Points(x[None], np.concatenate([SIZES**-0.2, SIZES**-0.4]), np.repeat([0, 1], len(SIZES)))
    slope = evidence.slope(two, evidence.resample(two, seed=0, resamples=20))
    assert slope.interval == pytest.approx((-0.3 - 1.2706, -0.3 + 1.2706), abs=1e-3)


def test_prompts_that_all_runs_share_widen_the_slope() -> None:
    """Two prompts have slopes of -0.1 and -0.3. Three equal runs agree, but their agreement proves
    nothing about other prompts."""
    x = np.tile(SIZES, 3)
    sums = np.stack([x**-0.1, x**-0.3], axis=1)
    three = Points(x[None], sums.mean(axis=1), np.repeat(range(3), len(SIZES)), sums, np.ones(2))
    slope = evidence.slope(three, evidence.resample(three, seed=0, resamples=200))
    assert slope.interval.low < -0.3
    assert slope.interval.high > -0.1


def test_slope_intervals_of_few_runs_of_one_point_have_their_stated_coverage() -> None:
    held = 0
    for seed in range(200):
        five = points(
            2 * SIZES[:5] ** -0.2 * np.exp(np.random.default_rng(seed).normal(0, 0.02, 5)),
            SIZES[:5],
        )
        low, high = evidence.slope(five, evidence.resample(five, seed=0, resamples=200)).interval
        held += low <= -0.2 <= high
    assert held >= 188


@pytest.mark.parametrize("count", [1, 3])
def test_four_sizes_are_enough_for_a_law(count: int) -> None:
    four = seeds(2 * SIZES**-0.2, noise=0.002, count=count).take(
        np.repeat(np.arange(8) % 2 == 0, count)
    )
    said = lines.judge(four, evidence.resample(four, seed=0, resamples=100))
    assert said.word == "power law"
    assert said.form in lines.SMOOTH


def test_the_largest_third_is_predicted_from_the_rest() -> None:
    some = points(5 * SIZES**-0.25)
    marked = evidence.largest(some)
    assert marked.sum() == 3
    assert evidence.extrapolation_error(FORMS["power"], some, HUBER, marked) < 1e-9
    # a constant predicts the mean of the five smaller sizes
    y = np.array([1, 1, 1, 1, 1, 2, 2, 2.0])
    assert evidence.extrapolation_error(
        FORMS["constant"], points(y), SQUARES, marked
    ) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("of_size", "noise", "word"),
    [
        (0.2 + 5 * SIZES**-0.3, 0.01, "power law"),
        (np.full(8, 0.68), 0.005, "no trend"),
        (np.full(8, 0.68), 0.4, "not identified"),
        (0.5 * (SIZES / SIZES[0]) ** 0.05, 0.01, "not identified"),
        (np.array([0.69, 0.692, 0.69, 0.688, 0.3, 0.1, 0.098, 0.1]), 0.01, "not identified"),
        (np.maximum(5 * SIZES**-0.3, 5 * SIZES[4] ** -0.3), 0.01, "saturates"),
        (0.2 + 5 * SIZES**-0.3 + 0.2 * (SIZES / SIZES[7]) ** 0.8, 0.01, "turns"),
        (2 + 2 / (1 + SIZES / SIZES[4]), 0.01, "not identified"),
    ],
    ids=["power", "flat", "noisy", "rising", "step", "a fall that ends", "a turn", "a wide bend"],
)
def test_a_series_over_size_gets_the_right_verdict(of_size: Array, noise: float, word: str) -> None:
    some = seeds(of_size, noise=noise)
    verdict = lines.judge(some, evidence.resample(some, seed=0, resamples=200))
    assert verdict.word == word, verdict
    smooth_words = ("power law", "no trend", "turns")
    assert verdict.form not in ("broken", "sigmoid") or word not in smooth_words, verdict


@pytest.mark.parametrize("count", [1, 3])
def test_the_ends_of_falls_are_found_with_one_run_or_several_at_each_x(count: int) -> None:
    amounts = np.geomspace(1e4, 1e7, 12)
    falling = 0.35 + 0.15 * (amounts / 1e4) ** -0.3
    turning = seeds(falling + 0.08 * (amounts / 1e7) ** 0.9, amounts, noise=0.005, count=count)
    turned = lines.judge(turning, evidence.resample(turning, seed=0, resamples=100), "D")
    # the minimum of 0.15 (x / 1e4)^-0.3 + 0.08 (x / 1e7)^0.9
    minimum = (0.15 * 0.3 * 1e4**0.3 / (0.08 * 0.9 * 1e7**-0.9)) ** (1 / 1.2)
    assert (turned.word, turned.form) == ("turns", "turning"), turned
    assert turned.evidence.turn is not None
    assert turned.evidence.turn.low is not None
    assert turned.evidence.turn.high is not None
    assert turned.evidence.turn.low / 1.2 < minimum < turned.evidence.turn.high * 1.2
    assert turned.reason.startswith("falls up to D = ")

    level = seeds(np.maximum(falling, falling[6]), amounts, noise=0.005, count=count)
    ended = lines.judge(level, evidence.resample(level, seed=0, resamples=100), "D")
    assert ended.word == "saturates", ended
    plateau = ended.evidence.plateau
    assert plateau is not None
    assert plateau.low is not None
    assert plateau.high is not None
    assert plateau.low / 1.5 < amounts[6] < plateau.high * 1.5


def test_a_single_run_that_turns_is_not_identified() -> None:
    amounts = np.geomspace(1e4, 1e7, 12)
    y = 0.35 + 0.15 * (amounts / 1e4) ** -0.3 + 0.08 * (amounts / 1e7) ** 0.9
    one = Points(amounts[None], y, np.zeros(12, dtype=np.int64))
    verdict = lines.judge(one, evidence.resample(one, seed=0, resamples=100), "D")
    assert verdict.word == "not identified"


def test_three_sizes_or_one_decade_identify_nothing() -> None:
    for few in (SIZES[:3], np.geomspace(1e4, 1e5, 8)):
        some = points(few**-0.3, few)
        assert (
            lines.judge(some, evidence.resample(some, seed=0, resamples=20)).word
            == "not identified"
        )


N, D = np.geomspace(3e3, 3e6, 8), np.geomspace(300, 5e4, 9)


def smooth(n: Array, d: Array) -> Array:
    u = 60 * n[:, None] ** -0.5 + 3000 * d[None, :] ** -1.0
    return np.asarray(0.1 + (math.log(2) - 0.1) * u / (1 + u))


def gated(n: Array, d: Array) -> Array:
    """Losses of models that learn nothing below a hundred thousand parameters, with any data."""
    gate = 1 / (1 + (n[:, None] / 1e5) ** -6.0)
    return np.asarray(
        math.log(2) - (math.log(2) - 0.1) * gate * (1 - (1 + d[None, :] / 3000) ** -1.5)
    )


@pytest.mark.proof
def test_sizes_that_never_learn_are_distinguished_from_sizes_that_learn_late() -> None:
    verdict = planes.judge(grid(gated(N, D), N, D, noise=0.01))
    assert verdict.word == "emergent", verdict
    threshold = verdict.evidence.threshold
    assert threshold is not None
    assert threshold.low is not None
    assert threshold.high is not None
    assert 4e4 < threshold.low < threshold.high < 3e5
    for seed in range(3):
        late = planes.judge(grid(smooth(N, D), N, D, noise=0.02, seed=seed))
        assert late.word == "power law", late


@pytest.mark.parametrize("steepness", [1.3, 2.0])
def test_steady_improvement_with_size_is_not_emergent(steepness: float) -> None:
    gate = 1 / (1 + (N[:, None] / 1e5) ** -steepness)
    wide = math.log(2) - (math.log(2) - 0.1) * gate * (1 - (1 + D[None, :] / 3000) ** -1.5)
    assert planes.judge(grid(wide, N, D, noise=0.01)).word == "power law"
    product = math.log(2) - (math.log(2) - 0.1) * (1 - (1 + N[:, None] / 1e5) ** -steepness) * (
        1 - (1 + D[None, :] / 3000) ** -1.0
    )
    assert planes.judge(grid(product, N, D, noise=0.01)).word == "power law"


@pytest.mark.proof
def test_a_loss_that_falls_only_with_data_is_not_a_law_of_both() -> None:
    verdict = planes.judge(grid(0.2 + 4 * D[None, :] ** -0.4 * np.ones((8, 1)), N, D, noise=0.01))
    assert (verdict.word, "only with D" in verdict.reason) == ("not identified", True), verdict


def test_two_amounts_of_data_are_too_few_for_a_plane() -> None:
    verdict = planes.judge(grid(smooth(N, D[:2]), N, D[:2], noise=0.01))
    assert (verdict.word, verdict.reason[:5]) == ("not identified", "data:")


def test_one_run_has_no_intervals() -> None:
    some = Points(SIZES[None], 5 * SIZES**-0.3, np.zeros(8, dtype=np.int64))
    fitted = fit(FORMS["power"], some.x, some.y, LOG_SQUARES)
    spread = evidence.bootstrap(
        fitted, some, LOG_SQUARES, evidence.resample(some, seed=0, resamples=20)
    )
    assert np.isnan(list(spread.intervals["alpha"])).all()
    assert len(spread.theta) == 0


@pytest.mark.proof
def test_a_constant_loss_over_a_plane_has_no_trend() -> None:
    assert planes.judge(grid(np.full((8, 9), 0.69), N, D, noise=0.003)).word == "no trend"
    rising = 0.69 + 0.05 * np.log(D / D[0])[None, :] * np.ones((8, 1))
    assert planes.judge(grid(rising, N, D, noise=0.003)).word == "not identified"
    assert (
        planes.judge(grid(np.full((8, 9), 0.69), N, D, noise=0.4)).word == "not identified"
    )  # too noisy to exclude a trend


def test_the_three_approaches_find_the_planted_frontier() -> None:
    theta = np.array([0.1, 40.0, 30.0, 0.4, 0.6])
    sizes, amounts = np.geomspace(1e3, 1e7, 17), np.geomspace(1e2, 1e7, 60)
    n, d = (axis.ravel() for axis in np.meshgrid(sizes, amounts, indexing="ij"))
    loss = curve(FORMS["joint"], theta[None], np.stack([n, d]))[0][0]
    approaches = compute_optimal.compare(
        Runs(n, d, 6 * n * d, loss, np.repeat(np.arange(17), 60)), seed=0, resamples=8
    )
    assert approaches.flops_per_parameter_and_pair == pytest.approx(6)
    assert approaches.joint is not None
    assert approaches.joint.exponent == pytest.approx(0.6, abs=1e-4)
    assert approaches.isoflop.exponent == pytest.approx(0.6, abs=0.03)
    assert approaches.envelope.exponent == pytest.approx(
        0.6, abs=0.1
    )  # it can only choose among the sizes that were trained
    best, budget = approaches.joint.optimal_n[4], approaches.budgets_flops[4]
    assert best is not None
    losses = [
        curve(FORMS["joint"], theta[None], np.array([[best * k], [budget / 6 / best / k]]))[0][0, 0]
        for k in (0.9, 1.0, 1.1)
    ]
    assert losses[1] == min(losses)
