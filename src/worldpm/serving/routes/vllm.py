"""The routes of vLLM's pooling server, which verl's client also uses, and the rerank routes, which
Cohere's and Jina's clients share.

Source: replies of vLLM 0.32, recorded in `tests/serving/vllm_replies.txt`. There are three
differences from vLLM. A query and a document become prompt and response in the model's chat
template. A text gets the end token at which the reward is read, unless it ends with this token. A
cut keeps the template, and cuts prompts before responses. Options that change rewards are used or
refused, never ignored.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Body
from fastapi import Request as HttpRequest
from pydantic import Field, model_validator
from starlette.responses import Response

from worldpm.records import Message
from worldpm.scoring.scorer import Request
from worldpm.serving.backends import BackendReply
from worldpm.serving.client import (
    CONVERSATION,
    GOOD,
    POOR,
    QUESTION,
    RENDERED,
    Client,
    Many,
    OpenAIErrorBody,
    Reply,
    ReplyHead,
    RequestBody,
    Texts,
    as_list,
    encoded,
    errors_of,
    example,
    head_of,
    reply_of,
)
from worldpm.serving.routes import sglang, tei
from worldpm.serving.service import Call, RefusedError, Service, check_text, refusing
from worldpm.stats import bradley_terry

LABEL = "LABEL_0"
"""Transformers' name of a single label."""


class Part(RequestBody):
    """A part of a message. Only text parts are accepted."""

    type: Literal["text"]
    text: str


class Turn(RequestBody):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | Many[Part]

    def message(self) -> Message:
        """The message with its content as one text. Parts become lines, as in vLLM."""
        if isinstance(self.content, str):
            return Message(self.role, self.content)
        return Message(self.role, "\n".join(part.text for part in self.content))


class Options(RequestBody):
    """Options of all requests for rewards."""

    model: str | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    """Older name of `use_activation`."""
    softmax: bool | None = None
    """Another older name."""
    truncation_side: None = None
    """Cuts keep the template, so a side cannot be chosen."""
    chat_template: None = None
    """The template of training is always used."""
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, max_length=0)
    """Variables for the template: none."""
    instruction: None = None
    """Instructions for the template: none."""
    max_tokens_per_query: Literal[0] | None = None
    """Queries have no limit of their own."""
    max_tokens_per_doc: Annotated[int, Field(ge=0)] | None = None
    """Requests with a longer document are refused, because a cut would change its meaning. 0 sets
    no limit."""
    truncate_prompt_tokens: Literal[-1] | Annotated[int, Field(ge=1)] | None = None
    """Number of tokens of prompt and response that longer inputs are cut to; -1 is the model's
    limit."""

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if len({use for use in self._uses() if use is not None}) > 1:
            raise ValueError("use_activation and its older names differ")
        return self

    def _uses(self) -> tuple[bool | None, ...]:
        return (self.use_activation, self.activation, self.softmax)

    def activated(self, reward: float, service: Service) -> float:
        """The reward as vLLM gives it for this model: raw if its config is a regression's or the
        request wants no activation, else its sigmoid."""
        is_raw = service.identity.activation == "identity" or False in self._uses()
        return reward if is_raw else float(bradley_terry.probability(reward))


class OfText(Options):
    """Body of `/classify` and `/pooling` with rendered texts or token ids."""

    model_config = example({"input": [RENDERED]})

    input: Texts
    add_special_tokens: Literal[True] | None = None
    """Texts get the special tokens of training."""


class OfMessages(Options):
    """Body of `/classify` and `/pooling` with a conversation, whose last message is scored."""

    model_config = example({"messages": CONVERSATION})

    messages: Annotated[Many[Turn], Field(min_length=1)]
    add_special_tokens: Literal[False] | None = None
    """The template writes all special tokens."""
    add_generation_prompt: Literal[False] | None = None
    """A scored conversation is complete."""
    continue_final_message: Literal[False] | None = None
    """A scored conversation is complete."""


class Pool(RequestBody):
    """Options of `/pooling`."""

    task: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    """base64 for the bytes of float32 numbers."""
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "native"
    dimensions: None = None
    """A reward is a single number."""


