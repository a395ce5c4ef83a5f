"""Style control recovers planted weights, equals values computed by hand, and has the expected
invariances."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from worldpm.stats import style_control
from worldpm.stats.style_control import Coefficient, Phi, StyledPairs

COUNTS = ("length", "headers", "lists", "bold")


def pairs(
    margin: list[float],
    chosen: list[float],
    rejected: list[float],
    *,
    headers: tuple[list[float], list[float]] | None = None,
) -> StyledPairs:
    """Pairs with these lengths, each with its own prompt."""
    n = len(margin)
    zeros = {name: np.zeros(n) for name in COUNTS[1:]}
    sides = [{"length": np.array(side, dtype=float), **zeros} for side in (chosen, rejected)]

    if headers:
        for side, counts in zip(sides, headers, strict=True):
            side["headers"] = np.array(counts, dtype=float)

    return StyledPairs(
        np.array(margin, dtype=float),
        np.ones(n),
        np.ones(n),
        [str(i) for i in range(n)],
        sides[0],
        sides[1],
    )


def planted(style_weight: float, *, n: int = 4000, seed: int = 0) -> tuple[StyledPairs, np.ndarray]:
    """Pairs whose labels depend only on quality, and whose margins add a weight on length to it.
    Also returns the margins of quality alone."""
    generator = np.random.default_rng(seed)
    quality = generator.normal(size=(n, 2))
    length = generator.integers(20, 400, size=(n, 2)).astype(float)

    z = (length[:, 0] - length[:, 1]) / length.sum(axis=1)
    gap = quality[:, 0] - quality[:, 1]
    first = generator.random(n) < 1 / (1 + np.exp(-gap))
    sign = np.where(first, 1.0, -1.0)

    rows = np.arange(n)
    chosen, rejected = length[rows, np.where(first, 0, 1)], length[rows, np.where(first, 1, 0)]
    return pairs(list((gap + style_weight * z) * sign), list(chosen), list(rejected)), gap * sign


def interval_per_unit(coefficient: Coefficient) -> tuple[float, float]:
    assert coefficient.interval is not None
    low, high = coefficient.interval
    deviations = coefficient.per_unit / coefficient.per_deviation
    return low * deviations, high * deviations


@pytest.mark.parametrize("weight", [1.5, -2.0, 0.0])
@pytest.mark.parametrize("normalisation", ["paper", "arena"])
def test_a_planted_weight_is_within_its_interval_and_controlling_removes_it(
    weight: float, normalisation: style_control.Normalisation
) -> None:
    styled, truth = planted(weight)
    result = style_control.control(styled, normalisation)

    low, high = interval_per_unit(result.coefficients["length"])
    assert low < -weight < high
    low, high = interval_per_unit(result.coefficients["margin"])
    assert low < 1 < high
    assert result.cross_fitted.accuracy == pytest.approx(float((truth > 0).mean()), abs=0.01)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e4])
def test_the_unit_of_the_rewards_changes_nothing(scale: float) -> None:
    styled, _ = planted(1.0, n=400)
    plain = style_control.control(styled, "paper")
    scaled = style_control.control(replace(styled, margin=styled.margin * scale), "paper")

    assert asdict(scaled.cross_fitted) == pytest.approx(asdict(plain.cross_fitted))
    assert scaled.warnings == plain.warnings
    weights = {name: entry.per_unit for name, entry in plain.coefficients.items()}
    scaled_weights = {name: entry.per_unit for name, entry in scaled.coefficients.items()}
    assert scaled_weights["length"] == pytest.approx(weights["length"])
    assert scaled_weights["margin"] == pytest.approx(weights["margin"] / scale)


def test_intervals_contain_the_planted_weight_in_about_95_of_100_cases() -> None:
    covered = 0
    for seed in range(100):
        styled, _ = planted(1.0, n=300, seed=seed)
        coefficients = style_control.control(styled, "paper").coefficients
        low, high = interval_per_unit(coefficients["length"])
        covered += low < -1.0 < high
    assert covered >= 88


def test_the_dict_of_a_result_has_the_keys_of_metrics_json() -> None:
    styled, _ = planted(1.0, n=200)
    result = asdict(style_control.control(styled, "paper"))
    performance = ["accuracy", "loss_nats"]

    assert list(result) == ["cross_fitted", "in_sample", "margin_only", "coefficients", "warnings"]
    assert [list(result[key]) for key in list(result)[:3]] == [performance] * 3
    assert list(result["coefficients"]) == ["margin", "length"]
    assert list(result["coefficients"]["length"]) == ["per_deviation", "interval", "per_unit"]
    assert len(result["coefficients"]["length"]["interval"]) == 2


def test_differences_by_hand() -> None:
    a, b = np.array([3.0, 0.0, 0.0]), np.array([1.0, 0.0, 4.0])
    assert style_control.differences(a, b, "paper").tolist() == [0.5, 0.0, -1.0]
    assert style_control.differences(a, b, "arena").tolist() == [0.4, 0.0, -0.8]


def test_phi_by_hand() -> None:
    # three pairs differ in length; the model prefers the longer in all of them, the label in one
    styled = pairs([1.0, -1.0, -1.0, 1.0], [9, 1, 1, 5], [1, 9, 9, 5])
    phi = style_control.phi_by_feature(styled)
    assert (phi["length"].prediction, phi["length"].label) == pytest.approx((3 / 3, -1 / 3))
    assert phi["length"].pairs == 3
    assert phi["lists"] == Phi(prediction=None, label=None, pairs=0)


def test_accuracy_by_length_and_level_by_hand() -> None:
    styled = pairs(
        [1.0, -1.0, 1.0, 0.0], [9, 1, 5, 9], [1, 9, 5, 9], headers=([0, 0, 1, 0], [0, 0, 0, 1])
    )
    assert style_control.by_length(styled) == {
        "chosen longer": 1.0,
        "chosen shorter": 0.0,
        "as long": 0.75,
    }

    # the median of the plain lengths 9, 1, 9, 1, 9, 5 is 7
    levels = style_control.accuracy_by_level(styled)
    assert levels.accuracy == [[None, 0.0, None], [1.0, None, 0.5], [1.0, None, None]]
    assert (levels.within, levels.hard, levels.easy) == (None, 0.25, 1.0)


def test_features_that_cannot_be_fitted_are_left_out_with_a_warning() -> None:
    result = style_control.control(pairs([1.0] * 12, [9] * 12, [1] * 12), "paper")
    assert "headers differs in 0 prompts only; left out" in result.warnings
    assert "length favours the same side in all 12 prompts; left out" in result.warnings
    assert result.coefficients.keys() == {"margin"}
    # the margin is right for every pair
    assert result.coefficients["margin"].interval is None


def test_coefficients_that_are_not_identified_give_warnings() -> None:
    collinear = pairs([1.0] * 11 + [-1.0], [9.0] * 11 + [1.0], [1.0] * 11 + [9.0])
    warnings = style_control.control(collinear, "paper").warnings
    assert any("12 prompts for 2 coefficients" in warning for warning in warnings)
    assert any("are correlated so strongly" in warning for warning in warnings)


def test_one_huge_margin_does_not_spoil_the_fit() -> None:
    styled, _ = planted(0.0, n=1000)
    margin = styled.margin.copy()
    margin[0] = 1e6

    result = style_control.control(replace(styled, margin=margin), "paper")
    expected = style_control.control(styled, "paper")
    assert result.coefficients["margin"].per_unit == pytest.approx(
        expected.coefficients["margin"].per_unit, rel=0.02
    )
    assert result.warnings == expected.warnings


def test_a_margin_that_contradicts_the_labels_has_no_weight() -> None:
    generator = np.random.default_rng(0)
    against = list(generator.normal(-1.0, 1.0, size=200))
    lengths = [list(generator.integers(1, 50, 200)) for _ in range(2)]
    result = style_control.control(pairs(against, *lengths), "paper")

    assert result.coefficients["margin"].per_deviation == 0
    assert any("held at 0" in warning for warning in result.warnings)
    assert result.margin_only.accuracy == pytest.approx(np.mean(np.array(against) > 0))
    assert result.margin_only.loss_nats == pytest.approx(np.log(2))


def test_swapping_the_sides_changes_nothing() -> None:
    styled, _ = planted(1.0, n=500)
    swapped = replace(
        styled,
        margin=-styled.margin,
        probability=1 - styled.probability,
        chosen=styled.rejected,
        rejected=styled.chosen,
    )

    per_unit, swapped_per_unit = (
        style_control.control(side, "arena").coefficients["length"].per_unit
        for side in (styled, swapped)
    )
    assert per_unit == pytest.approx(swapped_per_unit)
