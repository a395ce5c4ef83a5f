"""Intervals and tests by resampling clusters: prompts are independent, but pairs of one prompt are
not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from worldpm.stats import sign_flips

CHUNK_DRAWS = 4_000_000
"""Most random draws in memory at once."""
NORMAL_975, NORMAL_80 = 1.959964, 0.841621
"""The 97.5 % and 80 % quantiles of the standard normal distribution."""
HALF_CLUSTER = 0.5
"""Weight of each of two clusters that are added for the variance of a share."""
EQUAL_DRAWS = 1e-12
"""Draws of a difference within this range are equal up to rounding."""
DETECTABLE_ERRORS = NORMAL_975 + NORMAL_80
"""Size, in standard errors, of a difference that a two-sided 5 % test detects in 80 % of cases."""

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A 95 % interval; both ends are NaN if the data cannot give one, as with fewer than two
    clusters."""

    low: float
    """2.5 % quantile."""
    high: float
    """97.5 % quantile."""

    @property
    def known(self) -> bool:
        """Whether the ends are numbers."""
        return not math.isnan(self.low)


_UNKNOWN = Interval(float("nan"), float("nan"))


class Difference(NamedTuple):
    """The lead of the first of two judges on the same pairs."""

    estimate: float
    """Weighted mean of the first judge minus weighted mean of the second."""
    interval: Interval
    """Interval of the estimate. Its ends are NaN with one cluster, or if the difference is equal in
    all clusters."""
    p_value: float
    """Two-sided probability that equally good judges differ this much."""
    detectable: float
    """The smallest true difference that a 5 % test on these prompts detects in 80 % of cases; NaN
    where the interval has NaN ends."""