class PoolText(OfText, Pool):
    """Body of `/pooling` with texts."""


class PoolMessages(OfMessages, Pool):
    """Body of `/pooling` with a conversation."""


class ScorePairs(Options):
    """Body of `/score`: one query, or one query per document, under any of vLLM's names."""

    model_config = example({"queries": QUESTION, "documents": [GOOD, POOR]})

    queries: str | Many[str] | None = None
    text_1: str | Many[str] | None = None
    data_1: str | Many[str] | None = None
    documents: str | Many[str] | None = None
    items: str | Many[str] | None = None
    text_2: str | Many[str] | None = None
    data_2: str | Many[str] | None = None


class Tokenize(RequestBody):
    """Body of `/tokenize` with a text."""

    model_config = example({"prompt": QUESTION})

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True


class TokenizeMessages(RequestBody):
    """Body of `/tokenize` with a conversation that ends with the assistant's message."""

    model_config = example({"messages": CONVERSATION, "add_generation_prompt": False})

    model: str | None = None
    messages: Annotated[Many[Turn], Field(min_length=2)]
    add_generation_prompt: Literal[False]
    """Must be false. vLLM's default opens another turn, but a scored conversation is complete."""


class Detokenize(RequestBody):
    """Body of `/detokenize`."""

    model_config = example({"tokens": [1, 2, 3]})

    model: str | None = None
    tokens: Many[int]


class Document(RequestBody):
    """A document in Jina's and older Cohere's form."""

    text: str


class Rerank(Options):
    """Body of `/rerank`, as sent by clients of vLLM, Cohere and Jina."""

    model_config = example({"query": QUESTION, "documents": [GOOD, POOR]})

    query: str
    documents: Many[str | Document]
    top_n: int | None = None
    return_documents: bool = True

    @property
    def texts(self) -> list[str]:
        """The documents as texts."""
        return [
            document if isinstance(document, str) else document.text for document in self.documents
        ]


