"""The routes of Hugging Face's text-embeddings-inference (TEI) for classifiers and rerankers.

Source: https://github.com/huggingface/text-embeddings-inference, `router/src/http/types.rs`. A pair
is a prompt and a response.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import Field
from pydantic_core import ErrorDetails
from starlette.responses import Response

from worldpm.records import Message
from worldpm.scoring.scorer import Request
from worldpm.serving.backends import CUT_TO_MODEL_LIMIT, BackendReply, Piece
from worldpm.serving.client import (
    GOOD,
    POOR,
    QUESTION,
    Client,
    Many,
    Reply,
    RequestBody,
    example,
    reply_of,
    use_errors_of,
)
from worldpm.serving.service import RefusedError, Service, check_text, refusing
from worldpm.stats import bradley_terry

Pair = tuple[str, str]
LABEL = "LABEL_0"
"""Transformers' name of a single label."""


class Parameters(RequestBody):
    """Options of Hugging Face's InferenceClient. With one label, `top_k` has no effect."""

    function_to_apply: Literal["sigmoid", "none"] | None = None
    top_k: int | None = None


class Predict(RequestBody):
    """Body of `/predict`: a text, a pair, or a list of lists with one or two texts, as in TEI."""

    model_config = example({"inputs": [QUESTION, GOOD], "raw_scores": True})

    inputs: str | Pair | Many[Annotated[Many[str], Field(min_length=1, max_length=2)]]
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] | None = None
    """Cuts keep the template, so a side cannot be chosen."""
    prompt_name: None = None
    """The template of training is always used."""
    raw_scores: bool = False
    parameters: Parameters | None = None
    """Options of Hugging Face's InferenceClient."""

    @property
    def is_raw(self) -> bool:
        """Whether rewards are wanted, not their sigmoid."""
        function = self.parameters.function_to_apply if self.parameters else None
        return self.raw_scores or function == "none"

    @property
    def rows(self) -> Sequence[Sequence[str]]:
        """Texts or pairs, each as a list."""
        if isinstance(self.inputs, str):
            return [[self.inputs]]
        if isinstance(self.inputs, tuple):
            return [self.inputs]
        return self.inputs


class RerankTexts(RequestBody):
    """Body of `/rerank` with `texts`."""

    model_config = example({"query": QUESTION, "texts": [GOOD, POOR]})

    query: str
    texts: Many[str]
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] | None = None
    """Cuts keep the template, so a side cannot be chosen."""
    raw_scores: bool = False
    return_text: bool = False


class TokenizeTexts(RequestBody):
    """Body of `/tokenize` with TEI's texts."""

    model_config = example({"inputs": QUESTION})

    inputs: str | Many[str]
    add_special_tokens: bool = True
    prompt_name: None = None
    """The template of training is always used."""


class Decode(RequestBody):
    """Body of `/decode`: token ids of a text, or of several."""

    model_config = example({"ids": [1, 2, 3], "skip_special_tokens": False})

    ids: Many[int] | Many[Many[int]]
    skip_special_tokens: bool = True


@dataclass(frozen=True)
class Token:
    """A token of TEI's reply."""

    id: int
    text: str
    special: bool
    start: int | None
    """Index of its first character in the text; None for special tokens."""
    stop: int | None
    """Index after its last character."""


@dataclass(frozen=True)
class Rank:
    """One text of a ranking."""

    index: int
    """Index in the request."""
    score: float


@dataclass(frozen=True)
class TextRank:
    """One text of a ranking, with its content."""

    index: int
    """Index in the request."""
    text: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The score of one label."""

    score: float
    label: str


@dataclass(frozen=True)
class Labels:
    """Names of a classifier's labels."""

    id2label: dict[str, str] = field(default_factory=lambda: {"0": LABEL})
    label2id: dict[str, int] = field(default_factory=lambda: {LABEL: 0})


@dataclass(frozen=True)
class ModelType:
    """Kind of a model."""

    classifier: Labels


@dataclass(frozen=True)
class Info:
    """Reply of `/info`."""

    model_id: str
    model_sha: str
    model_dtype: str | None
    """None if the model is upstream."""
    model_type: ModelType
    max_input_length: int | None
    """Tokens; None if unknown."""
    max_batch_tokens: int | None
    """Number of tokens of a row; None if the model is upstream."""
    tokenization_workers: int
    version: str
    """Release of this package."""
    max_client_batch_size: int
    """Largest number of inputs of one request."""
    max_concurrent_requests: int


@dataclass(frozen=True)
class TeiError:
    """An error in the format of TEI's clients."""

    error: str
    """The message."""
    error_type: str


async def rerank(service: Service, body: RerankTexts, http: HttpRequest) -> Reply:
    """The texts, best first."""
    # The path belongs to vLLM, but only TEI's clients send `texts`
    use_errors_of(TEI, http)
    request = Request("query", (Message("user", body.query),), body.texts)
    (reply,) = await service.of(http, "rerank").conversations(
        [request], cut_to=CUT_TO_MODEL_LIMIT if body.truncate else None
    )

    # The sort is stable, so ties keep the order of the request
    order = sorted(range(len(body.texts)), key=lambda index: -reply.rewards[index])
    scores = [_score(reward, raw=body.raw_scores) for reward in reply.rewards]
    if body.return_text:
        return Reply([TextRank(index, body.texts[index], scores[index]) for index in order])
    return Reply([Rank(index, scores[index]) for index in order])


