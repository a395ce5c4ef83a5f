"""Style control finds what was planted, by hand and by law."""

from dataclasses import replace

import numpy as np
import pytest

from worldpm.stats import style_control
from worldpm.stats.style_control import StyledPairs

COUNTS = ("length", "headers", "lists", "bold")


def pairs(
    margin: list[float],
    chosen: list[float],
    rejected: list[float],
    *,
    headers: tuple[list[float], list[float]] | None = None,
) -> StyledPairs:
    """Pairs with these lengths, each of its own prompt."""
    n = len(margin)
    others = {name: np.zeros(n) for name in COUNTS[1:]}
    sides = [{"length": np.array(side, dtype=float), **others} for side in (chosen, rejected)]
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
    """Pairs whose labels follow quality alone, judged by quality plus a weight on length; and the
    pairs' true quality margins."""
    generator = np.random.default_rng(seed)
    quality, length = (
        generator.normal(size=(n, 2)),
        generator.integers(20, 400, size=(n, 2)).astype(float),
    )
    z = (length[:, 0] - length[:, 1]) / length.sum(axis=1)
    gap = quality[:, 0] - quality[:, 1]
    first = generator.random(n) < 1 / (1 + np.exp(-gap))
    sign = np.where(first, 1.0, -1.0)
    rows = np.arange(n)
    chosen, rejected = length[rows, np.where(first, 0, 1)], length[rows, np.where(first, 1, 0)]
    return pairs(list((gap + style_weight * z) * sign), list(chosen), list(rejected)), gap * sign


@pytest.mark.parametrize("weight", [1.5, -2.0, 0.0])
@pytest.mark.parametrize("way", ["paper", "arena"])
def test_a_planted_weight_is_found_within_its_interval_and_controlling_removes_it(
    weight: float, way: style_control.Normalisation
) -> None:
    judged, truth = planted(weight)
    found = style_control.controlled(judged, way)
    length = found["coefficients"]["length"]
    scale = length["per_unit"] / length["per_deviation"]
    low, high = (end * scale for end in length["interval"])
    assert low < -weight < high
    margin = found["coefficients"]["margin"]
    margin_low, margin_high = (
        end * margin["per_unit"] / margin["per_deviation"] for end in margin["interval"]
    )
    assert margin_low < 1 < margin_high
    assert found["cross_fitted"]["accuracy"] == pytest.approx(float((truth > 0).mean()), abs=0.01)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e4])
def test_the_unit_of_the_rewards_changes_nothing(scale: float) -> None:
    judged, _ = planted(1.0, n=400)
    found, scaled = (
        style_control.controlled(replace(judged, margin=judged.margin * factor), "paper")
        for factor in (1.0, scale)
    )
    assert scaled["cross_fitted"] == pytest.approx(found["cross_fitted"])
    assert scaled["coefficients"]["length"]["per_unit"] == pytest.approx(
        found["coefficients"]["length"]["per_unit"]
    )
    assert scaled["coefficients"]["margin"]["per_unit"] == pytest.approx(
        found["coefficients"]["margin"]["per_unit"] / scale
    )
    assert scaled["warnings"] == found["warnings"]


def test_intervals_hold_the_planted_weight_in_about_95_of_100_cases() -> None:
    held = 0
    for seed in range(100):
        judged, _ = planted(1.0, n=300, seed=seed)
        length = style_control.controlled(judged, "paper")["coefficients"]["length"]
        low, high = (
            end * length["per_unit"] / length["per_deviation"] for end in length["interval"]
        )
        held += low < -1.0 < high
    assert held >= 88


def test_differences_by_hand() -> None:
    a, b = np.array([3.0, 0.0, 0.0]), np.array([1.0, 0.0, 4.0])
    assert style_control.differences(a, b, "paper").tolist() == [0.5, 0.0, -1.0]
    assert style_control.differences(a, b, "arena").tolist() == [0.4, 0.0, -0.8]


def test_phi_by_hand() -> None:
    # three pairs differ in length; the model goes with the longer in two of them, the label in one
    judged = pairs([1.0, -1.0, -1.0, 1.0], [9, 1, 1, 5], [1, 9, 9, 5])
    found = style_control.phi(judged)["length"]
    assert found == {"prediction": pytest.approx(3 / 3), "label": pytest.approx(-1 / 3), "pairs": 3}
    assert style_control.phi(judged)["lists"] == {"prediction": None, "label": None, "pairs": 0}


def test_accuracy_by_length_and_level_by_hand() -> None:
    judged = pairs(
        [1.0, -1.0, 1.0, 0.0], [9, 1, 5, 9], [1, 9, 5, 9], headers=([0, 0, 1, 0], [0, 0, 0, 1])
    )
    assert style_control.by_length(judged) == {
        "chosen longer": 1.0,
        "chosen shorter": 0.0,
        "as long": 0.75,
    }
    found = style_control.by_level(judged)  # the median of the plain lengths 9, 1, 9, 1, 9, 5 is 7
    assert found["accuracy"] == [[None, 0.0, None], [1.0, None, 0.5], [1.0, None, None]]
    assert (found["within"], found["hard"], found["easy"]) == (None, 0.25, 1.0)


def test_what_cannot_be_identified_is_said() -> None:
    found = style_control.controlled(pairs([1.0] * 12, [9] * 12, [1] * 12), "paper")
    assert "headers differs in 0 prompts only; left out" in found["warnings"]
    assert "length speaks for the same side in all 12 prompts; left out" in found["warnings"]
    assert found["coefficients"].keys() == {"margin"}
    assert found["coefficients"]["margin"]["interval"] is None  # it calls every pair right
    both = pairs([1.0] * 11 + [-1.0], [9.0] * 11 + [1.0], [1.0] * 11 + [9.0])
    found = style_control.controlled(both, "paper")
    assert any("12 prompts for 2 coefficients" in warning for warning in found["warnings"])
    assert any("go together so closely" in warning for warning in found["warnings"])


def test_one_margin_of_another_size_does_not_spoil_the_fit() -> None:
    judged, _ = planted(0.0, n=1000)
    margin = judged.margin.copy()
    margin[0] = 1e6
    found = style_control.controlled(replace(judged, margin=margin), "paper")
    expected = style_control.controlled(judged, "paper")
    assert found["coefficients"]["margin"]["per_unit"] == pytest.approx(
        expected["coefficients"]["margin"]["per_unit"], rel=0.02
    )
    assert found["warnings"] == expected["warnings"]


def test_a_margin_that_goes_against_the_labels_counts_nothing() -> None:
    generator = np.random.default_rng(0)
    against = list(generator.normal(-1.0, 1.0, size=200))
    found = style_control.controlled(
        pairs(against, list(generator.integers(1, 50, 200)), list(generator.integers(1, 50, 200))),
        "paper",
    )
    assert found["coefficients"]["margin"]["per_deviation"] == 0
    assert any("held at 0" in warning for warning in found["warnings"])
    assert found["margin_only"]["accuracy"] == pytest.approx(np.mean(np.array(against) > 0))
    assert found["margin_only"]["loss_nats"] == pytest.approx(np.log(2))


def test_swapping_the_sides_changes_nothing() -> None:
    judged, _ = planted(1.0, n=500)
    swapped = StyledPairs(
        -judged.margin,
        1 - judged.probability,
        judged.weight,
        judged.cluster,
        judged.rejected,
        judged.chosen,
    )
    one, other = (
        style_control.controlled(side, "arena")["coefficients"]["length"]["per_unit"]
        for side in (judged, swapped)
    )
    assert one == pytest.approx(other)
