"""Checks of a rule file on labelled responses: precision, recall and cost of each queue, with the
file's thresholds and with others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldpm.scoring.confidence import Confidence
from worldpm.serving.routing import CONDITIONS, Routed, RoutingRules
from worldpm.stats.uncertainty import Interval, clustered_interval

DECILES = np.linspace(0.1, 0.9, 9)
"""Quantiles of the observed values that are tried as thresholds, in addition to the file's."""
Names = NDArray[np.str_]
RESAMPLES = 2000
ITEMS_OF_COST = 100
"""Reported costs are costs of this number of responses."""


class LabelledRewards(NamedTuple):
    """The responses of one prompt, scored and labelled."""

    prompt: str
    """Id of the prompt. Its responses are resampled together."""
    rewards: Sequence[float]
    queues: Sequence[str | None]
    """The right queue of each response; None if the response is not labelled."""


@dataclass(frozen=True)
class QueueResult:
    """Results of one queue under a set of rules."""

    queue: str
    sent: int
    """Number of responses that the rules send to the queue."""
    right: int
    """Number of responses that belong to the queue."""
    precision: float | None
    """Share of sent responses that belong to the queue; None if none is sent."""
    precision_interval: Interval | None
    """95 % interval, by resampling prompts."""
    recall: float | None
    """Share of the queue's right responses that are sent to it; None if it has none."""
    recall_interval: Interval | None


@dataclass(frozen=True)
class RulesResult:
    """Results of a set of rules."""

    threshold: float | None
    """The threshold that replaces the file's; None for the unchanged rules."""
    queues: list[QueueResult]
    cost: float
    """Cost of 100 responses, in the file's unit; 0 if the file has no costs."""
    cost_interval: Interval | None
    """95 % interval; None if all prompts cost the same."""


@dataclass(frozen=True)
class Sweep:
    """Results for one condition of a rule over thresholds."""

    rule: int
    """Number of the rule in the file, from 0."""
    condition: str
    file_threshold: float
    results: list[RulesResult]
    """Results in order of threshold, including the file's threshold."""
    cheapest: float
    """The threshold of least cost."""
    cheapest_cost_elsewhere: float | None
    """Held-out cost of 100 responses: each half of the prompts uses the threshold that is cheapest
    on the other half. A threshold looks too good on the responses that chose it. None with a single
    prompt."""


@dataclass(frozen=True)
class RulesCheck:
    """The check of a rule file."""

    responses: int
    """Number of labelled responses."""
    prompts: int
    as_they_are: RulesResult
    """Results of the unchanged rules."""
    sweeps: list[Sweep]
    """One sweep for each condition of each rule."""


@dataclass(frozen=True)
class _Labelled:
    """All labelled responses, in order."""

    groups: Sequence[LabelledRewards]
    confidence: Confidence
    right: Names
    """The right queue of each response."""
    prompts: Names
    """The prompt id of each response."""

    @classmethod
    def of(cls, groups: Sequence[LabelledRewards], confidence: Confidence) -> "_Labelled":
        pairs = [
            (group.prompt, queue) for group in groups for queue in group.queues if queue is not None
        ]
        prompts, right = np.array(pairs, dtype=np.str_).reshape(-1, 2).T
        return cls(groups, confidence, right, prompts)

    def sent(self, rules: RoutingRules) -> Names:
        """The queue of each response under the rules."""
        queues = [routed.queue for routed in self._routed(rules)]
        return np.array(queues, dtype=np.str_)

    def deciles(self, rules: RoutingRules, condition: str) -> list[float]:
        """Deciles of the values that a condition compares."""
        of_reward = CONDITIONS[condition].of_reward
        values = [
            routed.reward if of_reward else routed.preferred_to_others
            for routed in self._routed(rules)
        ]
        known = [value for value in values if value is not None]
        return [float(value) for value in np.quantile(known, DECILES)] if known else []

    def _routed(self, rules: RoutingRules) -> Iterator[Routed]:
        for group in self.groups:
            routed = rules.routed(self.confidence, group.rewards)
            for each, queue in zip(routed, group.queues, strict=True):
                if queue is not None:
                    yield each


def check(
    rules: RoutingRules, groups: Sequence[LabelledRewards], confidence: Confidence
) -> RulesCheck:
    """Check the rules, unchanged and with each threshold at the deciles of the compared values.

    Raises:
        ValueError: If no response is labelled.
    """
    labelled = _Labelled.of(groups, confidence)
    if not len(labelled.right):
        raise ValueError("no response is labelled")
    return RulesCheck(
        responses=len(labelled.right),
        prompts=len(np.unique(labelled.prompts)),
        as_they_are=_result(rules, None, labelled.sent(rules), labelled),
        sweeps=[
            _sweep(rules, number, condition, labelled)
            for number, rule in enumerate(rules.rules)
            for condition in rule.bounds
        ],
    )


