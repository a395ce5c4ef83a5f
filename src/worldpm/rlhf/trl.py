"""Rewards for TRL's GRPOTrainer, RLOOTrainer and OnlineDPO: a function of prompts and completions.

    from worldpm.rlhf.trl import RewardFunction

    trainer = GRPOTrainer(model=..., reward_funcs=RewardFunction("checkpoint"), ...)

`reward_funcs="checkpoint"` works too, since a checkpoint is a plain sequence classifier. It then
computes each prompt once for every rollout, and does not cut inputs over the training limits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from worldpm.errors import ConfigError
from worldpm.rlhf.judge import Guards, judge_of, messages_of, rewards_of

Turns = str | Sequence[Mapping[str, Any]]


class RewardFunction:
    """A reward function of TRL 1.x. `place` is a folder, a hub id, or the URL of a server, and
    `key` is its API key."""

    def __init__(
        self,
        place: str,
        *,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        weights: Mapping[str, float] | None = None,
        key: str | None = None,
    ) -> None:
        self._source, self._key, self._guards = place, key, Guards(ranges, weights)
        # TRL logs the reward under this name
        self.__name__ = "worldpm"

    def __call__(
        self, prompts: Sequence[Turns], completions: Sequence[Turns], **_: object
    ) -> list[float]:
        """Rewards in order. A text is one user message or its response; a list is a
        conversation."""
        # Further keywords are columns of the data set and TRL's own state
        judge = judge_of(self._source, self._key)
        messages = [messages_of(prompt) for prompt in prompts]
        responses = [_response(completion) for completion in completions]
        return rewards_of(judge, messages, responses, self._guards)


def _response(completion: Turns) -> str:
    turns = messages_of(completion)
    if len(turns) != 1:
        raise ConfigError(f"a completion has {len(turns)} turns; one answer can be judged")
    return turns[0].content
