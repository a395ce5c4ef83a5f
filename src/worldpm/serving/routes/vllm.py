"""The routes of vLLM's pooling server, which verl calls too, and the rerank routes that Cohere's
and Jina's clients share with it.

Source: replies of vLLM 0.32, recorded in `tests/vllm_replies.txt`. Other than vLLM, a query and a
document are read as prompt and response in the model's chat template, and a text gets the end token
at which the reward is read, unless it ends with it.
"""

import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from worldpm.records import Message
from worldpm.scoring.scorer import Request
from worldpm.serving.backends import Answer, LocalEngine, Text
from worldpm.serving.routes import sglang, tei
from worldpm.serving.service import Call, RefusedError, Service, check_text, refusing
from worldpm.stats import bradley_terry

Json = dict[str, Any]
Texts = str | list[str] | list[int] | list[list[int]]


class Part(BaseModel):
    """A piece of a message; pieces other than text are refused."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]

    @property
    def words(self) -> str:
        """The message as one text: pieces on lines of their own, as vLLM joins them."""
        return (
            self.content
            if isinstance(self.content, str)
            else "\n".join(part.text for part in self.content)
        )


class Options(BaseModel):
    """What every request for rewards may say."""

    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: Literal[-1] | Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompt and response that a longer input is cut to; -1: as many as the model was
    made for."""


class OfText(Options):
    """`/classify` and `/pooling` of rendered texts or token ids."""

    input: Texts


class OfMessages(Options):
    """`/classify` and `/pooling` of a conversation, whose last message is judged."""

    messages: Annotated[list[Turn], Field(min_length=1)]


class PoolText(OfText):
    """`/pooling` of texts."""

    task: str | None = None


class PoolMessages(OfMessages):
    """`/pooling` of a conversation."""

    task: str | None = None


class ScorePairs(Options):
    """`/score`: one query or as many as documents, under any of vLLM's names for them."""

    queries: str | list[str] | None = None
    text_1: str | list[str] | None = None
    data_1: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    text_2: str | list[str] | None = None
    data_2: str | list[str] | None = None


class Tokenize(BaseModel):
    """`/tokenize` of a text."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


class TokenizeMessages(BaseModel):
    """`/tokenize` of a conversation that ends with the assistant's words."""

    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=2)]
    add_generation_prompt: Literal[False]
    """vLLM's default is to go on; what is judged is whole."""


class Document(BaseModel):
    """A document in Jina's and older Cohere's form."""

    text: str


class Rerank(Options):
    """`/rerank` of vLLM, Cohere and Jina."""

    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool = True


def routes(service: Service) -> APIRouter:
    """`/classify`, `/pooling`, `/score`, `/rerank`, and what clients ask before: models,
    version."""
    router = APIRouter(tags=["vLLM"])
    _judging(router, service)
    _ranking(router, service)
    _asking(router, service)
    return router


def _judging(router: APIRouter, service: Service) -> None:
    @router.put("/classify", include_in_schema=False)
    @router.post(
        "/classify",
        summary="vLLM's and SGLang's classify: the key `text` or `input_ids` makes it SGLang's",
    )
    async def classify(
        body: Annotated[OfText | OfMessages | sglang.Classify, Body()], http: HttpRequest
    ) -> JSONResponse:
        if isinstance(body, sglang.Classify):
            return await sglang.classify(service, body, http)
        answers = await _read(service, body, http)
        data = [
            {
                "index": index,
                "label": "LABEL_0",
                "probs": [_activated(answer.rewards[0], body.use_activation)],
                "num_classes": 1,
            }
            for index, answer in enumerate(answers)
        ]
        return JSONResponse({**_head(service, "classify"), "data": data, "usage": _usage(answers)})

    @router.post("/pooling", summary="vLLM's pooling: one number per input")
    async def pooling(body: PoolText | PoolMessages, http: HttpRequest) -> JSONResponse:
        if body.task not in (None, "classify"):
            raise RefusedError(
                400,
                f"Unsupported task: {body.task!r}; this model has 'classify'",
                kind="BadRequestError",
                param="task",
            )
        answers = await _read(service, body, http)
        data = [
            {
                "index": index,
                "object": "pooling",
                "data": [_activated(answer.rewards[0], body.use_activation)],
            }
            for index, answer in enumerate(answers)
        ]
        return JSONResponse({**_head(service, "pooling"), "data": data, "usage": _usage(answers)})


def _ranking(router: APIRouter, service: Service) -> None:
    @router.post("/score", summary="vLLM's score: queries are prompts, documents are responses")
    @router.post("/v1/score", include_in_schema=False)
    async def score(body: ScorePairs, http: HttpRequest) -> JSONResponse:
        service.check_model(body.model)
        queries = _list(body, ("queries", "text_1", "data_1"))
        documents = _list(body, ("documents", "items", "text_2", "data_2"))
        if len(queries) not in (1, len(documents)):
            message = (
                f"Input lengths must be either 1:1, 1:N or N:N; {len(queries)} queries and"
                f" {len(documents)} documents came"
            )
            raise RefusedError(400, message, kind="BadRequestError")
        if len(queries) == 1:
            requests = [_asked(queries[0], documents)]
        else:
            requests = [
                _asked(query, [document])
                for query, document in zip(queries, documents, strict=True)
            ]
        answers = await service.of(http).conversations(requests, cut_to=_cut_to(service, body))
        found = [reward for answer in answers for reward in answer.rewards]
        data = [
            {"index": index, "object": "score", "score": _activated(r, body.use_activation)}
            for index, r in enumerate(found)
        ]
        return JSONResponse({**_head(service, "score"), "data": data, "usage": _usage(answers)})

    @router.post(
        "/rerank",
        summary="vLLM's, Cohere's, Jina's and TEI's rerank: the key `texts` makes it TEI's",
    )
    @router.post("/v1/rerank", include_in_schema=False)
    @router.post("/v2/rerank", include_in_schema=False)
    async def rerank(
        body: Annotated[Rerank | tei.RerankTexts, Body()], http: HttpRequest
    ) -> JSONResponse:
        if isinstance(body, tei.RerankTexts):
            return await tei.rerank(service, body, http)
        service.check_model(body.model)
        documents = [
            document if isinstance(document, str) else document.text for document in body.documents
        ]
        (answer,) = await service.of(http).conversations(
            [_asked(body.query, documents)], cut_to=_cut_to(service, body)
        )
        order = sorted(range(len(documents)), key=lambda place: -answer.rewards[place])[
            : body.top_n if body.top_n and body.top_n > 0 else None
        ]
        results = [
            {
                "index": place,
                **(
                    {"document": {"text": documents[place], "multi_modal": None}}
                    if body.return_documents
                    else {}
                ),
                "relevance_score": _activated(answer.rewards[place], body.use_activation),
            }
            for place in order
        ]
        tokens = sum(answer.sequence_tokens)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        head = {"id": f"score-{secrets.token_hex(8)}", "model": service.identity.name}
        return JSONResponse({**head, "usage": usage, "results": results})


