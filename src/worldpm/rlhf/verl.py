"""Rewards for verl as `reward.custom_reward_function.path`; see `runs/rlhf_verl.sh`.

`reward_kwargs` must contain `source`, a folder or the URL of a server. The prompt, text or
messages, comes from `extra_info["prompt"]` or `extra_info["question"]`, which verl's data scripts
write:

    {"question": "What is 17 times 6?", "index": 3}
"""

from collections.abc import Mapping
from typing import Any

from worldpm.errors import ConfigError
from worldpm.rlhf.judge import Guards, judge_of, messages_of, rewards_of

PROMPT_KEYS = ("prompt", "question")
"""Keys of `extra_info` that can hold the prompt. The first one that is not empty is used."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    source: str,
    key: str | None = None,
    **_: object,
) -> dict[str, float]:
    """The reward of one rollout. verl fixes the names of the parameters.

    Raises:
        ConfigError: If `extra_info` has no prompt.
    """
    prompts = [extra_info[name] for name in PROMPT_KEYS if extra_info and extra_info.get(name)]
    if not prompts:
        raise ConfigError(
            f"{data_source}: extra_info has neither `prompt` nor `question`. Add one of them to the"
            " data."
        )

    # verl scores one rollout at a time, so rollouts cannot share the prompt here
    judge = judge_of(source, key)
    (reward,) = rewards_of(judge, [messages_of(prompts[0])], [solution_str], Guards())
    return {"score": reward}
