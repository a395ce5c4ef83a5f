"""Preferences from votes: the pairs of a thread, with their strengths, probabilities and weights.

Strength is the gap of votes (under `askell`, of scores). Probability, 0.5 to 1, is that of the
chosen answer being truly better. The weights of a thread add up to 1, so that a thread counts the
same for any number of answers.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from worldpm.options.group import Rule
from worldpm.preferences.vote_noise import VoteNoise
from worldpm.records import Answer, Preference

SHP_RATIO = 2.0
"""Least ratio of chosen to rejected votes under `shp`, where votes below 1 count as 1."""
CLOSE, TOO_CLOSE = 1.5, 1.2
"""Ratios of votes above 0, the larger over the smaller. A pair of at most CLOSE is controversial,
and a pair below TOO_CLOSE shows no preference."""


class _Pair(NamedTuple):
    """Two answers of different votes, by their indices."""

    chosen: int
    rejected: int
    strength: float
    """Gap of votes or scores, above 0."""


def preferences(
    answers: Sequence[Answer], *, rule: Rule, seed: Sequence[int], noise: VoteNoise | None = None
) -> tuple[Preference, ...]:
    """The preferences of one thread's answers; empty if the rule finds none. Equal votes never make
    a pair.

    `default`: every pair of different votes, each with weight 1 / number of pairs, and the
    probability that `noise` gives, or 1 without it. `worldpm`: one such pair, drawn by `seed`; the
    accepted answer gets one more vote. `askell`: every pair of different scores, `round(log2(1 +
    votes))`, one more for the accepted answer, -1 below 0 votes. `shp`: pairs whose chosen answer
    is not the earlier one and has at least twice the votes of the other.

    Source: WorldPM, arXiv 2505.10527, section 3.1.1 and appendix A.2; Askell et al., arXiv
    2112.00861, section 4.1; Ethayarajh et al., arXiv 2110.08420, appendix A, and the card of
    stanfordnlp/SHP.
    """
    if rule == "worldpm":
        pairs = _pairs([answer.votes + answer.accepted for answer in answers])
        return _sure(_draw_one(pairs, seed))
    if rule == "askell":
        return _sure(_pairs([askell_score(answer) for answer in answers]))

    pairs = _pairs([answer.votes for answer in answers])
    if rule == "shp":
        return _sure([pair for pair in pairs if _later_with_twice_the_votes(answers, pair)])
    if noise is None:
        return _sure(pairs)

    probabilities = noise.probabilities(answers, [(pair.chosen, pair.rejected) for pair in pairs])
    return tuple(
        Preference(*pair, probability=probability, weight=1 / len(pairs))
        for pair, probability in zip(pairs, probabilities, strict=True)
    )


def askell_score(answer: Answer) -> int:
    """An answer's score by Askell's rule."""
    return -1 if answer.votes < 0 else round(math.log2(1 + answer.votes)) + answer.accepted


def _draw_one(pairs: Sequence[_Pair], seed: Sequence[int]) -> Sequence[_Pair]:
    if not pairs:
        return []
    return [pairs[int(np.random.default_rng(list(seed)).integers(len(pairs)))]]


def _later_with_twice_the_votes(answers: Sequence[Answer], pair: _Pair) -> bool:
    chosen, rejected = answers[pair.chosen], answers[pair.rejected]
    # At least 1, because ratios of votes of 0 and below have no meaning.
    twice_as_many = max(chosen.votes, 1) >= SHP_RATIO * max(rejected.votes, 1)
    return chosen.created >= rejected.created and twice_as_many


def _sure(pairs: Sequence[_Pair]) -> tuple[Preference, ...]:
    """Preferences of probability 1, with equal weights."""
    return tuple(Preference(*pair, weight=1 / len(pairs)) for pair in pairs)


def _pairs(votes: Sequence[int]) -> list[_Pair]:
    """Every pair of different votes."""
    pairs = []
    for i, j in combinations(range(len(votes)), 2):
        if votes[i] != votes[j]:
            chosen, rejected = (i, j) if votes[i] > votes[j] else (j, i)
            pairs.append(_Pair(chosen, rejected, float(votes[chosen] - votes[rejected])))
    return pairs


def closeness(
    answers: Sequence[Answer], preference: Preference
) -> Literal["clear", "controversial", "too close"]:
    """The closeness of a pair's votes; `clear` if the rejected answer has no votes."""
    more, fewer = answers[preference.chosen].votes, answers[preference.rejected].votes

    # Without votes for the rejected answer, the ratio is undefined, and the pair is not
    # controversial.
    if fewer <= 0 or more > CLOSE * fewer:
        return "clear"
    return "controversial" if more >= TOO_CLOSE * fewer else "too close"


def spread_sample(
    answers: Sequence[Answer], *, at_most: int, seed: Sequence[int]
) -> tuple[Answer, ...]:
    """At most `at_most` answers, spread evenly over the ranks of their votes, in the given order.

    The answers, sorted by votes, are cut into `at_most` runs of equal size, and one answer of each
    run is drawn.
    """
    if len(answers) <= at_most:
        return tuple(answers)

    generator = np.random.default_rng(list(seed))
    ranked = sorted(range(len(answers)), key=lambda i: (answers[i].votes, i))
    runs = np.array_split(np.array(ranked), at_most)
    drawn = sorted(int(generator.choice(run)) for run in runs)
    return tuple(answers[index] for index in drawn)
