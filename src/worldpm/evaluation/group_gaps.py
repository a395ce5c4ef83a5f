"""Gaps of errors and rewards between groups, which are the values of a column, with intervals and
tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from worldpm.stats.uncertainty import Interval, clustered_interval, holm

Array = NDArray[np.float64]
LEAST_PROMPTS = 10
"""The least number of prompts of a value for a test."""
RESAMPLES, PERMUTATIONS = 10_000, 1_000


@dataclass(frozen=True)
class Pair:
    """One judged pair, with its row's columns."""

    prompt: str
    """The cluster: pairs of the same prompt are not independent."""
    columns: Mapping[str, str]
    """The row's value in each column, such as `language`."""
    chosen_reward: float
    """In logits."""
    rejected_reward: float
    """In logits."""

    @property
    def error(self) -> float:
        """1 if the rejected response has the higher reward, 0.5 for a tie, and otherwise 0."""
        if self.chosen_reward == self.rejected_reward:
            return 0.5
        return 1.0 if self.chosen_reward < self.rejected_reward else 0.0

    @property
    def reward(self) -> float:
        """The mean of both rewards. A model that favours a group raises it for all answers of the
        group."""
        return (self.chosen_reward + self.rejected_reward) / 2


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A measure of one value minus the same measure of all other values."""

    difference: float
    """Difference of errors (-1 to 1) or of rewards (in logits)."""
    interval: tuple[float, float] | None
    """95 % interval; None if neither side varies."""
    p_value: float
    """Two-sided p-value: the probability that equal groups differ as much."""
    p_value_holm: float
    """The p-value, corrected for the number of values of the column by Holm's procedure."""

    def mirrored(self) -> "Gap":
        """The same gap from the other side."""
        interval = None
        if self.interval is not None:
            low, high = self.interval
            interval = (-high, -low)
        return replace(self, difference=-self.difference, interval=interval)


@dataclass(frozen=True, kw_only=True)
class ValueResult:
    """Errors and rewards of the pairs with one value of a column."""

    value: str
    """Value of the column."""
    pairs: int
    """Number of pairs."""
    prompts: int
    """Number of distinct prompts."""
    error: float
    """Mean error over prompts, 0 to 1."""
    error_interval: tuple[float, float] | None
    """95 % interval over prompts; None if the prompts cannot give an interval."""
    error_gap: Gap | None
    """Gap to all other values; None if either side has fewer than LEAST_PROMPTS prompts."""
    reward: float
    """Mean reward over prompts, in logits."""
    reward_interval: tuple[float, float] | None
    """95 % interval over prompts; None if the prompts cannot give an interval."""
    reward_gap: Gap | None
    """Gap to all other values; None if either side has fewer than LEAST_PROMPTS prompts."""


@dataclass(frozen=True)
class _Sample:
    """A measure of some pairs, one number per prompt."""

    values: Array
    """Mean over each prompt's pairs."""
    are_shares: bool
    """Whether all values are between 0 and 1."""

    @property
    def mean(self) -> float:
        """Mean over the prompts."""
        return float(self.values.mean())

    def interval(self, *, resamples: int = RESAMPLES) -> Interval:
        """95 % interval of the mean."""
        return clustered_interval(
            self.values,
            np.ones(len(self.values)),
            np.arange(len(self.values)),
            shares=self.are_shares,
            resamples=resamples,
        )


@dataclass(frozen=True)
class _Measure:
    """The mean over one value's prompts, and its gap to the others."""

    mean: float
    interval: Interval
    gap: Gap | None


def gaps(pairs: Sequence[Pair], column: str) -> list[ValueResult]:
    """Errors and rewards of every value of a column, with 95 % intervals, and their gaps to all
    other values.

    Every prompt counts once, for any number of pairs. A gap's interval combines the intervals of
    its two sides. Its p-value comes from a permutation of prompts between the sides, with the
    difference in standard errors. Neither assumes that both sides have the same variance. P-values
    are corrected over the column by Holm's procedure. A column with two values has a single gap,
    with opposite signs. Values with fewer than ten prompts have no gap.
    """
    values = sorted({pair.columns[column] for pair in pairs})
    results = [_of_value(pairs, column, value) for value in values]

    # errors and rewards are two families of tests
    error_gaps = _corrected([result.error_gap for result in results])
    reward_gaps = _corrected([result.reward_gap for result in results])
    return [
        replace(result, error_gap=error_gap, reward_gap=reward_gap)
        for result, error_gap, reward_gap in zip(results, error_gaps, reward_gaps, strict=True)
    ]


