"""Reliability of votes: chance and the head start of early answers, as a probability for each
pair.

The up votes of an answer are modelled as Poisson draws. Their mean is the answer's worth times its
exposure. Exposure is learned from the dates of a site's threads: `exp(a log(days since it was
written) + b log(1 + hours it came after the first))`, fitted within threads, so that a thread's
popularity plays no part. The worth of a thread's answers follows a gamma law, whose spread is
fitted too. Then the votes of two answers give the probability that the one with more votes is truly
the better one.
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
"""A thread with more votes counts in the fit as if it had this number: the votes of one crowd are
not independent draws."""
RIDGE = 1.0
"""Penalty on the squared powers, in nats: a site with few threads gets powers near 0."""
LEAST_SPREAD, MOST_SPREAD = 0.05, 10.0
HOUR_SECONDS, DAY_SECONDS = 3600.0, 86_400.0


class Dated(NamedTuple):
    """The data of a thread for the fit: its answers' votes and dates."""

    votes: Array
    """Up minus down."""
    created: Array
    """Seconds since the epoch."""

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Self:
        """The data of a thread's answers."""
        return cls(
            np.array([answer.votes for answer in answers], dtype=np.float64),
            seconds([answer.created for answer in answers]),
        )


class VoteNoise(NamedTuple):
    """Chance and head start in a site's votes."""

    age_power: float
    """Exposure grows with this power of an answer's age, relative to that of the thread's first
    answer."""
    delay_power: float
    """Exposure also grows with this power of one plus the hours between the first answer and this
    one; below 0 if early answers have a head start."""
    spread: float
    """Squared coefficient of variation of worth within a thread."""
    now: float
    """The date of the dump's last answer, in seconds since the epoch."""

    def probabilities(
        self, answers: Sequence[Answer], pairs: Sequence[tuple[int, int]]
    ) -> list[float]:
        """The probability that the first answer of each pair is truly the better one, 0.5 to 1: no
        pair is reversed. Votes below 0 count as 0."""
        if not pairs:
            return []

        thread = Dated.of(answers)
        powers = np.array([self.age_power, self.delay_power])
        exposures = np.exp(_features(thread, self.now) @ powers)
        ups = np.maximum(thread.votes, 0)

        # Given its votes, the worth of an answer is a gamma variable of shape `shape + ups` and
        # rate `rates`: the gamma law is conjugate to Poisson draws.
        shape = 1 / self.spread
        rates = shape * exposures.sum() / max(float(ups.sum()), 1.0) + exposures

        # Of two gamma variables X / b and Y / d, the share Y / (X + Y) follows a beta law.
        chosen, rejected = np.array(pairs).T
        shares = rates[rejected] / (rates[chosen] + rates[rejected])
        better = betainc(shape + ups[rejected], shape + ups[chosen], shares)
        probabilities: list[float] = np.maximum(0.5, better).tolist()
        return probabilities


def seconds(dates: Sequence[datetime]) -> Array:
    """Dates as seconds since the epoch."""
    return np.array([date.timestamp() for date in dates], dtype=np.float64)


def fit(threads: Iterable[Dated]) -> VoteNoise:
    """The noise of a site's votes. Without a thread that has two answers and a vote, it has no head
    start and a spread of 1."""
    voted = [
        thread
        for thread in threads
        if len(thread.votes) > 1 and np.maximum(thread.votes, 0).sum() > 0
    ]
    if not voted:
        return VoteNoise(0.0, 0.0, 1.0, 0.0)

    now = max(float(thread.created.max()) for thread in voted)
    answers = _Answers.of(voted, now)
    fitted = minimize(_loss, np.zeros(2), args=(answers,), jac=True, method="L-BFGS-B")
    spread = _spread(answers, np.exp(answers.features @ fitted.x))
    return VoteNoise(float(fitted.x[0]), float(fitted.x[1]), spread, now)


class _Answers(NamedTuple):
    """All answers of many threads, one thread after another."""

    features: Array
    """As `_features`."""
    ups: Array
    """Up votes of each answer."""
    starts: NDArray[np.intp]
    """Index of the first answer of each thread."""
    thread: NDArray[np.intp]
    """Index of the thread of each answer."""
    totals: Array
    """Up votes of each thread."""

    @classmethod
    def of(cls, threads: Sequence[Dated], now: float) -> Self:
        lengths = np.array([len(thread.votes) for thread in threads])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        ups = np.maximum(np.concatenate([thread.votes for thread in threads]), 0)
        return cls(
            features=np.concatenate([_features(thread, now) for thread in threads]),
            ups=ups,
            starts=starts,
            thread=np.repeat(np.arange(len(threads)), lengths),
            totals=np.add.reduceat(ups, starts),
        )

    def sums(self, values: Array) -> Array:
        """The sum of each thread's values."""
        sums: Array = np.add.reduceat(values, self.starts)
        return sums

    def shares(self, exposures: Array) -> Array:
        """The share of each answer in its thread's exposures."""
        return exposures / self.sums(exposures)[self.thread]


def _spread(answers: _Answers, exposures: Array) -> float:
    """The spread of worth, from exposures and up votes, by moments.

    Take a thread of N votes and K answers, whose worths have gamma laws of shape 1 / spread. The
    squared deviations of votes from their expected shares exceed the variance of a multinomial law
    by `(N - 1) / (1 + K shape)` times that variance.
    """
    share, total = answers.shares(exposures), answers.totals
    expected = total * (1 - answers.sums(share**2))
    excess = answers.sums((answers.ups - total[answers.thread] * share) ** 2) - expected
    scale, count = expected * (total - 1), answers.sums(np.ones_like(share))

    def too_wide(log_spread: float) -> float:
        return float((scale / (1 + count * np.exp(-log_spread))).sum() - excess.sum())

    # `too_wide` grows with the spread, so its sign at an end shows whether the root is beyond it.
    lower, upper = np.log(LEAST_SPREAD), np.log(MOST_SPREAD)
    if too_wide(lower) >= 0:
        return LEAST_SPREAD
    if too_wide(upper) <= 0:
        return MOST_SPREAD
    return float(np.exp(brentq(too_wide, lower, upper)))


def _features(thread: Dated, now: float) -> Array:
    """Log age and log delay of each answer, relative to the first one; shape `(answers, 2)`."""
    first = thread.created.min()
    # Ages below a day count as a day: near 0 their logarithm would dominate the fit.
    age = np.log(np.maximum(now - thread.created, DAY_SECONDS))
    age_of_first = np.log(max(now - first, DAY_SECONDS))
    delay = np.log1p((thread.created - first) / HOUR_SECONDS)
    return np.stack([age - age_of_first, delay], axis=1)


def _loss(powers: Array, answers: _Answers) -> tuple[float, Array]:
    """The multinomial loss of the shares of each thread's votes, and its gradient."""
    # einsum, not BLAS, whose sums depend on the number of CPU threads.
    logits = np.einsum("af,f->a", answers.features, powers)
    # Only shares within a thread matter, so subtract its largest logit, which avoids overflow.
    logits = logits - np.maximum.reduceat(logits, answers.starts)[answers.thread]
    share = answers.shares(np.exp(logits))

    weight = np.minimum(1.0, VOTES_AT_MOST / answers.totals)[answers.thread]
    loss = RIDGE * float(powers @ powers) - float(np.sum(weight * answers.ups * np.log(share)))

    residual = weight * (answers.ups - answers.totals[answers.thread] * share)
    gradient = 2 * RIDGE * powers - np.einsum("af,a->f", answers.features, residual)
    return loss, gradient
