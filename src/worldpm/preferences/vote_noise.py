"""How far votes can be trusted: chance, and the head start of early answers, as a probability for
each pair.

An answer's up votes are taken as drawn from a Poisson law whose mean is its worth times its
exposure. Exposure is what a site's threads say of dates: `exp(a log(days since it was written) + b
log(1 + hours it came after the first))`, fitted within threads, so that a thread's popularity plays
no part. Worth varies between the answers of a thread as a gamma law does, whose spread is fitted
too. Then the votes of two answers give the probability that the one of more votes is truly the
better one.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import betainc

from worldpm.records import Answer

Array = NDArray[np.float64]

VOTES_AT_MOST = 5.0
"""A thread of more votes counts in the fit as one of so many: the votes of one crowd are no
independent draws."""
RIDGE = 1.0
LEAST_SPREAD, MOST_SPREAD = 0.05, 10.0
HOUR, DAY = 3600.0, 86_400.0


class Dated(NamedTuple):
    """What the fit needs of a thread: its answers' votes and dates."""

    votes: Array
    created: Array
    """Seconds since the epoch."""

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Self:
        """Of a thread's answers."""
        return cls(
            np.array([answer.votes for answer in answers], dtype=np.float64),
            seconds([answer.created for answer in answers]),
        )


class VoteNoise(NamedTuple):
    """What a site's votes say of chance and head start."""

    age_power: float
    """Exposure grows with this power of an answer's age, relative to that of the thread's first
    answer."""
    delay_power: float
    """And with this power of one plus the hours that it came after the first answer; below 0 where
    early answers have a head start."""
    spread: float
    """Squared coefficient of variation of worth within a thread."""
    now: float
    """The date of the dump, in seconds since the epoch: that of its last answer."""

    def probabilities(
        self, answers: Sequence[Answer], pairs: Sequence[tuple[int, int]]
    ) -> list[float]:
        """That the first answer of each pair is truly the better one, 0.5 to 1: no pair is turned
        round. Votes below 0 count as 0."""
        if not pairs:
            return []
        thread = Dated.of(answers)
        exposures = np.exp(
            _features(thread, self.now) @ np.array([self.age_power, self.delay_power])
        )
        ups = np.maximum(thread.votes, 0)
        shape = 1 / self.spread
        rates = shape * exposures.sum() / max(float(ups.sum()), 1.0) + exposures
        chosen, rejected = np.array(pairs).T
        # of two gamma variables X / b and Y / d, the share Y / (X + Y) follows a beta law
        shares = rates[rejected] / (rates[chosen] + rates[rejected])
        found: list[float] = np.maximum(
            0.5, betainc(shape + ups[rejected], shape + ups[chosen], shares)
        ).tolist()
        return found


def seconds(dates: Sequence[datetime]) -> Array:
    """Dates as seconds since the epoch."""
    return np.array([date.timestamp() for date in dates], dtype=np.float64)


def fit(threads: Iterable[Dated]) -> VoteNoise:
    """The noise of a site's votes; without a thread of two answers and a vote, no head start and a
    spread of 1."""
    known = [
        thread
        for thread in threads
        if len(thread.votes) > 1 and np.maximum(thread.votes, 0).sum() > 0
    ]
    if not known:
        return VoteNoise(0.0, 0.0, 1.0, 0.0)
    now = max(float(thread.created.max()) for thread in known)
    answers = _Answers.of(known, now)
    found = minimize(_loss, np.zeros(2), args=(answers,), jac=True, method="L-BFGS-B").x
    return VoteNoise(
        float(found[0]), float(found[1]), _spread(answers, np.exp(answers.features @ found)), now
    )


class _Answers(NamedTuple):
    """All answers of many threads, one thread after the other."""

    features: Array
    ups: Array
    starts: NDArray[np.intp]
    thread: NDArray[np.intp]
    """Of each answer."""
    totals: Array
    """Of each thread, its up votes."""

    @classmethod
    def of(cls, threads: Sequence[Dated], now: float) -> Self:
        lengths = np.array([len(thread.votes) for thread in threads])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        ups = np.maximum(np.concatenate([thread.votes for thread in threads]), 0)
        features = np.concatenate([_features(thread, now) for thread in threads])
        return cls(
            features,
            ups,
            starts,
            np.repeat(np.arange(len(threads)), lengths),
            np.add.reduceat(ups, starts),
        )

    def sums(self, values: Array) -> Array:
        """Of each thread."""
        found: Array = np.add.reduceat(values, self.starts)
        return found

    def shares(self, exposures: Array) -> Array:
        """Of each answer in its thread's exposures."""
        return exposures / self.sums(exposures)[self.thread]


def _spread(answers: _Answers, exposures: Array) -> float:
    """Of worth, from exposures and up votes, by moments: given a thread's total N, the votes of K
    answers of gamma worths, whose shape is 1 / spread, scatter `(N - 1) / (1 + K shape)` times more
    around their expected shares than draws of a multinomial law.
    """
    share, total = answers.shares(exposures), answers.totals
    drawn = total * (1 - answers.sums(share**2))
    excess = answers.sums((answers.ups - total[answers.thread] * share) ** 2) - drawn
    scale, count = drawn * (total - 1), answers.sums(np.ones_like(share))

    def too_wide(log_spread: float) -> float:
        return float((scale / (1 + count * np.exp(-log_spread))).sum() - excess.sum())

    ends = np.log(LEAST_SPREAD), np.log(MOST_SPREAD)
    if too_wide(ends[0]) >= 0 or too_wide(ends[1]) <= 0:
        return LEAST_SPREAD if too_wide(ends[0]) >= 0 else MOST_SPREAD
    return float(np.exp(brentq(too_wide, *ends)))


def _features(thread: Dated, now: float) -> Array:
    """Log age and log delay of each answer, relative to the first one; shape `(answers, 2)`."""
    first = thread.created.min()
    age = np.log(np.maximum(now - thread.created, DAY)) - np.log(max(now - first, DAY))
    return np.stack([age, np.log1p((thread.created - first) / HOUR)], axis=1)


def _loss(powers: Array, answers: _Answers) -> tuple[float, Array]:
    """The multinomial loss of how a thread's votes fall on its answers, and its gradient."""
    logits = np.einsum(
        "af,f->a", answers.features, powers
    )  # not BLAS, whose sums depend on the number of threads
    logits = logits - np.maximum.reduceat(logits, answers.starts)[answers.thread]
    share = answers.shares(np.exp(logits))
    counted = np.minimum(1.0, VOTES_AT_MOST / answers.totals)[answers.thread]
    loss = RIDGE * float(powers @ powers) - float(np.sum(counted * answers.ups * np.log(share)))
    residual = counted * (answers.ups - answers.totals[answers.thread] * share)
    return loss, 2 * RIDGE * powers - np.einsum("af,a->f", answers.features, residual)
