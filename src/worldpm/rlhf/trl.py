"""Rewards for TRL's GRPOTrainer, RLOOTrainer and OnlineDPO, as a function of prompts and
completions.

    from worldpm.rlhf.trl import RewardFunction

    trainer = GRPOTrainer(model=..., reward_funcs=RewardFunction("checkpoint"), ...)

`reward_funcs="checkpoint"` also works, because a checkpoint is a plain sequence classifier. TRL
then computes the prompt again for every rollout, and does not cut inputs over the training limits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from worldpm.errors import ConfigError
from worldpm.records import Message
from worldpm.rlhf.judge import Guards, judge_of, messages_of, rewards_of

Turns = str | Sequence[Mapping[str, Any]]


class RewardFunction:
    """A reward function for TRL 1.x. `source` is a folder, a hub id, or the URL of a server, and
    `key` is the server's API key."""

    def __init__(
        self,
        source: str,
        *,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        weights: Mapping[str, float] | None = None,
        key: str | None = None,
    ) -> None:
        self._source, self._key, self._guards = source, key, Guards(ranges, weights)
        # TRL logs the reward under this name
        self.__name__ = "worldpm"

    def __call__(
        self, prompts: Sequence[Turns], completions: Sequence[Turns], **_: object
    ) -> list[float]:
        """Rewards, in order. A text is one user message or its response, and a list is a
        conversation."""
        # Other keyword arguments are columns of the data set and TRL's state
        judge = judge_of(self._source, self._key)
        dialogues = []
        responses = []
        for prompt, completion in zip(prompts, completions, strict=True):
            # With tools, a completion is itself a dialogue; score the whole conversation
            *before, last = _turns(completion)
            dialogues.append([*messages_of(prompt), *before])
            responses.append(last)
        return rewards_of(judge, dialogues, responses, self._guards)


def _turns(completion: Turns) -> tuple[Message, ...]:
    if isinstance(completion, str):
        return (Message("assistant", completion),)
    if not completion:
        raise ConfigError("a completion has no turn. Give one, for instance with an empty text.")
    return messages_of(completion)