@dataclass(frozen=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None
    completion_tokens_details: None = None


@dataclass(frozen=True)
class Classified:
    """Reply of `/classify` to one input."""

    index: int
    label: str
    probs: list[float]
    """One number: the reward if the model's `problem_type` is `regression` or `use_activation` is
    false, else the sigmoid of the reward."""
    num_classes: int


@dataclass(frozen=True)
class Pooled:
    """Reply of `/pooling` to one input."""

    index: int
    object: str
    data: list[float] | str
    """One number, as in `Classified`; with base64 its four bytes."""


@dataclass(frozen=True)
class Scored:
    """Reply of `/score` to one pair."""

    index: int
    object: str
    score: float
    """As in `Classified`."""


@dataclass(frozen=True)
class ClassifyReply(ReplyHead):
    """Reply of `/classify`."""

    data: list[Classified]
    usage: Usage


@dataclass(frozen=True)
class PoolingReply(ReplyHead):
    """Reply of `/pooling`."""

    data: list[Pooled]
    usage: Usage


@dataclass(frozen=True)
class ScoreReply(ReplyHead):
    """Reply of `/score`."""

    data: list[Scored]
    usage: Usage


@dataclass(frozen=True)
class RerankUsage:
    """Tokens of a ranking."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class RankedDocument:
    """A document in the reply."""

    text: str
    multi_modal: None = None


@dataclass(frozen=True)
class Rank:
    """One document of a ranking."""

    index: int
    """Index in the request."""
    relevance_score: float
    """As in `Classified`."""


@dataclass(frozen=True)
class DocumentRank:
    """One document of a ranking, with its content."""

    index: int
    """Index in the request."""
    document: RankedDocument
    relevance_score: float
    """As in `Classified`."""


@dataclass(frozen=True)
class RerankReply:
    """Reply of `/rerank`."""

    id: str
    """Unique, `score-` and 16 hexadecimal digits."""
    model: str
    usage: RerankUsage
    results: list[Rank] | list[DocumentRank]
    """Documents, best first."""


@dataclass(frozen=True)
class TokenizeReply:
    """Reply of `/tokenize`."""

    count: int
    max_model_len: int
    """Tokens."""
    tokens: list[int]
    token_strs: None = None


@dataclass(frozen=True)
class DetokenizeReply:
    """Reply of `/detokenize`."""

    prompt: str


@dataclass(frozen=True)
class LoadReply:
    """Reply of `/load`."""

    server_load: int
    """Number of open requests."""


@dataclass(frozen=True)
class Model:
    """A model of `/v1/models`."""

    id: str
    object: str
    created: int
    """Unix seconds."""
    owned_by: str
    root: str
    max_model_len: int
    """Tokens."""


@dataclass(frozen=True)
class ModelsReply:
    """Reply of `/v1/models`."""

    object: str
    data: list[Model]


def routes(service: Service) -> APIRouter:
    """The routes `/classify`, `/pooling`, `/score`, `/rerank`, `/tokenize`, `/detokenize`, `/load`
    and `/v1/models`."""
    router = APIRouter()
    _add_classifying(router, service)
    _add_ranking(router, service)
    _add_model_routes(router, service)
    return router


def _add_classifying(router: APIRouter, service: Service) -> None:
    """Add the routes that give a number for each text or conversation."""

    @router.put("/classify", include_in_schema=False)
    @router.post("/v1/classify", include_in_schema=False)
    @router.post(
        "/classify",
        summary="vLLM's and SGLang's classify; `text` or `input_ids` selects SGLang's",
        responses=reply_of(ClassifyReply | sglang.ClassifyReply | list[sglang.ClassifyReply]),
    )
    async def classify(
        body: Annotated[OfText | OfMessages | sglang.Classify, Body()], http: HttpRequest
    ) -> Reply:
        # The union above selected the format by its keys
        if isinstance(body, sglang.Classify):
            return await sglang.classify(service, body, http)

        call = service.of(http, "classify")
        replies = await _read(call, body)
        data = [
            Classified(index, LABEL, [body.activated(reply.rewards[0], service)], 1)
            for index, reply in enumerate(replies)
        ]
        head = head_of(call, holds="list")
        return Reply(ClassifyReply(**head, data=data, usage=_usage(replies)))

    @router.post(
        "/pooling",
        summary="vLLM's pooling: one number per input",
        responses=reply_of(PoolingReply),
    )
    async def pooling(body: PoolText | PoolMessages, http: HttpRequest) -> Reply:
        if body.task not in (None, "classify"):
            raise RefusedError(
                400,
                f"Unsupported task: {body.task!r}. Use 'classify'.",
                kind="BadRequestError",
                param="task",
            )

        call = service.of(http, "pooling")
        replies = await _read(call, body)
        data = [
            Pooled(
                index,
                "pooling",
                encoded(body.activated(reply.rewards[0], service), body.encoding_format),
            )
            for index, reply in enumerate(replies)
        ]
        head = head_of(call, holds="list")
        return Reply(PoolingReply(**head, data=data, usage=_usage(replies)))


def _add_ranking(router: APIRouter, service: Service) -> None:
    """Add the routes that compare documents for a query."""

    @router.post(
        "/score",
        summary="vLLM's score; queries are prompts, and documents are responses",
        responses=reply_of(ScoreReply),
    )
    @router.post("/v1/score", include_in_schema=False)
    async def score(body: ScorePairs, http: HttpRequest) -> Reply:
        return await _score(service, body, http)

    @router.post(
        "/rerank",
        summary="vLLM's, Cohere's, Jina's and TEI's rerank; `texts` selects TEI's",
        responses={
            **errors_of(OpenAIErrorBody | tei.TeiError),
            **reply_of(RerankReply | list[tei.Rank] | list[tei.TextRank]),
        },
    )
    @router.post("/v1/rerank", include_in_schema=False)
    @router.post("/v2/rerank", include_in_schema=False)
    async def rerank(body: Annotated[Rerank | tei.RerankTexts, Body()], http: HttpRequest) -> Reply:
        if isinstance(body, tei.RerankTexts):
            return await tei.rerank(service, body, http)
        return await _rerank(service, body, http)


async def _score(service: Service, body: ScorePairs, http: HttpRequest) -> Reply:
    service.check_model(body.model)
    queries = _first_list(body, ("queries", "text_1", "data_1"))
    documents = _first_list(body, ("documents", "items", "text_2", "data_2"))
    if len(queries) not in (1, len(documents)):
        raise RefusedError(
            400,
            f"Input lengths must be either 1:1, 1:N or N:N. The request has {len(queries)} queries"
            f" and {len(documents)} documents.",
            kind="BadRequestError",
        )

    _check_some(documents)
    # Use one request for one query, so that its prompt is computed once
    if len(queries) == 1:
        requests = [_request(queries[0], documents)]
    else:
        requests = [
            _request(query, [document]) for query, document in zip(queries, documents, strict=True)
        ]
    call = service.of(http, "score")
    replies = await call.conversations(requests, cut_to=_cut_to(service, body))

    _check_lengths(replies, body)
    rewards = [reward for reply in replies for reward in reply.rewards]
    data = [
        Scored(index, "score", body.activated(reward, service))
        for index, reward in enumerate(rewards)
    ]
    head = head_of(call, holds="list")
    return Reply(ScoreReply(**head, data=data, usage=_usage(replies)))


async def _rerank(service: Service, body: Rerank, http: HttpRequest) -> Reply:
    service.check_model(body.model)
    _check_some(body.documents)
    call = service.of(http, "score")
    (reply,) = await call.conversations(
        [_request(body.query, body.texts)], cut_to=_cut_to(service, body)
    )

    _check_lengths([reply], body)
    # The sort is stable, so ties keep the order of the request
    order = sorted(range(len(body.texts)), key=lambda index: -reply.rewards[index])
    if body.top_n is not None and body.top_n > 0:
        order = order[: body.top_n]

    tokens = sum(reply.sequence_tokens)
    return Reply(
        RerankReply(
            id=call.reply_id,
            model=service.identity.name,
            usage=RerankUsage(tokens, tokens),
            results=_results(service, body, reply, order),
        )
    )


def _check_some(documents: Sequence[object]) -> None:
    """Check that there is a document.

    Raises:
        RefusedError: 400, with vLLM's message.
    """
    if not documents:
        message = "At least one text_pair element must be given"
        raise RefusedError(400, message, kind="BadRequestError")


def _check_lengths(replies: Sequence[BackendReply], options: Options) -> None:
    """Check that every document is within the limit of the request.

    Raises:
        RefusedError: 400.
    """
    longest = max((max(reply.length_tokens, default=0) for reply in replies), default=0)
    if options.max_tokens_per_doc and longest > options.max_tokens_per_doc:
        raise RefusedError(
            400,
            f"a document has {longest} tokens, over max_tokens_per_doc. Cut it, or leave out the"
            " limit.",
            kind="BadRequestError",
            param="max_tokens_per_doc",
        )


def _results(
    service: Service, body: Rerank, reply: BackendReply, order: Sequence[int]
) -> list[Rank] | list[DocumentRank]:
    """The ranking of `order`, with or without the documents."""
    texts = body.texts
    scores = [body.activated(reward, service) for reward in reply.rewards]
    if not body.return_documents:
        return [Rank(index, scores[index]) for index in order]
    return [DocumentRank(index, RankedDocument(texts[index]), scores[index]) for index in order]


def _add_model_routes(router: APIRouter, service: Service) -> None:
    """Add the routes about the tokenizer and the model."""

    @router.post(
        "/tokenize",
        summary="vLLM's and TEI's tokenize; `inputs` selects TEI's",
        responses={
            **errors_of(OpenAIErrorBody | tei.TeiError),
            **reply_of(TokenizeReply | list[list[tei.Token]]),
        },
    )
    async def tokenize(
        body: Annotated[Tokenize | TokenizeMessages | tei.TokenizeTexts, Body()], http: HttpRequest
    ) -> Response:
        if isinstance(body, tei.TokenizeTexts):
            return await tei.tokenize(service, body, http)
        return await _tokenize(service, body, http)

    @router.post("/detokenize", summary="vLLM's detokenize", responses=reply_of(DetokenizeReply))
    async def detokenize(body: Detokenize, http: HttpRequest) -> Reply:
        service.check_model(body.model)
        call = service.of(http, "text")
        reading = refusing(service.backend.text_of(body.tokens, deadline=call.deadline()))
        return Reply(DetokenizeReply(await call.while_connected(reading)))

    @router.get("/load", summary="Number of open requests", responses=reply_of(LoadReply))
    async def load() -> Reply:
        # without this request
        return Reply(LoadReply(service.open_requests - 1))

    @router.get("/v1/models", summary="The served model", responses=reply_of(ModelsReply))
    async def models() -> Reply:
        name = service.identity.name
        model = Model(
            id=name,
            object="model",
            created=int(time.time()),
            owned_by="worldpm",
            root=name,
            max_model_len=service.identity.max_length,
        )
        return Reply(ModelsReply("list", [model]))


async def _tokenize(
    service: Service, body: Tokenize | TokenizeMessages, http: HttpRequest
) -> Reply:
    service.check_model(body.model)
    text: str | Request
    if isinstance(body, Tokenize):
        text, special = body.prompt, body.add_special_tokens
        check_text(text)
    else:
        # The chat template adds the special tokens
        text, special = _conversation(body.messages), False
        check_text("".join([*(message.content for message in text.prompt), *text.responses]))

    call = service.of(http, "tokens")
    reading = refusing(service.backend.tokens(text, special=special, deadline=call.deadline()))
    tokens = await call.while_connected(reading)
    return Reply(TokenizeReply(len(tokens), service.identity.max_length, tokens))


async def _read(call: Call, body: OfText | OfMessages) -> list[BackendReply]:
    """A reply for each input."""
    call.service.check_model(body.model)
    cut_to = _cut_to(call.service, body)
    # Texts are already rendered; messages need our chat template
    if isinstance(body, OfText):
        texts = as_list(body.input)
        if not texts:
            raise RefusedError(400, "You must pass at least one prompt", kind="BadRequestError")
        if not all(map(len, texts)):
            raise RefusedError(400, "The decoder prompt cannot be empty", kind="BadRequestError")
        return await call.texts(texts, cut_to=cut_to)
    return await call.conversations([_conversation(body.messages)], cut_to=cut_to)


def _conversation(turns: Sequence[Turn]) -> Request:
    """A conversation as a request, whose response is the last message.

    Raises:
        RefusedError: If the last message is not the assistant's, or is the only one.
    """
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise RefusedError(
            400,
            "the last message must be the assistant's, after at least one other",
            kind="BadRequestError",
            param="messages",
        )

    *prompt, response = [turn.message() for turn in turns]
    return Request("messages", tuple(prompt), [response.content])


def _cut_to(service: Service, options: Options) -> int | None:
    """The backend's argument `cut_to`.

    Raises:
        RefusedError: If it exceeds the model's limit.
    """
    tokens, most = options.truncate_prompt_tokens, service.identity.max_length
    if tokens is not None and most is not None and tokens > most:
        message = (
            f"truncate_prompt_tokens value ({tokens}) is greater than max_model_len ({most})."
            " Please, select a smaller truncation size."
        )
        raise RefusedError(400, message, kind="BadRequestError", param="truncate_prompt_tokens")
    return tokens


def _request(query: str, documents: Sequence[str]) -> Request:
    """A query and its documents as prompt and responses."""
    return Request("query", (Message("user", query),), documents)


def _first_list(body: ScorePairs, names: Sequence[str]) -> list[str]:
    """The value of the first of these keys that the body has, as a list."""
    for name in names:
        value: str | list[str] | None = getattr(body, name)
        if value is not None:
            return [value] if isinstance(value, str) else value

    raise RefusedError(
        400, f"Field required: {' or '.join(names)}", kind="Bad Request", param=f"body.{names[0]}"
    )


def _usage(replies: Sequence[BackendReply]) -> Usage:
    tokens = sum(sum(reply.sequence_tokens) for reply in replies)
    return Usage(prompt_tokens=tokens, total_tokens=tokens)


VLLM = Client(
    "vLLM",
    routes,
    # Without the formats of `/tokenize`, because errors there name their format
    union_bodies=(OfText, OfMessages, PoolText, PoolMessages, Rerank),
)
