"""The routes of Hugging Face's text-embeddings-inference for classifiers and rerankers.

Source: https://github.com/huggingface/text-embeddings-inference, `router/src/http/types.rs`. A pair
is read as prompt and response.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from worldpm.records import Message
from worldpm.scoring.scorer import Request
from worldpm.serving.backends import AS_MADE, Answer
from worldpm.serving.service import RefusedError, Service
from worldpm.stats import bradley_terry

Json = dict[str, Any]
Pair = tuple[str, str]


class Predict(BaseModel):
    """`/predict`: a text, a pair, or a list of either in lists, as TEI has it."""

    inputs: str | Pair | list[Annotated[list[str], Field(min_length=1, max_length=2)]]
    truncate: bool | None = None
    raw_scores: bool = False


class RerankTexts(BaseModel):
    """`/rerank` with `texts`."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    raw_scores: bool = False
    return_text: bool = False


async def rerank(service: Service, body: RerankTexts, http: HttpRequest) -> JSONResponse:
    """The texts from the best to the worst."""
    http.scope.setdefault("state", {})["tei"] = True  # errors in TEI's form
    request = Request("query", (Message("user", body.query),), body.texts)
    (answer,) = await service.of(http).conversations(
        [request], cut_to=AS_MADE if body.truncate else None
    )
    order = sorted(range(len(body.texts)), key=lambda place: -answer.rewards[place])
    return JSONResponse(
        [
            {
                "index": place,
                **({"text": body.texts[place]} if body.return_text else {}),
                "score": _score(answer.rewards[place], raw=body.raw_scores),
            }
            for place in order
        ]
    )


def routes(service: Service) -> APIRouter:
    """`/predict` and `/info`; `/rerank` is shared with vLLM."""
    router = APIRouter(tags=["TEI"])

    @router.post("/predict", summary="TEI's predict: a text, or a pair of prompt and response")
    async def predict(body: Predict, http: HttpRequest) -> JSONResponse:
        alone = isinstance(body.inputs, str | tuple)
        inputs = (
            [[body.inputs]]
            if isinstance(body.inputs, str)
            else [body.inputs]
            if isinstance(body.inputs, tuple)
            else body.inputs
        )
        answers = await _answers(service, inputs, http, cut_to=AS_MADE if body.truncate else None)
        found = [
            [{"score": _score(answer.rewards[0], raw=body.raw_scores), "label": "LABEL_0"}]
            for answer in answers
        ]
        return JSONResponse(found[0] if alone else found)

    @router.get("/info", summary="What answers, and its limits")
    async def info() -> JSONResponse:
        identity, limits = service.identity, service.limits
        return JSONResponse(
            {
                "model_id": identity.name,
                "model_sha": identity.sha256,
                "model_dtype": identity.dtype,
                "model_type": {
                    "classifier": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
                },
                "max_input_length": identity.max_length,
                "max_batch_tokens": identity.row_tokens,
                "tokenization_workers": 1,
                "version": version("worldpm"),
                "max_client_batch_size": limits.inputs,
                "max_concurrent_requests": limits.requests,
            }
        )

    return router


async def _answers(
    service: Service, inputs: Sequence[Sequence[str]], http: HttpRequest, *, cut_to: int | None
) -> list[Answer]:
    """Texts as they are, pairs as conversations.

    Raises:
        RefusedError: If a batch holds both.
    """
    call = service.of(http)
    if len({len(one) for one in inputs}) > 1:
        raise RefusedError(422, "a batch holds texts and pairs; send one kind", kind="Validation")
    if inputs and len(inputs[0]) == 1:
        return await call.texts([text for (text,) in inputs], cut_to=cut_to)
    requests = [
        Request(f"input {i}", (Message("user", prompt),), [response])
        for i, (prompt, response) in enumerate(inputs)
    ]
    return await call.conversations(requests, cut_to=cut_to)


def _score(reward: float, *, raw: bool) -> float:
    return reward if raw else bradley_terry.probability(reward)