def _corrected(uncorrected: Sequence[Gap | None]) -> list[Gap | None]:
    """One measure's gaps of all values of a column, with p-values corrected as one family of
    tests."""
    # the second gap is the first with the opposite sign, so this is one test, not two
    if len(uncorrected) == 2:
        first = uncorrected[0]
        return [first, None if first is None else first.mirrored()]

    adjusted = iter(holm([gap.p_value for gap in uncorrected if gap is not None]))
    return [
        None if gap is None else replace(gap, p_value_holm=next(adjusted)) for gap in uncorrected
    ]


def _of_value(pairs: Sequence[Pair], column: str, value: str) -> ValueResult:
    inside = [pair for pair in pairs if pair.columns[column] == value]
    outside = [pair for pair in pairs if pair.columns[column] != value]
    error = _measure(
        _Sample(_by_prompt(inside, [pair.error for pair in inside]), are_shares=True),
        _Sample(_by_prompt(outside, [pair.error for pair in outside]), are_shares=True),
    )
    reward = _measure(
        _Sample(_by_prompt(inside, [pair.reward for pair in inside]), are_shares=False),
        _Sample(_by_prompt(outside, [pair.reward for pair in outside]), are_shares=False),
    )

    return ValueResult(
        value=value,
        pairs=len(inside),
        prompts=len({pair.prompt for pair in inside}),
        error=error.mean,
        error_interval=_ends(error.interval),
        error_gap=error.gap,
        reward=reward.mean,
        reward_interval=_ends(reward.interval),
        reward_gap=reward.gap,
    )


def _by_prompt(pairs: Sequence[Pair], values: Sequence[float]) -> Array:
    """The mean of each prompt's values; there is one value per pair."""
    # in the order of the pairs, because the bootstrap's random draws depend on it
    by_prompt: dict[str, list[float]] = {}
    for pair, value in zip(pairs, values, strict=True):
        by_prompt.setdefault(pair.prompt, []).append(value)
    return np.array([sum(of_prompt) / len(of_prompt) for of_prompt in by_prompt.values()])


def _ends(interval: Interval) -> tuple[float, float] | None:
    return (interval.low, interval.high) if interval.known else None


def _measure(inside: _Sample, outside: _Sample) -> _Measure:
    interval = inside.interval()
    gap = None
    # with few prompts, neither the interval nor the test is reliable
    if min(len(inside.values), len(outside.values)) >= LEAST_PROMPTS:
        gap = _gap(inside, outside, interval)
    return _Measure(inside.mean, interval, gap)


def _gap(inside: _Sample, outside: _Sample, of_inside: Interval) -> Gap:
    """Mean over the prompts with a value minus mean over the others. The interval combines the
    intervals of both sides, and the p-value is that of a permutation test.

    A side without variation adds nothing to the interval. If neither side varies, the
    interval is not known.

    Source: Zou and Donner 2008 for the interval (Newcombe 1998 for shares).
    """
    difference = inside.mean - outside.mean
    first = _known_or_point(of_inside, inside.mean)
    # fewer resamples, because the other side is large, and is resampled for every value
    second = _known_or_point(outside.interval(resamples=PERMUTATIONS), outside.mean)
    # the distances of the means to their bounds add up as squares, like standard errors
    low = difference - np.hypot(inside.mean - first.low, second.high - outside.mean)
    high = difference + np.hypot(first.high - inside.mean, outside.mean - second.low)

    p_value = _permutation_test(inside.values, outside.values)
    return Gap(
        difference=difference,
        interval=(float(low), float(high)) if low < high else None,
        p_value=p_value,
        p_value_holm=p_value,
    )


def _known_or_point(interval: Interval, mean: float) -> Interval:
    return interval if interval.known else Interval(mean, mean)


def _permutation_test(inside: Array, outside: Array) -> float:
    """The share of permutations of prompts between the two sides whose means are at least as far
    apart as observed. The observed order counts as one permutation.

    Source: Janssen 1997, the permutation of Welch's statistic.
    """
    generator = np.random.default_rng(0)
    pooled = np.concatenate([inside, outside])
    observed = _standard_errors_apart(inside, outside)

    as_large = 0
    for _ in range(PERMUTATIONS):
        shuffled = generator.permutation(pooled)
        apart = _standard_errors_apart(shuffled[: len(inside)], shuffled[len(inside) :])
        # allow for rounding, so that the observed order always counts as equally far apart
        as_large += apart >= observed * (1 - 1e-12)
    return (1 + as_large) / (1 + PERMUTATIONS)


def _standard_errors_apart(first: Array, second: Array) -> float:
    """The distance of two means in standard errors of their difference. If neither side varies,
    infinity for different means and 0 for equal ones."""
    apart = abs(float(first.mean() - second.mean()))
    error = float(np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)))
    if error > 0:
        return apart / error
    return float("inf") if apart > 0 else 0.0
