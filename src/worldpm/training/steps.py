"""Which groups each optimizer step takes: a pure function of the seed and the numbers of pairs."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def steps_of(
    pair_counts: Sequence[int] | NDArray[np.integer],
    *,
    batch_pairs: int,
    seed: int,
    epochs: float | None = None,
    max_steps: int | None = None,
) -> list[NDArray[np.int64]]:
    """Indices of the groups of each optimizer step, a pure function of its arguments.

    Every epoch is a new permutation. A step closes at the first group that reaches `batch_pairs`;
    groups are never split. The run ends after `max_steps` steps or else after `epochs` passes,
    whose last step may be smaller.
    """
    counts = np.asarray(pair_counts, dtype=np.int64)
    steps: list[NDArray[np.int64]] = []
    left = np.zeros(0, dtype=np.int64)
    for order in _epochs(len(counts), seed=seed, epochs=None if max_steps is not None else epochs):
        left = np.concatenate([left, order])
        pairs, start = np.cumsum(counts[left]), 0
        while (
            last := int(np.searchsorted(pairs, batch_pairs + (pairs[start - 1] if start else 0)))
        ) < len(left):
            steps.append(left[start : last + 1])
            start = last + 1
            if max_steps is not None and len(steps) >= max_steps:
                return steps
        left = left[start:]
    return [*steps, left] if len(left) else steps


def _epochs(groups: int, *, seed: int, epochs: float | None) -> Iterator[NDArray[np.int64]]:
    """One permutation after another, the last cut short; without `epochs` they do not end."""
    left = math.inf if epochs is None else round(epochs * groups)
    epoch = 0
    while left > 0 and groups:
        order = np.random.default_rng([seed, epoch]).permutation(groups)
        yield order if left >= groups else order[: int(left)]
        left, epoch = left - groups, epoch + 1
