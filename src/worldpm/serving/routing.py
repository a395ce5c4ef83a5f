"""A rule file: which queue a response is sent to, by what the model is sure of.

    {"rules": [{"queue": "publish", "reward_at_least": 1.5},
               {"queue": "publish", "preferred_to_others": 0.9},
               {"queue": "senior", "preferred_to_others_below": 0.2}],
     "otherwise": "review"}

The first rule of which every condition holds decides. A support desk scores the draft of a ticket's
answer beside a canned one, publishes what is surely better and shows people the rest.
"""

from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from worldpm.errors import DataError
from worldpm.scoring.confidence import Confidence
from worldpm.storage import folders

Json = dict[str, Any]
CONDITIONS = ("reward_at_least", "reward_below", "preferred_to_others", "preferred_to_others_below")


class Routed(NamedTuple):
    """Where a response goes, and why."""

    queue: str
    rule: int | None
    """Number of the rule in the file, from 0; None where none held."""
    reward: float
    preferred_to_others: float | None
    """The least calibrated probability that it is preferred to another response; None where it
    stands alone."""


class RoutingRules(NamedTuple):
    """The rules in order, and the queue of what none of them takes."""

    rules: tuple[Json, ...]
    otherwise: str

    @classmethod
    def read(cls, path: Path) -> "RoutingRules":
        """The rules of a file.

        Raises:
            DataError: If it cannot be read, or a rule has no queue, no condition, or one that is
                unknown or not a number.
        """
        if not path.is_file():
            raise DataError(path, "no such rule file")
        content = folders.read_json(path)
        rules, otherwise = (
            (content.get("rules"), content.get("otherwise"))
            if isinstance(content, dict)
            else (None, None)
        )
        if not isinstance(rules, list) or not isinstance(otherwise, str):
            raise DataError(path, 'expected {"rules": [...], "otherwise": QUEUE}')
        for number, rule in enumerate(rules):
            conditions = (
                {name: value for name, value in rule.items() if name != "queue"}
                if isinstance(rule, dict)
                else {}
            )
            bounds = conditions.values()
            numbers = all(
                isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
                for value in bounds
            )
            if (
                not conditions
                or not isinstance(rule.get("queue"), str)
                or not numbers
                or set(conditions) - set(CONDITIONS)
            ):
                raise DataError(
                    path,
                    f"rule {number}: needs a queue and numbers for some of {', '.join(CONDITIONS)};"
                    f" it is {rule!r:.100}",
                )
        return cls(tuple(rules), otherwise)

    def queue(self, known: Confidence, rewards: list[float], place: int) -> Routed:
        """Where the response at `place` goes; a condition on others does not hold for one that
        stands alone."""
        reward = rewards[place]
        others = max((other for i, other in enumerate(rewards) if i != place), default=None)
        least = None if others is None else known.probability(reward - others)
        for number, rule in enumerate(self.rules):
            if all(
                _holds(name, bound, reward, least)
                for name, bound in rule.items()
                if name != "queue"
            ):
                return Routed(rule["queue"], number, reward, least)
        return Routed(self.otherwise, None, reward, least)


def _holds(condition: str, bound: float, reward: float, least: float | None) -> bool:
    if condition.startswith("reward"):
        return reward >= bound if condition == "reward_at_least" else reward < bound
    if least is None:
        return False
    return least >= bound if condition == "preferred_to_others" else least < bound
