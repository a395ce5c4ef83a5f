"""OpenRLHF's remote reward model: whole texts in, rewards out.

Source: OpenRLHF 0.11.2, `openrlhf/cli/serve_rm.py` and `openrlhf/utils/agent.py`;
`--reward.remote_url` names the route.
"""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel
from starlette.responses import JSONResponse

from worldpm.serving.service import Service


class GetReward(BaseModel):
    """Prompt and response in one text, special tokens kept."""

    query: list[str]
    prompts: list[Any] | None = None
    labels: list[Any] | None = None


def routes(service: Service) -> APIRouter:
    """`/get_reward`."""
    router = APIRouter(tags=["OpenRLHF"])

    @router.post("/get_reward", summary="Rewards of whole texts")
    async def get_reward(body: GetReward, http: HttpRequest) -> JSONResponse:
        answers = await service.of(http).texts(body.query)
        found = [answer.rewards[0] for answer in answers]
        return JSONResponse(
            {
                "rewards": found,
                "scores": found,
                "extra_logs": {"length_tokens": [a.sequence_tokens[0] for a in answers]},
            }
        )

    return router
