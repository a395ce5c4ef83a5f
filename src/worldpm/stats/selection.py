"""Best of n: what the response of highest reward among n is worth, exactly, by counting all
subsets."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]


def expected_picks(rewards: ArrayLike, qualities: ArrayLike) -> Array:
    """Mean quality of the response of highest reward in a random subset of n of the N responses,
    for n = 1 .. N.

    Both arguments have shape `(N,)`, and so has the result. All subsets count equally; among
    responses that tie for the highest reward in a subset the pick is random. The first entry is the
    mean of all, the last the pick among all.

    Raises:
        ValueError: If there are no responses, or a reward is NaN.

    Source: the top order statistic of sampling without replacement; unbiased, unlike drawing n with
    replacement.
    """
    rewards_, qualities_ = (
        np.asarray(rewards, dtype=np.float64),
        np.asarray(qualities, dtype=np.float64),
    )
    if len(rewards_) == 0 or np.isnan(rewards_).any():
        raise ValueError(
            f"{len(rewards_)} rewards, {int(np.isnan(rewards_).sum())} of them NaN; score every"
            " response first"
        )
    _, level, counts = np.unique(rewards_, return_inverse=True, return_counts=True)
    means = np.bincount(level, weights=qualities_) / counts
    up_to = np.cumsum(counts)
    n = np.arange(1, len(rewards_) + 1)
    within = _share_of_subsets(up_to, n) - _share_of_subsets(up_to - counts, n)
    picked: Array = means @ within
    return picked


def _share_of_subsets(k: NDArray[np.int64], n: NDArray[np.int64]) -> Array:
    """C(k, n) / C(N, n), shape `(len(k), len(n))`, where N is the last of `n`: subsets that lie
    among the k lowest."""
    total = int(n[-1])
    k_, n_ = k[:, None].astype(np.float64), n[None, :].astype(np.float64)
    logs = (
        gammaln(k_ + 1)
        - gammaln(np.maximum(k_ - n_, 0) + 1)
        - gammaln(total + 1)
        + gammaln(total - n_ + 1)
    )
    return np.where(k_ >= n_, np.exp(logs), 0.0)


def kl_nats(n: int) -> float:
    """Divergence of the best of n from the policy that drew them, in nats: `ln n - (n - 1) / n`.

    Source: Stiennon et al., arXiv 2009.01325, appendix G.3; an upper bound, close for many distinct
    responses.
    """
    return math.log(n) - (n - 1) / n
