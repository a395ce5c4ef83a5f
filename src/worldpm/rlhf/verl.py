"""Rewards for verl as `reward.custom_reward_function.path`; see `runs/rlhf_verl.sh`.

Each function serves other reward managers of verl. `compute_score_async` is for the managers of the
reward loop, which await one rollout at a time: rollouts that arrive together are scored together,
so that those of a prompt share it. `compute_scores` is for the older manager `batch`, and
`compute_score` for the older managers of single rollouts. `reward_kwargs` must contain
`source`, a folder or the URLs of servers. The prompt, text or messages, comes from
`extra_info["prompt"]` or `extra_info["question"]`, which verl's data scripts write:

    {"question": "What is 17 times 6?", "index": 3}
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from worldpm.errors import ConfigError
from worldpm.records import Message
from worldpm.rlhf.judge import Guards, judge_of, messages_of, rewards_of

WINDOW_SECONDS = 0.02
"""Time in which rollouts are gathered."""
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
    info = [extra_info]
    (score,) = compute_scores(
        [data_source], [solution_str], [ground_truth], info, source=source, key=key
    )
    return score


def compute_scores(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[object],
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    source: str,
    key: str | None = None,
    **_: object,
) -> list[dict[str, float]]:
    """The rewards of a batch of rollouts, in order. verl fixes the names of the parameters.

    Raises:
        ConfigError: If an `extra_info` has no prompt.
    """
    prompts = [
        _prompt_of(info, data_source)
        for info, data_source in zip(extra_infos, data_sources, strict=True)
    ]
    rewards = rewards_of(judge_of(source, key), prompts, list(solution_strs), Guards())
    return [{"score": reward} for reward in rewards]


class _Rollout(NamedTuple):
    """A rollout that waits to be scored with others."""

    prompt: tuple[Message, ...]
    response: str
    reward: asyncio.Future[float]


class _Window(NamedTuple):
    """The rollouts that are scored together: of one event loop, source and key."""

    loop: asyncio.AbstractEventLoop
    source: str
    key: str | None


_waiting: dict[_Window, list[_Rollout]] = {}
"""Rollouts that wait. Only their event loop's thread uses them."""
_scoring: set[asyncio.Task[None]] = set()
"""Tasks that score; the event loop alone would not keep them."""


async def compute_score_async(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    source: str,
    key: str | None = None,
    **_: object,
) -> dict[str, float]:
    """The reward of one rollout, scored with all others that arrive within WINDOW_SECONDS. verl
    fixes the names of the parameters.

    Raises:
        ConfigError: If `extra_info` has no prompt.
    """
    prompt = _prompt_of(extra_info, data_source)
    loop = asyncio.get_running_loop()
    window, reward = _Window(loop, source, key), loop.create_future()
    rollouts = _waiting.setdefault(window, [])
    rollouts.append(_Rollout(prompt, solution_str, reward))
    if len(rollouts) == 1:
        # A task of its own, because any caller may be cancelled
        task = loop.create_task(_score_together(window))
        _scoring.add(task)
        task.add_done_callback(_scoring.discard)
    return {"score": await reward}


async def _score_together(window: _Window) -> None:
    """Score the rollouts that arrive in time, and give each its reward or the error."""
    await asyncio.sleep(WINDOW_SECONDS)
    prompts, responses, futures = zip(*_waiting.pop(window), strict=True)

    def score() -> list[float]:
        judge = judge_of(window.source, window.key)
        return rewards_of(judge, prompts, responses, Guards())

    try:
        rewards = await asyncio.to_thread(score)
    except Exception as error:
        for future in futures:
            if not future.done():
                future.set_exception(error)
        return
    for future, reward in zip(futures, rewards, strict=True):
        if not future.done():
            future.set_result(reward)


def _prompt_of(extra_info: Mapping[str, Any] | None, data_source: str) -> tuple[Message, ...]:
    for name in PROMPT_KEYS:
        prompt = (extra_info or {}).get(name)
        # Parquet gives turns as an array, whose truth is undefined
        if prompt is not None and len(prompt) > 0:
            return messages_of(prompt)
    raise ConfigError(
        f"{data_source}: extra_info has neither `prompt` nor `question`. Add one of them to the"
        " data."
    )