def _sweep(rules: RoutingRules, number: int, condition: str, labelled: _Labelled) -> Sweep:
    """Results for a condition of a rule over thresholds."""
    file_threshold = rules.rules[number].bounds[condition]
    thresholds = sorted({file_threshold, *labelled.deciles(rules, condition)})
    sent = [labelled.sent(_with_threshold(rules, number, condition, value)) for value in thresholds]
    costs = np.stack([_costs(rules, queues, labelled) for queues in sent])
    return Sweep(
        rule=number,
        condition=condition,
        file_threshold=file_threshold,
        results=[
            _result(rules, value, queues, labelled)
            for value, queues in zip(thresholds, sent, strict=True)
        ],
        cheapest=_cheapest(costs.mean(axis=1), thresholds, file_threshold),
        cheapest_cost_elsewhere=_cost_elsewhere(costs, labelled.prompts),
    )


def _cheapest(
    costs: NDArray[np.float64], thresholds: Sequence[float], file_threshold: float
) -> float:
    """The threshold of least cost; if there are several, preferably the file's."""
    least = [value for value, cost in zip(thresholds, costs, strict=True) if cost == costs.min()]
    return file_threshold if file_threshold in least else least[0]


def _with_threshold(rules: RoutingRules, number: int, condition: str, value: float) -> RoutingRules:
    changed = replace(rules.rules[number], bounds={**rules.rules[number].bounds, condition: value})
    return replace(rules, rules=(*rules.rules[:number], changed, *rules.rules[number + 1 :]))


def _result(
    rules: RoutingRules, threshold: float | None, sent: Names, labelled: _Labelled
) -> RulesResult:
    costs = _costs(rules, sent, labelled)
    names = sorted({*rules.queues, *map(str, labelled.right)})
    interval = clustered_interval(
        costs, np.ones(len(costs)), labelled.prompts, shares=False, resamples=RESAMPLES
    )
    return RulesResult(
        threshold=threshold,
        queues=[_queue_result(name, sent, labelled) for name in names],
        cost=ITEMS_OF_COST * float(costs.mean()),
        cost_interval=_known(Interval(ITEMS_OF_COST * interval.low, ITEMS_OF_COST * interval.high)),
    )


def _queue_result(name: str, sent: Names, labelled: _Labelled) -> QueueResult:
    is_sent, is_right = sent == name, labelled.right == name
    precision, precision_interval = _share(is_right[is_sent], labelled.prompts[is_sent])
    recall, recall_interval = _share(is_sent[is_right], labelled.prompts[is_right])
    return QueueResult(
        queue=name,
        sent=int(is_sent.sum()),
        right=int(is_right.sum()),
        precision=precision,
        precision_interval=precision_interval,
        recall=recall,
        recall_interval=recall_interval,
    )


def _share(hits: NDArray[np.bool_], prompts: Names) -> tuple[float | None, Interval | None]:
    """The share of hits with its interval; None if `hits` is empty."""
    if not len(hits):
        return None, None
    interval = clustered_interval(hits, np.ones(len(hits)), prompts, resamples=RESAMPLES)
    return float(hits.mean()), _known(interval)


def _known(interval: Interval) -> Interval | None:
    """The interval; None if its ends are NaN."""
    return interval if interval.low <= interval.high else None


def _costs(rules: RoutingRules, sent: Names, labelled: _Labelled) -> NDArray[np.float64]:
    """Cost of each response."""
    costs = np.zeros(len(sent))
    for name, cost in rules.costs.items():
        is_sent = sent == name
        costs[is_sent] += cost.each
        costs[is_sent & (labelled.right != name)] += cost.wrong
    return costs


def _cost_elsewhere(costs: NDArray[np.float64], prompts: Names) -> float | None:
    """Cost of 100 responses if each half of the prompts chooses the threshold for the other half.

    `costs` has a row for each threshold.
    """
    names, numbers = np.unique(prompts, return_inverse=True)
    if len(names) < 2:
        return None
    halves = (numbers % 2 == 0, numbers % 2 == 1)
    total = 0.0
    for chosen_on, judged_on in (halves, halves[::-1]):
        row = int(costs[:, chosen_on].sum(axis=1).argmin())
        total += float(costs[row, judged_on].sum())
    return ITEMS_OF_COST * total / len(prompts)