def clustered_interval(
    values: ArrayLike,
    weights: ArrayLike,
    clusters: ArrayLike,
    *,
    shares: bool = True,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval:
    """95 % interval of the weighted mean of `values`, all three of shape `(pairs,)`.

    For `shares` (values from 0 to 1) see `_share_interval`. Otherwise the bootstrap draws whole
    clusters with replacement and computes the weighted mean of each draw. If all clusters are
    equal, an interval is not known; shares that are all 0 or all 1 then get the exact interval for
    one trial per cluster, and other values NaN ends.

    Source: Efron and Tibshirani 1993, percentile bootstrap; Cameron, Gelbach and Miller 2008,
    section 2 (pairs cluster); Clopper and Pearson 1934.
    """
    numerators, denominators = cluster_sums(values, weights, clusters)
    if len(numerators) < 2 or not denominators.sum() > 0:
        return _UNKNOWN

    mean = float(numerators.sum() / denominators.sum())
    spread = np.abs(numerators - mean * denominators).max()
    if spread <= EQUAL_DRAWS * denominators.max():
        if not shares or mean not in (0.0, 1.0):
            return _UNKNOWN
        # The share p at which n clusters in a row are right in 2.5 % of cases: p^n = 0.025.
        bound = 0.025 ** (1 / len(numerators))
        return Interval(bound, 1.0) if mean else Interval(0.0, 1 - bound)

    if shares:
        return _share_interval(numerators, denominators, np.asarray(weights, dtype=np.float64))
    return _percentiles(resampled_means(numerators, denominators, seed=seed, resamples=resamples))


def _share_interval(numerators: Array, denominators: Array, weights: Array) -> Interval:
    """Wilson's interval for the number of independent pairs that would have the share's variance
    between clusters, with Student's t for the number of clusters.

    The variance is the jackknife's over the clusters and two of half a weight, one right and one
    wrong, so that few wrong clusters do not give a variance near 0. If few clusters have most of
    the weight, they count as few. In simulations, with 10, 30 and 100 prompts of four correlated
    pairs, 95 % to 98 % of the intervals contain the true accuracy (of bootstrap intervals as little
    as 88 %).

    Source: Wilson 1927; Korn and Graubard 1998 (pairs of equal variance, and Student's t); Efron
    and Tibshirani 1993, chapter 11 (jackknife).
    """
    mean_weight = float(denominators.mean())
    share = float(numerators.sum() / denominators.sum())

    half = HALF_CLUSTER * mean_weight
    total = denominators.sum() + 2 * half
    middle = (numerators.sum() + half) / total
    # the change of the share without each cluster
    changes = (numerators - middle * denominators) / (total - denominators)
    of_halves = mean_weight * np.array([1 - middle, middle]) / (total - mean_weight)
    squares = float(changes @ changes) + HALF_CLUSTER * float(of_halves @ of_halves)
    clusters = len(denominators) + 2 * HALF_CLUSTER
    variance = squares * (clusters - 1) / clusters

    # Pairs of one cluster can be more alike than independent ones, but not less.
    most = weights.sum() ** 2 / (weights @ weights)
    pairs = float(np.clip(middle * (1 - middle) / variance, 1.0, max(1.0, most)))
    effective = float(denominators.sum() ** 2 / (denominators @ denominators))
    t = float(stdtrit(effective, 0.975))
    centre = (share + t**2 / (2 * pairs)) / (1 + t**2 / pairs)
    reach = t / (1 + t**2 / pairs)
    reach *= np.sqrt(share * (1 - share) / pairs + t**2 / (4 * pairs**2))
    return Interval(max(0.0, float(centre - reach)), min(1.0, float(centre + reach)))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    weights: ArrayLike,
    clusters: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Difference:
    """The first judge's weighted mean minus the second's; all arguments have shape `(pairs,)`. See
    `PairedJudges.difference`."""
    values = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    judges = PairedJudges.of(values, weights, clusters, seed=seed, resamples=resamples)
    return judges.difference(0, 1)


@dataclass(frozen=True)
class PairedJudges:
    """Judges of the same pairs, with resamples of the clusters that all comparisons share."""

    numerators: Array
    """Weighted sums of values, shape (clusters, judges)."""
    weight: float
    """Sum of all weights."""
    means: Array
    """Weighted means in each resample, shape (resamples, judges); empty with one cluster."""

    @classmethod
    def of(
        cls,
        values: Array,
        weights: ArrayLike,
        clusters: ArrayLike,
        *,
        seed: int = 0,
        resamples: int = 10_000,
    ) -> "PairedJudges":
        """`values` has shape (judges, pairs); weights and clusters have shape (pairs,)."""
        sums = [cluster_sums(row, weights, clusters) for row in values]
        numerators, denominators = np.stack([row for row, _ in sums], axis=1), sums[0][1]
        means = resampled_means(numerators, denominators, seed=seed, resamples=resamples)
        return cls(numerators, float(denominators.sum()), means)

    def difference(self, first: int, second: int) -> Difference:
        """One judge's weighted mean minus another's, with paired interval and test.

        The interval draws whole clusters with replacement, the pairs of both judges together. The
        test exchanges the judges at random in whole clusters, which changes nothing if they are
        equally good; see `sign_flips.p_value`. Interval and detectable difference are NaN with one
        cluster, or if the judges differ equally in all clusters. With one cluster the p-value is 1.

        Source: Efron and Tibshirani 1993, chapters 8 and 15.
        """
        gaps = self.numerators[:, first] - self.numerators[:, second]
        estimate = float(gaps.sum()) / self.weight
        p_value = sign_flips.p_value(gaps)
        if len(self.means) == 0:
            return Difference(estimate, _UNKNOWN, p_value, float("nan"))

        means = self.means[:, first] - self.means[:, second]
        interval = _percentiles(means)
        # equal differences in all clusters, up to rounding
        if not interval.high - interval.low > EQUAL_DRAWS:
            return Difference(estimate, _UNKNOWN, p_value, float("nan"))
        return Difference(estimate, interval, p_value, DETECTABLE_ERRORS * float(means.std()))


def detectable(interval: Interval) -> float:
    """The smallest true distance of a mean from a fixed number that a 5 % test detects in 80 % of
    cases, derived from the mean's interval."""
    return DETECTABLE_ERRORS * (interval.high - interval.low) / (2 * NORMAL_975)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the same order: any of them below 0.05 is significant
    for the whole family.

    Source: Holm 1979, the step-down procedure.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    smallest_first = sorted(range(len(p_values)), key=p_values.__getitem__)

    for rank, index in enumerate(smallest_first):
        # The running maximum keeps the order: a larger p-value is not corrected to a smaller one.
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest

    return adjusted


def false_discovery(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for false discoveries, in the same order: of all comparisons below 0.05,
    about one in twenty is expected to be false.

    Source: Benjamini and Hochberg 1995.
    """
    adjusted = [0.0] * len(p_values)
    smallest = 1.0
    largest_first = sorted(range(len(p_values)), key=p_values.__getitem__, reverse=True)

    for rank, index in enumerate(largest_first):
        # The running minimum keeps the order: a smaller p-value is not corrected to a larger one.
        smallest = min(smallest, p_values[index] * len(p_values) / (len(p_values) - rank))
        adjusted[index] = smallest

    return adjusted


def cluster_sums(values: ArrayLike, weights: ArrayLike, clusters: ArrayLike) -> tuple[Array, Array]:
    """Weighted sum of values and sum of weights of each cluster, in the order of the sorted cluster
    names."""
    names, cluster_of_pair = np.unique(np.asarray(clusters), return_inverse=True)
    pair_weights = np.asarray(weights, dtype=np.float64)
    numerators, denominators = np.zeros(len(names)), np.zeros(len(names))

    # `numerators[cluster_of_pair] += ...` would add only the last pair of each cluster.
    weighted_values = np.asarray(values, dtype=np.float64) * pair_weights
    np.add.at(numerators, cluster_of_pair, weighted_values)
    np.add.at(denominators, cluster_of_pair, pair_weights)
    return numerators, denominators


def resampled_means(numerators: Array, denominators: Array, *, seed: int, resamples: int) -> Array:
    """The weighted mean in each resample, of shape (resamples,) or, for numerators of shape
    (clusters, judges), (resamples, judges); empty with fewer than two clusters. Resamples of weight
    0 are left out."""
    clusters = len(numerators)
    if clusters < 2:
        return np.empty((0, *numerators.shape[1:]))

    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_DRAWS // clusters)
    means = []

    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        drawn = generator.integers(0, clusters, size=(draws, clusters), dtype=np.uint32)
        # How often each cluster was drawn; a product of matrices then serves all judges.
        flat = drawn + np.arange(draws, dtype=np.int64)[:, None] * clusters
        counts = np.bincount(flat.ravel(), minlength=draws * clusters).reshape(draws, clusters)
        times = counts.astype(np.float64)
        total = times @ denominators
        chosen = (times @ numerators)[total > 0]
        means.append((chosen.T / total[total > 0]).T)

    return np.concatenate(means)


def _percentiles(means: Array) -> Interval:
    if len(means) == 0:
        return _UNKNOWN
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))
