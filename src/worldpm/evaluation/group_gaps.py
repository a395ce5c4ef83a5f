"""Does a model err more for some than for others? Reward and error gaps between the values of any
column, with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldpm.stats.uncertainty import Interval, clustered_interval, holm

Json = dict[str, Any]
Array = NDArray[np.float64]
LEAST_PROMPTS = 10
"""A value with fewer prompts is shown without a test."""
RESAMPLES, PERMUTATIONS = 10_000, 1_000


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
        return (
            1.0
            if self.chosen_reward < self.rejected_reward
            else 0.5
            if self.chosen_reward == self.rejected_reward
            else 0.0
        )

    @property
    def reward(self) -> float:
        """The mean of both, which a judge that favours a group would raise for all its answers."""
        return (self.chosen_reward + self.rejected_reward) / 2


def gaps(pairs: Sequence[Pair], column: str) -> list[Json]:
    """For every value of a column: errors and rewards with 95 % intervals, and its gap to all other
    values.

    Every prompt counts once, however many pairs it has. A gap's interval is made of those of its
    two sides, and its p-value is of a permutation of prompts between them, in standard errors:
    neither takes the two for equally spread. P-values are corrected over the column by Holm's
    procedure; of two values there is one gap, seen from both sides. Values with fewer than ten
    prompts have no gap.
    """
    values = sorted({pair.columns[column] for pair in pairs})
    found = [_of_value(pairs, column, value) for value in values]
    for measure in ("error", "reward"):
        tested = [one for one in found if one[f"{measure}_gap"] is not None]
        if len(values) == 2 and tested:
            gap = {
                **found[0][f"{measure}_gap"],
                "p_value_holm": found[0][f"{measure}_gap"]["p_value"],
            }
            found[0][f"{measure}_gap"] = gap
            mirrored = (
                None if gap["interval"] is None else [-end for end in reversed(gap["interval"])]
            )
            found[1][f"{measure}_gap"] = {
                **gap,
                "difference": -gap["difference"],
                "interval": mirrored,
            }
            continue
        for one, adjusted in zip(
            tested, holm([one[f"{measure}_gap"]["p_value"] for one in tested]), strict=True
        ):
            one[f"{measure}_gap"]["p_value_holm"] = adjusted
    return found


def _of_value(pairs: Sequence[Pair], column: str, value: str) -> Json:
    own = [pair for pair in pairs if pair.columns[column] == value]
    others = [pair for pair in pairs if pair.columns[column] != value]
    prompts = [len({pair.prompt for pair in side}) for side in (own, others)]
    row: Json = {"value": value, "pairs": len(own), "prompts": prompts[0]}
    for measure in ("error", "reward"):
        mine, rest = _by_prompt(own, measure), _by_prompt(others, measure)
        interval = _interval(mine, measure)
        row[measure] = float(mine.mean())
        row[f"{measure}_interval"] = list(interval) if interval.known else None
        enough = min(prompts) >= LEAST_PROMPTS
        row[f"{measure}_gap"] = (
            _gap(mine, rest, interval, _interval(rest, measure, resamples=PERMUTATIONS))
            if enough
            else None
        )
    return row


def _interval(values: Array, measure: str, *, resamples: int = RESAMPLES) -> Interval:
    return clustered_interval(
        values,
        np.ones(len(values)),
        np.arange(len(values)),
        shares=measure == "error",
        resamples=resamples,
    )


def _by_prompt(pairs: Sequence[Pair], measure: str) -> Array:
    """The mean of each prompt's pairs."""
    sums: dict[str, list[float]] = {}
    for pair in pairs:
        sums.setdefault(pair.prompt, []).append(getattr(pair, measure))
    return np.array([sum(values) / len(values) for values in sums.values()])


def _gap(own: Array, others: Array, of_own: Interval, of_others: Interval) -> Json:
    """Mean of the prompts with a value minus mean of the others, with an interval made of both
    sides', and a permutation test.

    A side whose prompts are all alike adds nothing to the interval; where both are, there is none.

    Source: Zou and Donner 2008 for the interval (Newcombe 1998 for shares); Janssen 1997 for the
    permutation of Welch's statistic.
    """
    means = float(own.mean()), float(others.mean())
    difference = means[0] - means[1]
    sides = [
        one if one.known else Interval(mean, mean)
        for mean, one in zip(means, (of_own, of_others), strict=True)
    ]
    low = difference - np.hypot(means[0] - sides[0].low, sides[1].high - means[1])
    high = difference + np.hypot(sides[0].high - means[0], means[1] - sides[1].low)
    generator = np.random.default_rng(0)
    pooled, seen = np.concatenate([own, others]), _in_errors(own, others)
    as_large = 0
    for _ in range(PERMUTATIONS):
        shuffled = generator.permutation(pooled)
        as_large += _in_errors(shuffled[: len(own)], shuffled[len(own) :]) >= seen * (1 - 1e-12)
    interval = [float(low), float(high)] if low < high else None
    return {
        "difference": difference,
        "interval": interval,
        "p_value": (1 + as_large) / (1 + PERMUTATIONS),
    }


def _in_errors(own: Array, others: Array) -> float:
    """How far two means lie apart, in standard errors of their difference; infinite where both
    sides are all alike."""
    apart = abs(float(own.mean() - others.mean()))
    error = float(np.sqrt(own.var(ddof=1) / len(own) + others.var(ddof=1) / len(others)))
    return apart / error if error > 0 else float("inf") if apart > 0 else 0.0
