"""Votes become preferences: which pairs a thread gives, how strong they are, how sure, and what
each counts.

Strength is the gap of votes (under `askell` of its scores). Probability is that the chosen answer
is truly the better one, 0.5 to 1. Weight is without unit: the weights of a thread add up to 1, so
that a thread counts the same however many answers it has.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from worldpm.options.group import Rule
from worldpm.preferences.vote_noise import VoteNoise
from worldpm.records import Answer, Preference

SHP_RATIO = 2.0
"""Votes of the chosen over those of the rejected, each at least 1, that `shp` asks for."""
CLOSE, TOO_CLOSE = 1.5, 1.2
"""A pair whose votes are both above 0 is close where the larger is at most CLOSE times the smaller:
controversial, or below TOO_CLOSE too close to say anything."""

Pair = tuple[int, int, float]
"""Chosen, rejected, strength."""


def preferences(
    answers: Sequence[Answer], *, rule: Rule, seed: Sequence[int], noise: VoteNoise | None = None
) -> tuple[Preference, ...]:
    """The preferences of one thread's answers; empty where the rule finds none. Equal votes never
    make a pair.

    `default`: every pair of different votes, each with weight 1 / number of pairs, and the
    probability that `noise` gives, 1 without it. `worldpm`: one such pair, drawn by `seed`; the
    accepted answer counts one vote more. `askell`: every pair of different scores, `round(log2(1 +
    votes))`, one more for the accepted answer, -1 below 0 votes. `shp`: pairs whose chosen answer
    is not the earlier one and has twice the votes of the other, or more.

    Source: WorldPM, arXiv 2505.10527, section 3.1.1 and appendix A.2; Askell et al., arXiv
    2112.00861, section 4.1; Ethayarajh et al., arXiv 2110.08420, appendix A, and the card of
    stanfordnlp/SHP.
    """
    if rule == "worldpm":
        drawn = _pairs([answer.votes + answer.accepted for answer in answers])
        return _alike(
            [drawn[int(np.random.default_rng(list(seed)).integers(len(drawn)))]] if drawn else []
        )
    if rule == "askell":
        return _alike(_pairs([askell_score(answer) for answer in answers]))
    pairs = _pairs([answer.votes for answer in answers])
    if rule == "shp":
        return _alike(
            [pair for pair in pairs if _later_and_twice(answers[pair[0]], answers[pair[1]])]
        )
    sure = (
        noise.probabilities(answers, [(i, j) for i, j, _ in pairs]) if noise else [1.0] * len(pairs)
    )
    return tuple(
        Preference(i, j, gap, p, 1 / len(pairs)) for (i, j, gap), p in zip(pairs, sure, strict=True)
    )


def askell_score(answer: Answer) -> int:
    """An answer's score by Askell's rule."""
    return -1 if answer.votes < 0 else round(math.log2(1 + answer.votes)) + answer.accepted


def _later_and_twice(chosen: Answer, rejected: Answer) -> bool:
    return chosen.created >= rejected.created and max(chosen.votes, 1) >= SHP_RATIO * max(
        rejected.votes, 1
    )


def _alike(pairs: Sequence[Pair]) -> tuple[Preference, ...]:
    return tuple(Preference(i, j, strength, weight=1 / len(pairs)) for i, j, strength in pairs)


def _pairs(votes: Sequence[int]) -> list[Pair]:
    found = []
    for i, j in combinations(range(len(votes)), 2):
        if votes[i] != votes[j]:
            chosen, rejected = (i, j) if votes[i] > votes[j] else (j, i)
            found.append((chosen, rejected, float(votes[chosen] - votes[rejected])))
    return found


def closeness(
    answers: Sequence[Answer], preference: Preference
) -> Literal["clear", "controversial", "too close"]:
    """How close the votes of a pair are; `clear` where the rejected answer has none."""
    more, fewer = answers[preference.chosen].votes, answers[preference.rejected].votes
    if fewer <= 0 or more > CLOSE * fewer:
        return "clear"
    return "controversial" if more >= TOO_CLOSE * fewer else "too close"


def spread_sample(
    answers: Sequence[Answer], *, at_most: int, seed: Sequence[int]
) -> tuple[Answer, ...]:
    """At most that many answers, spread evenly over the ranks of their votes, in their given order.

    The answers, sorted by votes, are cut into `at_most` runs of equal size, and one of each run is
    drawn.
    """
    if len(answers) <= at_most:
        return tuple(answers)
    generator = np.random.default_rng(list(seed))
    ranked = sorted(range(len(answers)), key=lambda i: (answers[i].votes, i))
    runs = np.array_split(np.array(ranked), at_most)
    return tuple(answers[i] for i in sorted(int(generator.choice(run)) for run in runs))
