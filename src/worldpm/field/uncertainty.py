"""Confidence intervals by bootstrap over clusters: pairs of one thread are not independent, threads are."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK_DRAWS = 4_000_000


class Interval(NamedTuple):
    """A 95 % percentile interval; both ends are NaN where fewer than two clusters were seen."""

    low: float
    high: float


def clustered_interval(values: ArrayLike, weights: ArrayLike, clusters: ArrayLike, *, seed: int = 0, resamples: int = 10_000) -> Interval:
    """95 % interval of the weighted mean of `values`, all three of shape `(pairs,)`.

    Whole clusters are drawn with replacement, and the weighted mean is taken anew each time.

    Source: Efron and Tibshirani 1993, percentile bootstrap; Cameron, Gelbach and Miller 2008, section 2 (pairs cluster).
    """
    numerators, denominators = cluster_sums(values, weights, clusters)
    means = resampled_means(numerators, denominators, seed=seed, resamples=resamples)
    if len(means) == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(low), float(high))


def cluster_sums(values: ArrayLike, weights: ArrayLike, clusters: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted sum of values and sum of weights of each cluster, in the order of the sorted cluster names."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    weights_ = np.asarray(weights, dtype=np.float64)
    numerators, denominators = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(numerators, index, np.asarray(values, dtype=np.float64) * weights_)
    np.add.at(denominators, index, weights_)
    return numerators, denominators


def resampled_means(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64], *, seed: int, resamples: int
) -> NDArray[np.float64]:
    """The weighted mean in each resample; empty with fewer than two clusters. Resamples of weight 0 are left out."""
    clusters = len(numerators)
    if clusters < 2:
        return np.empty(0)
    generator = np.random.default_rng(seed)
    means = []
    chunk = max(1, CHUNK_DRAWS // clusters)
    for start in range(0, resamples, chunk):
        draws = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=min(chunk, resamples - start))
        total = draws @ denominators
        means.append((draws @ numerators)[total > 0] / total[total > 0])
    return np.concatenate(means)
