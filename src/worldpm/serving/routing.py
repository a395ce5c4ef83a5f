"""Rule files, which send a response to a queue by its reward and its lead over the others.

    {"rules": [{"queue": "publish", "reward_at_least": 1.5},
               {"queue": "publish", "preferred_to_others": 0.9},
               {"queue": "senior", "preferred_to_others_below": 0.2}],
     "otherwise": "review",
     "costs": {"publish": {"wrong": 20}, "review": {"each": 1}, "senior": {"each": 3}}}

The first rule whose conditions all hold decides. A support desk scores the draft of a ticket's
answer beside a canned one, publishes drafts that are surely better and shows people the rest.
Costs are for `worldpm route --check` alone, in any unit: of each response in a queue, and of one
that does not belong there in addition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

from worldpm.errors import DataError
from worldpm.scoring.confidence import Confidence
from worldpm.storage.json_files import Json, read_json

COST_FORM = '"costs" must be {QUEUE: {"each": NUMBER, "wrong": NUMBER}}, numbers from 0'
QUEUE = "queue"
"""Key of a rule that is not a condition."""


@dataclass(frozen=True)
class Condition:
    """One comparison with the number of a rule."""

    of_reward: bool
    """Compares the reward; else the least probability to be preferred to another response."""
    at_least: bool
    """Holds at or above the number; else below it."""


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
    """The least calibrated probability that it is preferred to another response; None if it is
    the only response."""

    def meets(self, condition: Condition, bound: float) -> bool:
        """Whether a condition holds; one on other responses never holds without them."""
        value = self.reward if condition.of_reward else self.preferred_to_others
        if value is None:
            return False
        return value >= bound if condition.at_least else value < bound


@dataclass(frozen=True)
class Rule:
    """One rule of a file."""

    queue: str
    bounds: Mapping[str, float]
    """Numbers by the keys of `CONDITIONS`; at least one."""
    source: Json
    """The rule as in the file, for the decision log."""


@dataclass(frozen=True)
class Cost:
    """Costs of the responses in a queue, in the units of the file."""

    each: float = 0.0
    """Of each response, for instance the minutes of a person."""
    wrong: float = 0.0
    """In addition, of one that does not belong there."""


@dataclass(frozen=True)
class RoutingRules:
    """The rules in order, and the queue of responses which no rule takes."""

    rules: tuple[Rule, ...]
    otherwise: str
    costs: Mapping[str, Cost] = field(default_factory=dict)
    """By queue; a queue without one costs nothing."""

    @property
    def queues(self) -> set[str]:
        """The names of all queues."""
        return {self.otherwise, *(rule.queue for rule in self.rules)}

    @classmethod
    def read(cls, path: Path) -> "RoutingRules":
        """The rules of a file.

        Raises:
            DataError: If it cannot be read, or a rule has no queue, no condition, or one that is
                unknown or not a number.
        """
        if not path.is_file():
            raise DataError(path, "no such rule file")

        content = read_json(path)
        entries = content.get("rules") if isinstance(content, dict) else None
        otherwise = content.get("otherwise") if isinstance(content, dict) else None
        if not isinstance(entries, list) or not isinstance(otherwise, str):
            raise DataError(path, 'expected {"rules": [...], "otherwise": QUEUE}')

        rules: list[Rule] = []
        for number, entry in enumerate(entries):
            rule = _rule(entry)
            if rule is None:
                raise DataError(
                    path,
                    f"rule {number}: needs a queue and numbers for some of {', '.join(CONDITIONS)};"
                    f" it is {entry!r:.100}",
                )
            rules.append(rule)
        costs = _costs(content.get("costs", {}))
        found = cls(tuple(rules), otherwise, costs or {})
        if costs is None:
            raise DataError(path, COST_FORM)
        if unknown := sorted(costs.keys() - found.queues):
            raise DataError(path, f"costs of {unknown[0]!r}, which is not a queue of the rules")
        return found

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
    """A rule of the file; None if it has no queue, no condition, or a wrong one."""
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
    # JSON's true is an int in Python, and Python reads NaN and 1e999
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
