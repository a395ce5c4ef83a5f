"""Votes to preferences."""

import pytest

from tests.conftest import thread_of
from worldpm.parts import votes


def test_every_pair_of_different_votes_counts_and_a_thread_counts_once() -> None:
    found = votes.preferences(thread_of(5, 2, 2).responses, rule="default", seed=[0])
    assert [(p.chosen, p.rejected, p.strength, p.weight) for p in found] == [(0, 1, 3.0, 0.5), (0, 2, 3.0, 0.5)]


def test_a_negative_answer_loses_to_a_neutral_one() -> None:
    (found,) = votes.preferences(thread_of(-4, 0).responses, rule="default", seed=[0])
    assert (found.chosen, found.rejected, found.strength) == (1, 0, 4.0)


def test_equal_votes_make_no_preference() -> None:
    assert votes.preferences(thread_of(2, 2).responses, rule="default", seed=[0]) == ()


def test_the_order_of_the_answers_does_not_matter() -> None:
    answers = thread_of(5, 1, -3, 2).responses

    def named(order: list[int]) -> set[tuple[str, str, float]]:
        moved = [answers[i] for i in order]
        found = votes.preferences(moved, rule="default", seed=[0])
        return {(moved[p.chosen].response_id, moved[p.rejected].response_id, p.strength) for p in found}

    assert named([0, 1, 2, 3]) == named([3, 1, 0, 2])


def test_the_paper_takes_one_pair_and_counts_acceptance_as_a_vote() -> None:
    answers = thread_of(2, 2).responses
    accepted = (answers[0], type(answers[1])(**{**{n: getattr(answers[1], n) for n in answers[1].__slots__}, "accepted": True}))
    (found,) = votes.preferences(accepted, rule="worldpm", seed=[7])
    assert (found.chosen, found.rejected, found.strength, found.weight) == (1, 0, 1.0, 1.0)


def test_the_paper_draws_every_pair_of_a_thread_equally_often() -> None:
    answers = thread_of(3, 2, 1).responses
    drawn = [votes.preferences(answers, rule="worldpm", seed=[seed])[0] for seed in range(600)]
    counts = [sum((p.chosen, p.rejected) == pair for p in drawn) for pair in ((0, 1), (0, 2), (1, 2))]
    assert sum(counts) == 600
    assert all(150 < count < 250 for count in counts)


def test_a_large_thread_is_sampled_over_the_whole_range_of_votes() -> None:
    answers = thread_of(*range(100)).responses
    kept = votes.spread_sample(answers, at_most=4, seed=[1])
    assert len(kept) == 4
    assert [answer.votes // 25 for answer in kept] == [0, 1, 2, 3]
    assert kept == votes.spread_sample(answers, at_most=4, seed=[1])


@pytest.mark.parametrize("count", [2, 16])
def test_a_small_thread_is_kept_whole(count: int) -> None:
    answers = thread_of(*range(count)).responses
    assert votes.spread_sample(answers, at_most=16, seed=[1]) == answers
