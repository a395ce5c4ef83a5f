"""Does a model err more for some than for others? Reward and error gaps between the values of any column, with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldpm.field.uncertainty import Interval, clustered_interval, holm

Json = dict[str, Any]
Array = NDArray[np.float64]
LEAST_PROMPTS = 10
"""A value with fewer prompts is shown without a test."""
RESAMPLES = 10_000


class Pair(NamedTuple):
    """One judged pair with the columns it belongs to."""

    prompt: str
    """Its cluster: pairs of one prompt depend on each other."""
    columns: Mapping[str, str]
    chosen_reward: float
    rejected_reward: float

    @property
    def error(self) -> float:
        """1 where the rejected response has the higher reward, half for a tie."""
        return 1.0 if self.chosen_reward < self.rejected_reward else 0.5 if self.chosen_reward == self.rejected_reward else 0.0

    @property
    def reward(self) -> float:
        """The mean of both, which a judge that favours a group would raise for all its answers."""
        return (self.chosen_reward + self.rejected_reward) / 2


def gaps(pairs: Sequence[Pair], column: str) -> list[Json]:
    """For every value of a column: errors and rewards with 95 % intervals, and its gap to all other values.

    Every prompt counts once, however many pairs it has. A gap's p-value is of a permutation of prompts between the value and the rest,
    corrected over the column by Holm's procedure; of two values there is one gap, seen from both sides. Values with fewer than ten
    prompts have no gap.
    """
    values = sorted({pair.columns[column] for pair in pairs})
    found = [_of_value(pairs, column, value) for value in values]
    for measure in ("error", "reward"):
        tested = [one for one in found if one[f"{measure}_gap"] is not None]
        if len(values) == 2 and tested:
            gap = {**found[0][f"{measure}_gap"], "p_value_holm": found[0][f"{measure}_gap"]["p_value"]}
            found[0][f"{measure}_gap"] = gap
            found[1][f"{measure}_gap"] = {**gap, "difference": -gap["difference"], "interval": [-end for end in reversed(gap["interval"])]}
            continue
        for one, adjusted in zip(tested, holm([one[f"{measure}_gap"]["p_value"] for one in tested]), strict=True):
            one[f"{measure}_gap"]["p_value_holm"] = adjusted
    return found


def _of_value(pairs: Sequence[Pair], column: str, value: str) -> Json:
    own = [pair for pair in pairs if pair.columns[column] == value]
    others = [pair for pair in pairs if pair.columns[column] != value]
    prompts = [len({pair.prompt for pair in side}) for side in (own, others)]
    row: Json = {"value": value, "pairs": len(own), "prompts": prompts[0]}
    for measure in ("error", "reward"):
        mine, rest = _by_prompt(own, measure), _by_prompt(others, measure)
        interval = clustered_interval(mine, np.ones(len(mine)), np.arange(len(mine)), shares=measure == "error", resamples=RESAMPLES)
        row[measure] = float(mine.mean())
        row[f"{measure}_interval"] = None if interval.low != interval.low else list(interval)
        row[f"{measure}_gap"] = _gap(mine, rest) if min(prompts) >= LEAST_PROMPTS else None
    return row


def _by_prompt(pairs: Sequence[Pair], measure: str) -> Array:
    """The mean of each prompt's pairs."""
    sums: dict[str, list[float]] = {}
    for pair in pairs:
        sums.setdefault(pair.prompt, []).append(getattr(pair, measure))
    return np.array([sum(values) / len(values) for values in sums.values()])


def _gap(own: Array, others: Array) -> Json:
    """Mean of the prompts with a value minus mean of the others, with a bootstrap interval and a permutation test."""
    generator = np.random.default_rng(0)
    difference = float(own.mean() - others.mean())
    drawn = [side[generator.integers(0, len(side), (RESAMPLES // 10, len(side)))].mean(axis=1) for side in (own, others)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    pooled = np.concatenate([own, others])
    as_large = 0
    for _ in range(RESAMPLES // 10):
        shuffled = generator.permutation(pooled)
        as_large += abs(shuffled[: len(own)].mean() - shuffled[len(own) :].mean()) >= abs(difference) * (1 - 1e-12)
    interval = Interval(float(low), float(high))
    return {"difference": difference, "interval": list(interval), "p_value": (1 + as_large) / (1 + RESAMPLES // 10)}
