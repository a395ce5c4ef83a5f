"""Temperatures and reliability, by hand and from planted values."""

import math
from itertools import combinations

import pytest
import torch

from worldpm.stats import calibration, selection


def drawn(scale: float, n: int = 20000) -> torch.Tensor:
    """Margins that are `scale` times the log odds of the labels, seen from the chosen side."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, generator=generator, dtype=torch.float64)
    chosen = torch.rand(n, generator=generator) < torch.sigmoid(logits)
    return torch.where(chosen, logits, -logits) * scale


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_the_temperature_is_the_scale_of_the_margins(scale: float) -> None:
    margins = drawn(scale)
    ones = torch.ones(len(margins), dtype=torch.float64)
    temperature = calibration.temperature(margins, ones, ones)
    assert temperature == pytest.approx(scale, rel=0.05)
    assert calibration.reliability(margins / temperature, ones, ones).expected_error < 0.01


def test_thirty_right_pairs_do_not_make_the_next_one_certain() -> None:
    ones = torch.ones(30, dtype=torch.float64)
    # the chance 31 of 32: sigmoid(ln 31)
    temperature = calibration.temperature(2 * ones, ones, ones)
    assert temperature == pytest.approx(2 / math.log(31), rel=1e-4)


def test_one_huge_margin_does_not_set_the_temperature() -> None:
    margins = drawn(1.0, 1000)
    margins[0] = 1e6
    ones = torch.ones(1000, dtype=torch.float64)
    assert calibration.temperature(margins, ones, ones) == pytest.approx(1.0, rel=0.1)


def test_margins_of_zero_have_the_temperature_one() -> None:
    assert calibration.temperature(torch.zeros(3), torch.ones(3), torch.ones(3)) == 1.0


def test_reliability_by_hand() -> None:
    # three pairs called with sigmoid(2) = 0.88, two of them right, and one tie
    margins = torch.tensor([2.0, 2.0, -2.0, 0.0])
    result = calibration.reliability(margins, torch.ones(4), torch.ones(4))

    tie, called = result.bins
    assert (tie.pairs, called.pairs) == (1, 3)
    assert (tie.right, called.right) == pytest.approx((0.5, 2 / 3))

    predicted = 1 / (1 + math.exp(-2))
    assert result.expected_error == pytest.approx(3 / 4 * abs(predicted - 2 / 3))


def test_a_probability_of_one_is_in_the_last_bin() -> None:
    result = calibration.reliability(torch.tensor([1e4]), torch.ones(1), torch.ones(1))
    assert result.bins[0].probability == 1.0


def test_the_pick_of_n_by_hand() -> None:
    assert selection.expected_picks([1, 2, 3], [0, 1, 5]) == pytest.approx([2, (1 + 5 + 5) / 3, 5])


def test_ties_share_the_pick() -> None:
    assert selection.expected_picks([1, 1, 3], [0, 1, 5]) == pytest.approx(
        [2, (0.5 + 5 + 5) / 3, 5]
    )
    assert selection.expected_picks([7, 7], [0, 1]) == pytest.approx([0.5, 0.5])


def test_the_pick_is_the_mean_over_all_subsets() -> None:
    rewards, qualities = [0.3, -1.0, 2.0, 0.1, 0.7], [1.0, 4.0, 0.0, 2.0, 9.0]
    expected = selection.expected_picks(rewards, qualities)

    for n in range(1, 6):
        best = [max(subset, key=rewards.__getitem__) for subset in combinations(range(5), n)]
        mean = sum(qualities[index] for index in best) / len(best)
        assert expected[n - 1] == pytest.approx(mean)


def test_a_pick_among_unscored_responses_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 of them NaN"):
        selection.expected_picks([1.0, float("nan")], [0, 1])


def test_the_divergence_of_the_best_of_n() -> None:
    assert selection.kl_nats(1) == 0
    assert selection.kl_nats(4) == pytest.approx(math.log(4) - 0.75)


def test_the_error_of_a_calibrated_model_is_that_of_chance_and_of_a_sharp_one_is_more() -> None:
    generator = torch.Generator().manual_seed(0)
    margins = torch.randn(600, generator=generator, dtype=torch.float64) * 2
    ones, prompts = (
        torch.ones(600, dtype=torch.float64),
        [str(number // 2) for number in range(600)],
    )
    right = torch.rand(600, generator=generator, dtype=torch.float64) < torch.sigmoid(margins.abs())
    labels = torch.where(right == (margins > 0), 1.0, 0.0).double()

    error = calibration.reliability(margins, labels, ones).expected_error
    honest = calibration.error_spread(margins, labels, ones, prompts)
    low, high = honest.interval
    assert error < 2 * honest.if_calibrated
    assert low == 0.0 or low < honest.if_calibrated
    assert high < 0.1

    sharp = calibration.error_spread(5 * margins, labels, ones, prompts)
    error_of_sharp = calibration.reliability(5 * margins, labels, ones).expected_error
    assert sharp.if_calibrated < 0.03 < sharp.interval.low < error_of_sharp < sharp.interval.high


def test_one_prompt_has_no_interval_of_its_error() -> None:
    two = torch.tensor([1.0, -1.0])
    spread = calibration.error_spread(two, torch.ones(2), torch.ones(2), ["a", "a"])
    assert math.isnan(spread.interval.low)
