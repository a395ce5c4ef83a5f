"""Rule files, which send a response to a queue by its reward and by its lead over the others.

    {"rules": [{"queue": "publish", "reward_at_least": 1.5},
               {"queue": "publish", "preferred_to_others": 0.9},
               {"queue": "senior", "preferred_to_others_below": 0.2}],
     "otherwise": "review",
     "costs": {"publish": {"wrong": 20}, "review": {"each": 1}, "senior": {"each": 3}}}

The first rule decides whose conditions all hold. For example, a support desk scores the draft of an
answer together with a standard answer, publishes drafts that are clearly better, and shows the rest
to people.

Only `worldpm route --check` uses costs. They have any unit: `each` is the cost of every response in
a queue, and `wrong` the additional cost of a response that does not belong there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

from worldpm.errors import DataError
from worldpm.scoring.confidence import Confidence
from worldpm.storage.json_files import Json, read_json

COST_FORM = (
    '"costs" has another form than {QUEUE: {"each": NUMBER, "wrong": NUMBER}}. Use this form, with'
    " numbers from 0."
)
QUEUE = "queue"
"""The only key of a rule that is not a condition."""


@dataclass(frozen=True)
class Condition:
    """One comparison with the number of a rule."""

    of_reward: bool
    """True to compare the reward, False to compare the least probability to be preferred to another
    response."""
    at_least: bool
    """True to hold at or above the number, False to hold below it."""


CONDITIONS = {
    "reward_at_least": Condition(of_reward=True, at_least=True),
    "reward_below": Condition(of_reward=True, at_least=False),
    "preferred_to_others": Condition(of_reward=False, at_least=True),
    "preferred_to_others_below": Condition(of_reward=False, at_least=False),
}
"""Conditions by their keys in a rule."""


@dataclass(frozen=True)
class Routed:
    """The queue of a response, and the reason."""

    queue: str
    rule: int | None
    """Number of the rule in the file, from 0; None if no rule held."""
    reward: float
    preferred_to_others: float | None
    """The least calibrated probability that the response is preferred to another one; None for a
    single response."""

    def meets(self, condition: Condition, bound: float) -> bool:
        """Whether a condition holds. A condition on other responses never holds without them."""
        value = self.reward if condition.of_reward else self.preferred_to_others
        if value is None:
            return False
        return value >= bound if condition.at_least else value < bound


@dataclass(frozen=True)
class Rule:
    """One rule of a file."""

    queue: str
    bounds: Mapping[str, float]
    """Numbers by condition; at least one."""
    source: Json
    """The rule in the file's form, for the decision log."""


@dataclass(frozen=True)
class Cost:
    """Costs of the responses in a queue, in the file's unit."""

    each: float = 0.0
    """Cost of each response, for instance the minutes of a person."""
    wrong: float = 0.0
    """Additional cost of a response that does not belong there."""


@dataclass(frozen=True)
class RoutingRules:
    """The rules in order, and the queue of responses for which no rule holds."""

    rules: tuple[Rule, ...]
    otherwise: str
    costs: Mapping[str, Cost] = field(default_factory=dict)
    """Costs by queue. Other queues cost nothing."""

    @property
    def queues(self) -> set[str]:
        """The names of all queues."""
        return {self.otherwise, *(rule.queue for rule in self.rules)}

    @classmethod
    def read(cls, path: Path) -> "RoutingRules":
        """Read the rules of a file.

        Raises:
            DataError: If the file cannot be read, or if a rule has no queue, no condition, an
                unknown condition, or a condition without a number.
        """
        if not path.is_file():
            raise DataError(path, "no such file. Name a file with rules.")

        content = read_json(path)
        entries = content.get("rules") if isinstance(content, dict) else None
        otherwise = content.get("otherwise") if isinstance(content, dict) else None
        if not isinstance(entries, list) or not isinstance(otherwise, str):
            raise DataError(
                path, 'not a file with rules. Use the form {"rules": [...], "otherwise": QUEUE}.'
            )

        rules: list[Rule] = []
        for number, entry in enumerate(entries):
            rule = _rule(entry)
            if rule is None:
                raise DataError(
                    path,
                    f"rule {number} is {entry!r:.100}. Give it a queue, and numbers for some of"
                    f" {', '.join(CONDITIONS)}.",
                )
            rules.append(rule)
        costs = _costs(content.get("costs", {}))
        routing = cls(tuple(rules), otherwise, costs or {})
        if costs is None:
            raise DataError(path, COST_FORM)
        if unknown := sorted(costs.keys() - routing.queues):
            raise DataError(
                path,
                f"has costs of {unknown[0]!r}, which is not a queue of the rules. Use the name of a"
                " queue.",
            )
        return routing

    def routed(self, confidence: Confidence, rewards: Sequence[float]) -> list[Routed]:
        """The queue of each response of a prompt."""
        return [self._queue(confidence, rewards, index) for index in range(len(rewards))]

    def _queue(self, confidence: Confidence, rewards: Sequence[float], index: int) -> Routed:
        """The queue of the response at an index."""
        reward = rewards[index]
        # The best other response gives the least probability
        best_other = max(
            (reward_i for i, reward_i in enumerate(rewards) if i != index), default=None
        )
        least = None if best_other is None else confidence.probability(reward - best_other)
        unrouted = Routed(self.otherwise, None, reward, least)

        for number, rule in enumerate(self.rules):
            bounds = rule.bounds.items()
            if all(unrouted.meets(CONDITIONS[key], bound) for key, bound in bounds):
                return replace(unrouted, queue=rule.queue, rule=number)
        return unrouted


def _rule(entry: object) -> Rule | None:
    """A rule of the file; None if it has no queue, no condition, or an invalid condition."""
    if not isinstance(entry, dict) or not isinstance(entry.get(QUEUE), str) or not entry[QUEUE]:
        return None

    bounds = {key: value for key, value in entry.items() if key != QUEUE}
    if not bounds or set(bounds) - set(CONDITIONS) or not all(map(_is_number, bounds.values())):
        return None
    return Rule(entry[QUEUE], bounds, entry)


def _costs(entries: object) -> dict[str, Cost] | None:
    """The costs of the file; None if they have another form."""
    if not isinstance(entries, dict):
        return None
    costs: dict[str, Cost] = {}
    for queue, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() - {"each", "wrong"}:
            return None
        if not all(_is_number(value) and value >= 0 for value in entry.values()):
            return None
        costs[queue] = Cost(**entry)
    return costs


def _is_number(value: object) -> bool:
    # In Python, JSON's true is an int, and NaN and 1e999 are read as numbers
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
