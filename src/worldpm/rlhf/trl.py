"""Rewards for TRL's GRPOTrainer, RLOOTrainer and OnlineDPO: a function of prompts and completions.

    from worldpm.rlhf.trl import RewardFunction

    trainer = GRPOTrainer(model=..., reward_funcs=RewardFunction("checkpoint"), ...)

`reward_funcs="checkpoint"` works too, since a checkpoint is a plain sequence classifier. It then
computes each prompt once for every rollout, and does not cut inputs over the training limits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from worldpm.errors import ConfigError
from worldpm.records import Message
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
        dialogues = []
        responses = []
        for prompt, completion in zip(prompts, completions, strict=True):
            # With tools a completion is a dialogue of its own; the reward is that of the whole
            *before, last = _turns(completion)
            dialogues.append([*messages_of(prompt), *before])
            responses.append(last)
        return rewards_of(judge, dialogues, responses, self._guards)


def _turns(completion: Turns) -> tuple[Message, ...]:
    if isinstance(completion, str):
        return (Message("assistant", completion),)
    if not completion:
        raise ConfigError("a completion has no turn. Give one, if only with an empty text.")
    return messages_of(completion)
