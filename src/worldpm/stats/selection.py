"""Best of n: the exact expected quality of the response with the highest reward among n, by
counting all subsets."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]


def expected_picks(rewards: ArrayLike, qualities: ArrayLike) -> Array:
    """Mean quality of the response with the highest reward in a random subset of n of the N
    responses, for n = 1 .. N.

    Both arguments and the result have shape `(N,)`. All subsets count equally, and the pick among
    responses that tie for the highest reward is random. The first entry is the mean of all
    responses, and the last is the pick among all responses.

    Raises:
        ValueError: If the responses are empty, or a reward is NaN.

    Source: the top order statistic of sampling without replacement; unbiased, unlike drawing n with
    replacement.
    """
    reward_values = np.asarray(rewards, dtype=np.float64)
    quality_values = np.asarray(qualities, dtype=np.float64)
    nan_count = int(np.isnan(reward_values).sum())
    if len(reward_values) == 0 or nan_count:
        raise ValueError(
            f"{len(reward_values)} rewards, {nan_count} of them NaN; score every response first"
        )

    # Responses with equal rewards form a level; a random pick among them has its mean quality.
    _, level, counts = np.unique(reward_values, return_inverse=True, return_counts=True)
    level_means = np.bincount(level, weights=quality_values) / counts
    at_or_below = np.cumsum(counts)

    # The highest reward of a subset is at a level if the subset lies at or below that level, but
    # not entirely below it.
    n = np.arange(1, len(reward_values) + 1)
    top_shares = _share_of_subsets(at_or_below, n) - _share_of_subsets(at_or_below - counts, n)

    picks: Array = level_means @ top_shares
    return picks


def _share_of_subsets(lowest: NDArray[np.int64], n: NDArray[np.int64]) -> Array:
    """C(k, n) / C(N, n): the share of subsets of n that lie among the k lowest responses.

    `lowest` holds values of k, and N is the last entry of `n`. The result has shape
    `(len(lowest), len(n))`.
    """
    total = int(n[-1])
    k, size = lowest[:, None].astype(np.float64), n[None, :].astype(np.float64)

    # Factorials overflow beyond 170!, so binomials are divided as logarithms: ln x! is
    # gammaln(x + 1). The n! of both binomials cancels.
    logs = (
        gammaln(k + 1)
        - gammaln(np.maximum(k - size, 0) + 1)
        - gammaln(total + 1)
        + gammaln(total - size + 1)
    )
    return np.where(k >= size, np.exp(logs), 0.0)


def kl_nats(n: int) -> float:
    """Divergence of the best of n from the policy that drew them, in nats: `ln n - (n - 1) / n`.

    Source: Stiennon et al., arXiv 2009.01325, appendix G.3; an upper bound, close for many distinct
    responses.
    """
    return math.log(n) - (n - 1) / n