async def tokenize(service: Service, body: TokenizeTexts, http: HttpRequest) -> Response:
    """The tokens of each text."""
    # The path belongs to vLLM, but only TEI's clients send `inputs`
    use_errors_of(TEI, http)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    check_text("".join(texts))
    if not texts:
        return Reply([])
    call = service.of(http, "tokens")
    reading = service.backend.pieces(
        texts, special=body.add_special_tokens, deadline=call.deadline()
    )
    rows = await call.while_connected(refusing(reading))
    # In a thread, because a reply of many tokens takes long to write
    content = await asyncio.to_thread(_tokens_as_json, rows)
    return Response(content, media_type="application/json")


def _tokens_as_json(rows: Sequence[Sequence[Piece]]) -> bytes:
    return msgspec.json.encode([[Token(*piece) for piece in row] for row in rows])


async def _decode(service: Service, body: Decode, http: HttpRequest) -> Reply:
    use_errors_of(TEI, http)
    rows = [ids for ids in body.ids if isinstance(ids, list)]
    rows = rows or [[number for number in body.ids if isinstance(number, int)]]
    call = service.of(http, "text")
    texts = []
    for ids in rows:
        reading = service.backend.text_of(
            ids, deadline=call.deadline(), without_special=body.skip_special_tokens
        )
        texts.append(await call.while_connected(refusing(reading)))
    return Reply(texts)


def routes(service: Service) -> APIRouter:
    """The routes `/`, `/predict`, `/decode` and `/info`. `/rerank` and `/tokenize` are in
    `routes.vllm`, which has the same paths."""
    router = APIRouter()

    @router.post(
        "/predict",
        summary="TEI's predict: a text, or a pair of prompt and response",
        responses=reply_of(list[Prediction] | list[list[Prediction]]),
    )
    async def predict(body: Predict, http: HttpRequest) -> Reply:
        predictions = await _predictions(service, body, http)
        is_single = isinstance(body.inputs, str | tuple)
        return Reply(predictions[0] if is_single else predictions)

    @router.post("/", include_in_schema=False)
    async def classify(body: Predict, http: HttpRequest) -> Reply:
        # Hugging Face's client takes the first of a list for each input, also of a single one
        return Reply(await _predictions(service, body, http))

    @router.post("/decode", summary="TEI's decode", responses=reply_of(list[str]))
    async def decode(body: Decode, http: HttpRequest) -> Reply:
        return await _decode(service, body, http)

    @router.get("/info", summary="Model and limits", responses=reply_of(Info))
    async def info() -> Reply:
        return Reply(_info(service))

    return router


def _info(service: Service) -> Info:
    identity, limits = service.identity, service.limits
    return Info(
        model_id=identity.name,
        model_sha=identity.sha256,
        model_dtype=identity.dtype,
        model_type=ModelType(Labels()),
        max_input_length=identity.max_length,
        max_batch_tokens=identity.row_tokens,
        # The tokenizer has one thread
        tokenization_workers=1,
        version=version("worldpm"),
        max_client_batch_size=limits.inputs,
        max_concurrent_requests=limits.requests,
    )


async def _predictions(
    service: Service, body: Predict, http: HttpRequest
) -> list[list[Prediction]]:
    """The only label of each input, with its score."""
    cut_to = CUT_TO_MODEL_LIMIT if body.truncate else None
    replies = await _predict(service, body.rows, http, cut_to=cut_to)
    return [[Prediction(_score(reply.rewards[0], raw=body.is_raw), LABEL)] for reply in replies]


async def _predict(
    service: Service, rows: Sequence[Sequence[str]], http: HttpRequest, *, cut_to: int | None
) -> list[BackendReply]:
    """Rewards of texts, which are complete, or of pairs, which become conversations.

    Raises:
        RefusedError: If a batch contains both.
    """
    call = service.of(http, "predict")
    if len({len(row) for row in rows}) > 1:
        raise RefusedError(
            422, "the batch contains texts and pairs. Send only one kind.", kind="Validation"
        )

    if rows and len(rows[0]) == 1:
        return await call.texts([text for (text,) in rows], cut_to=cut_to)
    requests = [
        Request(f"input {index}", (Message("user", prompt),), [response])
        for index, (prompt, response) in enumerate(rows)
    ]
    return await call.conversations(requests, cut_to=cut_to)


def _score(reward: float, *, raw: bool) -> float:
    """The reward if raw scores are requested, otherwise its sigmoid, as in TEI for one label."""
    return reward if raw else bradley_terry.probability(reward)


def _error(error: RefusedError, _: int) -> TeiError:
    return TeiError(error.message, error.kind)


def _lacks_texts(error: ErrorDetails) -> bool:
    """Whether the body only lacks `texts` or `inputs`. Bodies of vLLM, Cohere and Jina for
    `/rerank` and `/tokenize` have other keys instead."""
    return "texts" in error["loc"] or "inputs" in error["loc"]


TEI = Client(
    "TEI",
    routes,
    paths=("/", "/predict", "/decode", "/info"),
    error_body=_error,
    error_type=TeiError,
    invalid_status=422,
    union_bodies=(RerankTexts, TokenizeTexts),
    hides=_lacks_texts,
)
