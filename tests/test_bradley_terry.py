"""Losses and accuracies, by hand."""

import math

import pytest
import torch

from worldpm.field import bradley_terry


def loss(margin: float, probability: float = 1.0) -> float:
    return float(bradley_terry.losses_nats(torch.tensor([margin], dtype=torch.float64), torch.tensor([probability], dtype=torch.float64)))


def test_equal_rewards_cost_ln_2_whatever_the_label() -> None:
    assert loss(0.0) == pytest.approx(math.log(2))
    assert loss(0.0, 0.7) == pytest.approx(math.log(2))


def test_a_margin_of_ln_3_is_a_probability_of_three_quarters() -> None:
    assert loss(math.log(3)) == pytest.approx(-math.log(0.75))
    assert loss(-math.log(3)) == pytest.approx(-math.log(0.25))


def test_a_soft_label_mixes_both_directions() -> None:
    assert loss(math.log(3), 0.8) == pytest.approx(-0.8 * math.log(0.75) - 0.2 * math.log(0.25))


def test_a_huge_wrong_margin_costs_itself_and_stays_finite() -> None:
    assert loss(-1000.0) == pytest.approx(1000.0)


def test_swapping_a_pair_negates_its_margin_and_shifting_every_reward_changes_nothing() -> None:
    rewards, chosen, rejected = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([0, 1]), torch.tensor([2, 0])
    margins = bradley_terry.margins(rewards, chosen, rejected)
    assert margins.tolist() == [1.5, 1.5]
    assert bradley_terry.margins(rewards, rejected, chosen).tolist() == [-1.5, -1.5]
    assert torch.equal(bradley_terry.margins(rewards + 8, chosen, rejected), margins)


def test_a_tie_counts_half() -> None:
    assert bradley_terry.pair_credits(torch.tensor([0.1, -0.1, 0.0])).tolist() == [1.0, 0.0, 0.5]


def test_a_nan_margin_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 margins are NaN"):
        bradley_terry.pair_credits(torch.tensor([1.0, math.nan]))


def test_a_thread_of_many_pairs_counts_as_one() -> None:
    credit, weights = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3])
    assert bradley_terry.weighted_mean(credit, weights) == pytest.approx(0.5)


def test_a_mean_over_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 pairs"):
        bradley_terry.weighted_mean(torch.tensor([]), torch.tensor([]))
