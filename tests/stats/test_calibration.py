"""Temperatures and reliability, by hand and by what was planted."""

import math

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
    found = calibration.temperature(margins, ones, ones)
    assert found == pytest.approx(scale, rel=0.05)
    assert calibration.reliability(margins / found, ones, ones).expected_error < 0.01


def test_thirty_pairs_without_a_fault_make_none_certain() -> None:
    ones = torch.ones(30, dtype=torch.float64)
    found = calibration.temperature(2 * ones, ones, ones)
    assert found == pytest.approx(2 / math.log(31), rel=1e-4)  # the chance 31 of 32: sigmoid(ln 31)


def test_one_margin_of_another_size_is_not_the_temperature() -> None:
    margins = drawn(1.0, 1000)
    margins[0] = 1e6
    ones = torch.ones(1000, dtype=torch.float64)
    assert calibration.temperature(margins, ones, ones) == pytest.approx(1.0, rel=0.1)


def test_margins_of_nothing_have_the_temperature_one() -> None:
    assert calibration.temperature(torch.zeros(3), torch.ones(3), torch.ones(3)) == 1.0


def test_reliability_by_hand() -> None:
    # three pairs called with sigmoid(2) = 0.88 of which two are right, and one tie
    found = calibration.reliability(
        torch.tensor([2.0, 2.0, -2.0, 0.0]), torch.ones(4), torch.ones(4)
    )
    said = 1 / (1 + math.exp(-2))
    assert [(one.pairs, one.right) for one in found.bins] == [(1, 0.5), (3, pytest.approx(2 / 3))]
    assert found.expected_error == pytest.approx(3 / 4 * abs(said - 2 / 3))


def test_what_is_called_certain_stays_in_the_last_bin() -> None:
    assert (
        calibration.reliability(torch.tensor([1e4]), torch.ones(1), torch.ones(1))
        .bins[0]
        .probability
        == 1.0
    )


def test_the_pick_of_n_by_hand() -> None:
    assert selection.expected_picks([1, 2, 3], [0, 1, 5]) == pytest.approx([2, (1 + 5 + 5) / 3, 5])


def test_ties_share_the_pick() -> None:
    assert selection.expected_picks([1, 1, 3], [0, 1, 5]) == pytest.approx(
        [2, (0.5 + 5 + 5) / 3, 5]
    )
    assert selection.expected_picks([7, 7], [0, 1]) == pytest.approx([0.5, 0.5])


def test_the_pick_is_the_mean_over_all_subsets() -> None:
    from itertools import combinations

    rewards, qualities = [0.3, -1.0, 2.0, 0.1, 0.7], [1.0, 4.0, 0.0, 2.0, 9.0]
    for n in range(1, 6):
        picks = [
            qualities[max(subset, key=rewards.__getitem__)] for subset in combinations(range(5), n)
        ]
        assert selection.expected_picks(rewards, qualities)[n - 1] == pytest.approx(
            sum(picks) / len(picks)
        )


def test_unscored_responses_cannot_be_picked_from() -> None:
    with pytest.raises(ValueError, match="1 of them NaN"):
        selection.expected_picks([1.0, float("nan")], [0, 1])


def test_the_divergence_of_the_best_of_n() -> None:
    assert selection.kl_nats(1) == 0
    assert selection.kl_nats(4) == pytest.approx(math.log(4) - 0.75)