def _asking(router: APIRouter, service: Service) -> None:
    @router.post("/tokenize", summary="vLLM's tokenize")
    async def tokenize(body: Tokenize | TokenizeMessages, http: HttpRequest) -> JSONResponse:
        service.check_model(body.model)
        if not isinstance(service.engine, LocalEngine):
            raise RefusedError(501, "the tokenizer is upstream", kind="NotImplemented")
        asked = (
            body.prompt
            if isinstance(body, Tokenize)
            else judged([(turn.role, turn.words) for turn in body.messages])
        )
        check_text(
            asked
            if isinstance(asked, str)
            else "".join([*(turn.content for turn in asked.prompt), *asked.responses])
        )
        special, call = isinstance(body, Tokenize) and body.add_special_tokens, service.of(http)
        reading = refusing(service.engine.tokens(asked, special=special, deadline=call.deadline()))
        tokens = await call.while_connected(reading)
        return JSONResponse(
            {
                "count": len(tokens),
                "max_model_len": service.identity.max_length,
                "tokens": tokens,
                "token_strs": None,
            }
        )

    @router.get("/v1/models", summary="The model that answers")
    async def models() -> JSONResponse:
        model = {
            "id": service.identity.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "worldpm",
        }
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {**model, "root": model["id"], "max_model_len": service.identity.max_length}
                ],
            }
        )


async def _read(service: Service, body: OfText | OfMessages, http: HttpRequest) -> list[Answer]:
    """One answer per input."""
    service.check_model(body.model)
    call, cut_to = service.of(http), _cut_to(service, body)
    if isinstance(body, OfText):
        return await call.texts(as_list(body.input), cut_to=cut_to)
    return await conversation(
        call, [(turn.role, turn.words) for turn in body.messages], cut_to=cut_to
    )


async def conversation(
    call: Call, turns: Sequence[tuple[str, str]], *, cut_to: int | None
) -> list[Answer]:
    """The answer to a conversation; raises as `judged` does."""
    return await call.conversations([judged(turns)], cut_to=cut_to)


def judged(turns: Sequence[tuple[str, str]]) -> Request:
    """The request that a conversation is, whose last message is the assistant's.

    Raises:
        RefusedError: If it is not, or nothing stands before it.
    """
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise RefusedError(
            400,
            "the last message must be the assistant's, after at least one other",
            kind="BadRequestError",
            param="messages",
        )
    prompt = tuple(Message(role, content) for role, content in turns[:-1])
    return Request("messages", prompt, [turns[-1][1]])


def _cut_to(service: Service, options: Options) -> int | None:
    """The tokens to cut to, as the engine takes them.

    Raises:
        RefusedError: If they are more than the model was made for.
    """
    wanted, most = options.truncate_prompt_tokens, service.identity.max_length
    if wanted is not None and most is not None and wanted > most:
        told = (
            f"truncate_prompt_tokens value ({wanted}) is greater than max_model_len ({most})."
            " Please, select a smaller truncation size."
        )
        raise RefusedError(400, told, kind="BadRequestError", param="truncate_prompt_tokens")
    return wanted


def as_list(texts: Texts) -> Sequence[Text]:
    """One text, or one row of ids, as a list of one."""
    if isinstance(texts, str):
        return [texts]
    if texts and all(isinstance(one, int) for one in texts):
        return [texts]  # type: ignore[list-item]  # all are
    return texts  # type: ignore[return-value]


def _asked(query: str, documents: Sequence[str]) -> Request:
    return Request("query", (Message("user", query),), documents)


def _list(body: ScorePairs, names: Sequence[str]) -> list[str]:
    """What came under the first of the names that was given."""
    for name in names:
        if (value := getattr(body, name)) is not None:
            return [value] if isinstance(value, str) else list(value)
    raise RefusedError(
        400, f"Field required: {' or '.join(names)}", kind="Bad Request", param=f"body.{names[0]}"
    )


def _activated(reward: float, use_activation: bool | None) -> float:
    """The sigmoid of the reward, as vLLM gives it for one label where the model says nothing else,
    unless raw was asked for."""
    return reward if use_activation is False else float(bradley_terry.probability(reward))


def _head(service: Service, kind: str) -> Json:
    return {
        "id": f"{kind}-{secrets.token_hex(8)}",
        "object": "list",
        "created": int(time.time()),
        "model": service.identity.name,
    }


def _usage(answers: Sequence[Answer]) -> Json:
    tokens = sum(sum(answer.sequence_tokens) for answer in answers)
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, **details}
