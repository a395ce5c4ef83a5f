"""OpenRLHF's remote reward model: gets whole texts and replies with rewards.

Source: OpenRLHF 0.11.2, `openrlhf/cli/serve_rm.py` and `openrlhf/utils/agent.py`. OpenRLHF's option
`--reward.remote_url` names the route.
"""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from worldpm.serving.client import (
    RENDERED,
    Client,
    Many,
    Reply,
    RequestBody,
    example,
    reply_of,
)
from worldpm.serving.service import Service


class GetReward(RequestBody):
    """Texts, each with prompt, response and special tokens."""

    model_config = example({"query": [RENDERED]})

    query: Many[str]
    prompts: list[Any] | None = None
    labels: list[Any] | None = None


@dataclass(frozen=True)
class ExtraLogs:
    """Numbers that OpenRLHF adds to its log."""

    length_tokens: list[int]
    """Number of tokens of each text."""


@dataclass(frozen=True)
class GetRewardReply:
    """Rewards of the texts, in order."""

    rewards: list[float]
    """Rewards in logits, which OpenRLHF's loss uses."""
    scores: list[float]
    """The same rewards. OpenRLHF uses them to filter prompts."""
    extra_logs: ExtraLogs


def routes(service: Service) -> APIRouter:
    """The route `/get_reward`."""
    router = APIRouter()

    @router.post(
        "/get_reward", summary="Rewards of whole texts", responses=reply_of(GetRewardReply)
    )
    async def get_reward(body: GetReward, http: HttpRequest) -> Reply:
        replies = await service.of(http, "rewards").texts(body.query)
        rewards = [reply.rewards[0] for reply in replies]
        lengths = ExtraLogs([reply.sequence_tokens[0] for reply in replies])
        return Reply(GetRewardReply(rewards, rewards, lengths))

    return router


GET_REWARD = Client("OpenRLHF", routes)
