"""SGLang's routes for reward models: raw rewards as embeddings of one number, which verl's client
reads.

Source: SGLang 0.5.23, `/classify` with `text` or `input_ids`, and `/v1/embeddings`.
"""

import secrets
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, model_validator
from starlette.responses import JSONResponse

from worldpm.serving.backends import Answer
from worldpm.serving.service import Service

Json = dict[str, Any]


class Classify(BaseModel):
    """`/classify` of texts, or of token ids."""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Classify":
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("give either text or input_ids")
        return self


class Embeddings(BaseModel):
    """`/v1/embeddings`."""

    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]


async def classify(service: Service, body: Classify, http: HttpRequest) -> JSONResponse:
    """One object for one input, a list for a list."""
    given = body.text if body.text is not None else body.input_ids
    assert given is not None
    alone = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    answers = await service.of(http).texts([given] if alone else given)  # type: ignore[arg-type, list-item]
    found = [_embedding(answer) for answer in answers]
    return JSONResponse(found[0] if alone else found)


def _embedding(answer: Answer) -> Json:
    meta = {
        "id": secrets.token_hex(16),
        "finish_reason": None,
        "prompt_tokens": answer.sequence_tokens[0],
        "cached_tokens": 0,
    }
    return {"embedding": [answer.rewards[0]], "meta_info": meta}


def routes(service: Service) -> APIRouter:
    """`/v1/embeddings`; `/classify` is shared with vLLM."""
    router = APIRouter(tags=["SGLang"])

    @router.post("/v1/embeddings", summary="The raw reward as an embedding of one number")
    async def embeddings(body: Embeddings, http: HttpRequest) -> JSONResponse:
        service.check_model(body.model)
        given = body.input
        alone = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        answers = await service.of(http).texts([given] if alone else given)  # type: ignore[arg-type, list-item]
        data = [
            {"embedding": [answer.rewards[0]], "index": index, "object": "embedding"}
            for index, answer in enumerate(answers)
        ]
        tokens = sum(answer.sequence_tokens[0] for answer in answers)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        return JSONResponse(
            {"data": data, "model": service.identity.name, "object": "list", "usage": usage}
        )

    return router
