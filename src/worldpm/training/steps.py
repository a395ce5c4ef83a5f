"""The groups of each optimizer step: a pure function of the seed and the numbers of pairs."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
"""Indices of groups in the store."""


def steps_of(
    pair_counts: Sequence[int] | NDArray[np.integer],
    *,
    batch_pairs: int,
    seed: int,
    epochs: float | None = None,
    max_steps: int | None = None,
) -> list[Indices]:
    """The groups of each optimizer step, a pure function of the arguments.

    Every epoch is a new permutation. A step ends with the first group that reaches `batch_pairs`;
    groups are never split. The run ends after `max_steps` steps if given, and otherwise after
    `epochs` passes. The last step of the passes can be smaller.
    """
    counts = np.asarray(pair_counts, dtype=np.int64)
    passes = epochs if max_steps is None else None
    steps: list[Indices] = []
    pending = np.zeros(0, dtype=np.int64)

    for order in _epochs(len(counts), seed=seed, epochs=passes):
        # groups that did not fill a step come before those of the next epoch
        pending = np.concatenate([pending, order])
        for step in _full_steps(pending, counts, batch_pairs):
            steps.append(step)
            pending = pending[len(step) :]
            if max_steps is not None and len(steps) >= max_steps:
                return steps

    return [*steps, pending] if len(pending) else steps


def _full_steps(order: Indices, counts: NDArray[np.int64], batch_pairs: int) -> Iterator[Indices]:
    """Full steps of the groups in `order`: each ends where its pairs reach `batch_pairs`. An
    incomplete last step is left out."""
    pairs, start = np.cumsum(counts[order]), 0
    while True:
        pairs_before = pairs[start - 1] if start else 0
        last = int(np.searchsorted(pairs, batch_pairs + pairs_before))
        if last >= len(order):
            return
        yield order[start : last + 1]
        start = last + 1


def _epochs(groups: int, *, seed: int, epochs: float | None) -> Iterator[Indices]:
    """One permutation after another. The last is cut short if `epochs` is not a whole number, and
    without `epochs` the steps never end."""
    remaining = math.inf if epochs is None else round(epochs * groups)
    epoch = 0
    while remaining > 0 and groups:
        # a new generator for each epoch, so that a resumed run need not draw the earlier epochs
        order = np.random.default_rng([seed, epoch]).permutation(groups)
        yield order if remaining >= groups else order[: int(remaining)]
        remaining, epoch = remaining - groups, epoch + 1
