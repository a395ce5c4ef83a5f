"""Rewards for TRL's GRPOTrainer, RLOOTrainer and OnlineDPO: a function of prompts and completions.

    from worldpm.rlhf.trl import RewardFunction

    trainer = GRPOTrainer(model=..., reward_funcs=RewardFunction("checkpoint"), ...)

`reward_funcs="checkpoint"` works too, since a checkpoint is a plain sequence classifier; it then
computes each prompt as often as it has rollouts, and what is longer than the model was trained on
is not cut, as it is here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from worldpm.errors import ConfigError
from worldpm.rlhf.judge import Guards, judge_of, messages_of, rewards_of

Turns = str | Sequence[Mapping[str, Any]]


class RewardFunction:
    """A reward function of TRL 1.x; `place` is a folder, a hub id, or the URL of a server, `key`
    its API key."""

    def __init__(
        self,
        place: str,
        *,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        weights: Mapping[str, float] | None = None,
        key: str | None = None,
    ) -> None:
        self._place, self._key, self._guards = place, key, Guards(ranges, weights)
        self.__name__ = "worldpm"  # what TRL calls it in its logs

    def __call__(
        self, prompts: Sequence[Turns], completions: Sequence[Turns], **_: object
    ) -> list[float]:
        """Rewards in order; texts are one user turn and its answer, lists are conversations."""
        asked = [messages_of(prompt) for prompt in prompts]
        return rewards_of(
            judge_of(self._place, self._key),
            asked,
            [_response(completion) for completion in completions],
            self._guards,
        )


def _response(completion: Turns) -> str:
    if len(turns := messages_of(completion)) != 1:
        raise ConfigError(f"a completion has {len(turns)} turns; one answer can be judged")
    return turns[0].content
