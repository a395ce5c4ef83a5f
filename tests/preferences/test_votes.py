"""Votes to preferences."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tests.conftest import thread_of
from worldpm.preferences import vote_noise, votes
from worldpm.preferences.vote_noise import VoteNoise
from worldpm.records import Answer, Preference


def test_every_pair_of_different_votes_counts_and_a_thread_counts_once() -> None:
    preferences = votes.preferences(thread_of(5, 2, 2).responses, rule="default", seed=[0])
    assert [(p.chosen, p.rejected, p.strength, p.weight) for p in preferences] == [
        (0, 1, 3.0, 0.5),
        (0, 2, 3.0, 0.5),
    ]


def test_a_negative_answer_loses_to_a_neutral_one() -> None:
    (preference,) = votes.preferences(thread_of(-4, 0).responses, rule="default", seed=[0])
    assert (preference.chosen, preference.rejected, preference.strength) == (1, 0, 4.0)


def test_equal_votes_make_no_preference() -> None:
    assert votes.preferences(thread_of(2, 2).responses, rule="default", seed=[0]) == ()


def test_the_order_of_the_answers_does_not_matter() -> None:
    answers = thread_of(5, 1, -3, 2).responses

    def named(order: list[int]) -> set[tuple[str, str, float]]:
        moved = [answers[i] for i in order]
        preferences = votes.preferences(moved, rule="default", seed=[0])
        return {
            (moved[p.chosen].response_id, moved[p.rejected].response_id, p.strength)
            for p in preferences
        }

    assert named([0, 1, 2, 3]) == named([3, 1, 0, 2])


def test_the_papers_rule_draws_one_pair_and_counts_acceptance_as_a_vote() -> None:
    answers = thread_of(2, 2).responses
    accepted = (
        answers[0],
        type(answers[1])(
            **{**{n: getattr(answers[1], n) for n in answers[1].__slots__}, "accepted": True}
        ),
    )
    (preference,) = votes.preferences(accepted, rule="worldpm", seed=[7])
    assert (preference.chosen, preference.rejected, preference.strength, preference.weight) == (
        1,
        0,
        1.0,
        1.0,
    )


def test_the_papers_rule_draws_every_pair_of_a_thread_equally_often() -> None:
    answers = thread_of(3, 2, 1).responses
    drawn = [votes.preferences(answers, rule="worldpm", seed=[seed])[0] for seed in range(600)]
    counts = [
        sum((p.chosen, p.rejected) == pair for p in drawn) for pair in ((0, 1), (0, 2), (1, 2))
    ]
    assert sum(counts) == 600
    assert all(150 < count < 250 for count in counts)


def test_a_large_thread_is_sampled_over_the_whole_range_of_votes() -> None:
    answers = thread_of(*range(100)).responses
    sample = votes.spread_sample(answers, at_most=4, seed=[1])
    assert len(sample) == 4
    assert [answer.votes // 25 for answer in sample] == [0, 1, 2, 3]
    assert sample == votes.spread_sample(answers, at_most=4, seed=[1])


@pytest.mark.parametrize("count", [2, 16])
def test_a_small_thread_is_kept_whole(count: int) -> None:
    answers = thread_of(*range(count)).responses
    assert votes.spread_sample(answers, at_most=16, seed=[1]) == answers


def dated(votes_: Sequence[int], days: Sequence[int]) -> tuple[Answer, ...]:
    """Answers with these votes, written these numbers of days after the first of January."""
    answers = thread_of(*votes_).responses
    return tuple(
        replace(a, created=datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=day))
        for a, day in zip(answers, days, strict=True)
    )


def accepted(answers: Sequence[Answer], index: int) -> tuple[Answer, ...]:
    return tuple(replace(a, accepted=i == index) for i, a in enumerate(answers))


def test_askells_scores_by_hand() -> None:
    scores = [
        votes.askell_score(answer) for answer in accepted(thread_of(-1, 0, 1, 2, 7, 7).responses, 5)
    ]
    assert scores == [-1, 0, 1, 2, 3, 4]
    preferences = votes.preferences(
        thread_of(7, 8, 0).responses, rule="askell", seed=[0]
    )  # 7 and 8 both score 3
    assert [(p.chosen, p.rejected, p.strength) for p in preferences] == [(0, 2, 3.0), (1, 2, 3.0)]


def test_shp_takes_only_pairs_whose_better_answer_is_the_later_and_has_twice_the_votes() -> None:
    preferences = votes.preferences(dated([4, 9, 2, 5], [0, 1, 2, 3]), rule="shp", seed=[0])
    assert [(p.chosen, p.rejected) for p in preferences] == [(1, 0), (3, 2)]
    assert [p.weight for p in preferences] == [0.5, 0.5]


def test_equal_exposure_and_equal_votes_have_a_probability_of_one_half() -> None:
    noise = VoteNoise(
        age_power=0.0, delay_power=0.0, spread=0.5, now=datetime(2021, 1, 1, tzinfo=UTC).timestamp()
    )
    answers = dated([3, 3], [0, 0])
    assert noise.probabilities(answers, [(0, 1), (1, 0)]) == pytest.approx([0.5, 0.5])


def test_a_wider_gap_is_more_certain_and_no_pair_is_reversed() -> None:
    noise = VoteNoise(
        age_power=1.0,
        delay_power=-0.5,
        spread=0.5,
        now=datetime(2020, 6, 1, tzinfo=UTC).timestamp(),
    )
    gaps = [noise.probabilities(dated([n, 1], [0, 0]), [(0, 1)])[0] for n in (2, 4, 10, 50)]
    assert gaps == sorted(gaps)
    assert 0.5 < gaps[0] < 0.75 < gaps[-1] < 1

    early, late = (
        noise.probabilities(dated([5, 4], days), [(0, 1)])[0] for days in ([0, 30], [30, 0])
    )
    assert early == 0.5  # one vote more is not evidence for an answer that had more time
    assert late > gaps[0]


def test_a_planted_head_start_is_estimated_and_probabilities_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    threads, truth = [], []
    for _ in range(3000):
        delays = np.sort(np.concatenate([[0], generator.exponential(200, 2)]))
        worth = generator.gamma(2.0, 1.0, 3)
        rates = worth * (1 + delays) ** -0.3 * 3
        threads.append(
            vote_noise.Dated(generator.poisson(rates).astype(float), 1e9 + 3600 * delays)
        )
        truth.append(worth)
    noise = vote_noise.fit([*threads, vote_noise.Dated(np.array([1.0, 0.0]), np.array([1e9, 3e9]))])
    assert noise.delay_power == pytest.approx(-0.3, abs=0.05)
    assert noise.spread == pytest.approx(0.5, rel=0.3)

    said, right = [], []
    for thread, worth in zip(threads, truth, strict=True):
        answers = tuple(
            replace(a, created=datetime.fromtimestamp(when, UTC))
            for a, when in zip(
                thread_of(*map(int, thread.votes)).responses, thread.created, strict=True
            )
        )
        for p in votes.preferences(answers, rule="default", seed=[0], noise=noise):
            said.append(p.probability)
            right.append(worth[p.chosen] > worth[p.rejected])
    for low, high in ((0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0)):
        inside = [(s, r) for s, r in zip(said, right, strict=True) if low <= s < high]
        assert np.mean([r for _, r in inside]) == pytest.approx(
            np.mean([s for s, _ in inside]), abs=0.07
        )


def test_a_site_without_votes_has_no_head_start() -> None:
    assert vote_noise.fit([]).delay_power == 0
    assert (
        vote_noise.fit([vote_noise.Dated(np.array([0.0, -2.0]), np.array([1.0, 2.0]))]).age_power
        == 0
    )


@pytest.mark.parametrize(
    ("pair", "closeness"),
    [
        ((5, 4), "controversial"),
        ((6, 4), "controversial"),
        ((7, 4), "clear"),
        ((7, 6), "too close"),
        ((1, 0), "clear"),
    ],
)
def test_close_votes(pair: tuple[int, int], closeness: str) -> None:
    assert votes.closeness(thread_of(*pair).responses, Preference(0, 1, 1.0)) == closeness
