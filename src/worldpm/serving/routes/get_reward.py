"""OpenRLHF's remote reward model: whole texts in, rewards out.

Source: OpenRLHF 0.11.2, `openrlhf/cli/serve_rm.py` and `openrlhf/utils/agent.py`;
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
    """Texts of prompt and response together, with their special tokens."""

    model_config = example({"query": [RENDERED]})

    query: Many[str]
    prompts: list[Any] | None = None
    labels: list[Any] | None = None


@dataclass(frozen=True)
class ExtraLogs:
    """Numbers that OpenRLHF adds to its log."""

    length_tokens: list[int]
    """Of each text."""


@dataclass(frozen=True)
class GetRewardReply:
    """Rewards of the texts, in order."""

    rewards: list[float]
    """Logits; OpenRLHF's loss uses them."""
    scores: list[float]
    """The same; OpenRLHF filters prompts by them."""
    extra_logs: ExtraLogs


def routes(service: Service) -> APIRouter:
    """`/get_reward`."""
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
