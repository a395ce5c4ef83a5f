"""How good a rule file is on labelled responses: precision, recall and cost of each queue, as it is
and with other thresholds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldpm.scoring.confidence import Confidence
from worldpm.serving.routing import CONDITIONS, Routed, RoutingRules
from worldpm.stats.uncertainty import Interval, clustered_interval

DECILES = np.linspace(0.1, 0.9, 9)
"""Of the observed values: the thresholds that are tried beside that of the file."""
Names = NDArray[np.str_]
RESAMPLES = 2000
ITEMS_OF_COST = 100
"""Number of responses to which a reported cost refers."""


class LabelledRewards(NamedTuple):
    """The responses of one prompt, scored and labelled."""

    prompt: str
    """Id of the prompt; its responses are drawn together."""
    rewards: Sequence[float]
    queues: Sequence[str | None]
    """The right queue of each response; None if it is not labelled."""


@dataclass(frozen=True)
class QueueResult:
    """One queue under one set of rules."""

    queue: str
    sent: int
    """Responses that the rules send there."""
    right: int
    """Responses that belong there."""
    precision: float | None
    """Share of the sent that belong there; None without any."""
    precision_interval: Interval | None
    """95 %, prompts drawn as a whole."""
    recall: float | None
    """Share of those that belong there that are sent; None without any."""
    recall_interval: Interval | None


@dataclass(frozen=True)
class RulesResult:
    """One set of rules."""

    threshold: float | None
    """In place of the file's; None for the rules as they are."""
    queues: list[QueueResult]
    cost: float
    """Of 100 responses, in the units of the file; 0 without costs."""
    cost_interval: Interval | None
    """95 %; None where all prompts cost the same."""


@dataclass(frozen=True)
class Sweep:
    """One condition of one rule over thresholds."""

    rule: int
    """Number of the rule in the file, from 0."""
    condition: str
    file_threshold: float
    results: list[RulesResult]
    """By rising threshold, that of the file among them."""
    cheapest: float
    """The threshold of least cost."""
    cheapest_cost_elsewhere: float | None
    """Cost of 100 responses where each half of the prompts takes the threshold that is the cheapest
    on the other half: a choice looks better on the responses it was made on. None with one
    prompt."""


@dataclass(frozen=True)
class RulesCheck:
    """How good a rule file is."""

    responses: int
    """That are labelled."""
    prompts: int
    as_they_are: RulesResult
    sweeps: list[Sweep]
    """One for each condition of each rule."""


@dataclass(frozen=True)
class _Labelled:
    """All labelled responses, in order."""

    groups: Sequence[LabelledRewards]
    confidence: Confidence
    right: Names
    """The right queue of each."""
    prompts: Names

    @classmethod
    def of(cls, groups: Sequence[LabelledRewards], confidence: Confidence) -> "_Labelled":
        pairs = [(one.prompt, queue) for one in groups for queue in one.queues if queue is not None]
        prompts, right = np.array(pairs, dtype=np.str_).reshape(-1, 2).T
        return cls(groups, confidence, right, prompts)

    def sent(self, rules: RoutingRules) -> Names:
        """The queue that the rules send each response to."""
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
        for one in self.groups:
            routed = rules.routed(self.confidence, one.rewards)
            for each, queue in zip(routed, one.queues, strict=True):
                if queue is not None:
                    yield each


def check(
    rules: RoutingRules, groups: Sequence[LabelledRewards], confidence: Confidence
) -> RulesCheck:
    """Judge the rules, with each threshold as it is and at the deciles of what it is compared with.

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
    """A condition of a rule at its thresholds."""
    own = rules.rules[number].bounds[condition]
    thresholds = sorted({own, *labelled.deciles(rules, condition)})
    sent = [labelled.sent(_with_threshold(rules, number, condition, value)) for value in thresholds]
    costs = np.stack([_costs(rules, queues, labelled) for queues in sent])
    return Sweep(
        rule=number,
        condition=condition,
        file_threshold=own,
        results=[
            _result(rules, value, queues, labelled)
            for value, queues in zip(thresholds, sent, strict=True)
        ],
        cheapest=_cheapest(costs.mean(axis=1), thresholds, own),
        cheapest_cost_elsewhere=_cost_elsewhere(costs, labelled.prompts),
    )


def _cheapest(costs: NDArray[np.float64], thresholds: Sequence[float], own: float) -> float:
    """The threshold of least cost; the file's where it is among several."""
    least = [value for value, cost in zip(thresholds, costs, strict=True) if cost == costs.min()]
    return own if own in least else least[0]


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
    """The share of hits with its interval; None without any trial."""
    if not len(hits):
        return None, None
    interval = clustered_interval(hits, np.ones(len(hits)), prompts, resamples=RESAMPLES)
    return float(hits.mean()), _known(interval)


def _known(interval: Interval) -> Interval | None:
    """The interval; None in place of NaN ends."""
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
    """Cost of 100 responses where each half of the prompts chooses for the other.

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
