"""Votes become preferences: which pairs a thread gives, how strong they are and what each counts.

Strength is the vote gap, in votes. Weight is without unit: the weights of a thread add up to 1, so that a thread counts
the same however many answers it has.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from worldpm.field.records import Answer, Preference

Rule = Literal["default", "worldpm"]


def preferences(answers: Sequence[Answer], *, rule: Rule, seed: Sequence[int]) -> tuple[Preference, ...]:
    """The preferences of one thread's answers; empty where no two differ in votes. Equal votes never make a pair.

    `default`: every pair of different votes, each with weight 1 / number of pairs.
    `worldpm`: one such pair, drawn by `seed`; the accepted answer counts one vote more.
    Source: WorldPM, arXiv 2505.10527, section 3.1.1 and appendix A.2.
    """
    if rule == "default":
        pairs = _pairs([answer.votes for answer in answers])
        return tuple(Preference(i, j, strength, weight=1 / len(pairs)) for i, j, strength in pairs)
    pairs = _pairs([answer.votes + answer.accepted for answer in answers])
    if not pairs:
        return ()
    i, j, strength = pairs[int(np.random.default_rng(list(seed)).integers(len(pairs)))]
    return (Preference(i, j, strength),)


def _pairs(votes: Sequence[int]) -> list[tuple[int, int, float]]:
    found = []
    for i, j in combinations(range(len(votes)), 2):
        if votes[i] != votes[j]:
            chosen, rejected = (i, j) if votes[i] > votes[j] else (j, i)
            found.append((chosen, rejected, float(votes[chosen] - votes[rejected])))
    return found


def spread_sample(answers: Sequence[Answer], *, at_most: int, seed: Sequence[int]) -> tuple[Answer, ...]:
    """At most that many answers, spread evenly over the ranks of their votes, in their given order.

    The answers, sorted by votes, are cut into `at_most` runs of equal size, and one of each run is drawn.
    """
    if len(answers) <= at_most:
        return tuple(answers)
    generator = np.random.default_rng(list(seed))
    ranked = sorted(range(len(answers)), key=lambda i: (answers[i].votes, i))
    runs = np.array_split(np.array(ranked), at_most)
    return tuple(answers[i] for i in sorted(int(generator.choice(run)) for run in runs))
