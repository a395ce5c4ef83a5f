"""Rewards for verl as `reward.custom_reward_function.path`; see `runs/rlhf_verl.sh`.

`reward_kwargs` carry `place`, a folder or the URL of a server. The prompt is taken from
`extra_info["prompt"]` or `extra_info["question"]`, text or messages, as verl's data scripts write
it.
"""

from collections.abc import Mapping
from typing import Any

from worldpm.errors import ConfigError
from worldpm.rlhf.judge import Guards, judge_of, messages_of, rewards_of


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    place: str,
    key: str | None = None,
    **_: object,
) -> dict[str, float]:
    """The reward of one rollout.

    Raises:
        ConfigError: If `extra_info` holds no prompt.
    """
    prompt = next(
        (
            extra_info[name]
            for name in ("prompt", "question")
            if extra_info and extra_info.get(name)
        ),
        None,
    )
    if prompt is None:
        raise ConfigError(
            f"{data_source}: extra_info has neither `prompt` nor `question`; write one of them into"
            " the data"
        )
    (reward,) = rewards_of(judge_of(place, key), [messages_of(prompt)], [solution_str], Guards())
    return {"score": reward}
