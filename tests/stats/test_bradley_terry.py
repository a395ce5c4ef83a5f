"""Losses and accuracies, by hand."""

import math
from typing import Literal

import pytest
import torch

from worldpm.stats import bradley_terry
from worldpm.stats.bradley_terry import Objective, Pairs

LOSSES: tuple[Literal["bradley-terry", "plackett-luce"], ...] = ("bradley-terry", "plackett-luce")


def loss(margin: float, probability: float = 1.0) -> float:
    return float(
        bradley_terry.losses_nats(
            torch.tensor([margin], dtype=torch.float64),
            torch.tensor([probability], dtype=torch.float64),
        )
    )


def test_equal_rewards_cost_ln_2_with_any_label() -> None:
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
    rewards = torch.tensor([0.5, 2.0, -1.0])
    chosen, rejected = torch.tensor([0, 1]), torch.tensor([2, 0])

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


def pairs(*rows: tuple[int, int, float, float, float]) -> Pairs:
    chosen, rejected, *numbers = zip(*rows, strict=True)
    return Pairs(
        torch.tensor(chosen), torch.tensor(rejected), *(torch.tensor(values) for values in numbers)
    )


def test_the_objective_of_a_row_is_the_weighted_sum_of_its_pairs_losses() -> None:
    rewards = torch.tensor([math.log(3), 0.0])  # P(first over second) = 3/4
    nats = bradley_terry.objective_nats(
        rewards, pairs((0, 1, 1.0, 1.0, 0.5), (1, 0, 1.0, 1.0, 2.0)), Objective()
    )
    assert float(nats) == pytest.approx(0.5 * math.log(4 / 3) + 2 * math.log(4))


def test_a_target_margin_grows_with_the_logarithm_of_the_strength() -> None:
    assert bradley_terry.target_margins(
        torch.tensor([math.e - 1, math.e**2 - 1]), 0.5
    ).tolist() == pytest.approx([0.5, 1.0])
    rewards = torch.tensor([1.0, 0.0])  # the margin is just the target: a coin flip
    nats = bradley_terry.objective_nats(
        rewards, pairs((0, 1, math.e - 1, 1.0, 1.0)), Objective(target_margin=1.0)
    )
    assert float(nats) == pytest.approx(math.log(2))


def test_label_smoothing_makes_a_share_of_the_labels_random() -> None:
    assert float(bradley_terry.smoothed(torch.tensor(1.0), 0.2)) == pytest.approx(0.9)
    nats = bradley_terry.objective_nats(
        torch.tensor([math.log(3), 0.0]),
        pairs((0, 1, 1.0, 1.0, 1.0)),
        Objective(label_smoothing=0.2),
    )
    assert float(nats) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def test_centring_costs_the_square_of_the_sum_of_the_two_rewards() -> None:
    row = pairs((0, 1, 1.0, 1.0, 0.5))
    plain, centred = (
        bradley_terry.objective_nats(torch.tensor([2.0, 1.0]), row, Objective(centring=c))
        for c in (0.0, 0.01)
    )
    assert float(centred - plain) == pytest.approx(0.5 * 0.01 * 9)


def test_plackett_luce_of_a_ranking_is_the_product_of_its_stages() -> None:
    # ranked 2, 1, 0: 5/10, then 3/5
    rewards = torch.tensor([math.log(2), math.log(3), math.log(5)])
    row = pairs((2, 1, 1.0, 1.0, 1.0), (2, 0, 1.0, 1.0, 1.0), (1, 0, 1.0, 1.0, 2.0))
    nats = bradley_terry.objective_nats(rewards, row, Objective(loss="plackett-luce"))
    assert float(nats) == pytest.approx(2 * math.log(10 / 5) + 2 * math.log(5 / 3))


def test_plackett_luce_of_two_responses_is_bradley_terry() -> None:
    row = pairs((1, 0, 1.0, 1.0, 0.7))
    rewards = torch.tensor([0.3, -200.0])
    pairwise, listwise = (
        float(bradley_terry.objective_nats(rewards, row, Objective(loss=loss))) for loss in LOSSES
    )
    assert pairwise == pytest.approx(listwise)


def test_a_pair_listed_twice_is_compared_once_and_weighs_twice() -> None:
    rewards = torch.tensor([0.3, -0.2])
    listed_twice = pairs((0, 1, 1.0, 1.0, 1.0), (0, 1, 1.0, 1.0, 1.0))
    double_weight = pairs((0, 1, 1.0, 1.0, 2.0))

    for loss in LOSSES:
        for row in (listed_twice, double_weight):
            nats = float(bradley_terry.objective_nats(rewards, row, Objective(loss=loss)))
            assert nats == pytest.approx(2 * math.log(1 + math.exp(-0.5)))


def test_responses_that_tie_are_not_compared_by_plackett_luce() -> None:
    rewards = torch.tensor([0.0, 0.0, 0.0])  # 0 and 1 tie, both above 2
    nats = bradley_terry.objective_nats(
        rewards,
        pairs((0, 2, 1.0, 1.0, 1.0), (1, 2, 1.0, 1.0, 1.0)),
        Objective(loss="plackett-luce"),
    )
    assert float(nats) == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize(
    "objective",
    [Objective(), Objective("plackett-luce"), Objective(target_margin=0.3, label_smoothing=0.1)],
)
def test_a_shift_of_all_rewards_changes_no_loss(objective: Objective) -> None:
    row = pairs((2, 1, 4.0, 1.0, 1.0), (2, 0, 3.0, 0.9, 0.5), (1, 0, 1.0, 0.8, 2.0))
    rewards = torch.tensor([0.3, -1.2, 2.0])
    nats, shifted = (
        float(bradley_terry.objective_nats(rewards + shift, row, objective)) for shift in (0.0, 7.0)
    )
    assert nats == pytest.approx(shifted, rel=1e-5)
