"""SGLang's routes for reward models, which verl's client uses. Rewards are embeddings of one
number.

Source: SGLang 0.5.23, `/classify` with `text` or `input_ids`, and `/v1/embeddings`.
"""

import secrets
from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import model_validator
from pydantic_core import ErrorDetails

from worldpm.serving.backends import BackendReply
from worldpm.serving.client import (
    RENDERED,
    Client,
    Many,
    Reply,
    RequestBody,
    Texts,
    as_list,
    encoded,
    example,
    is_single,
    reply_of,
)
from worldpm.serving.service import Service


class Classify(RequestBody):
    """Body of `/classify`: texts or token ids."""

    model_config = example({"text": [RENDERED]})

    text: str | Many[str] | None = None
    input_ids: Many[int] | Many[Many[int]] | None = None

    @model_validator(mode="after")
    def _one_input(self) -> "Classify":
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("Give either text or input_ids.")
        return self

    @property
    def inputs(self) -> Texts:
        """The text or texts, or their token ids."""
        # The validator above ensures that exactly one of the two is given
        inputs = self.text if self.text is not None else self.input_ids
        assert inputs is not None
        return inputs


class Embeddings(RequestBody):
    """Body of `/v1/embeddings`."""

    model_config = example({"input": [RENDERED]})

    model: str | None = None
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    """base64 for the bytes of float32 numbers, as OpenAI's client asks."""
    dimensions: None = None
    """A reward is a single number."""


@dataclass(frozen=True)
class MetaInfo:
    """SGLang's metadata of one input."""

    id: str
    """Unique, 32 hexadecimal digits."""
    finish_reason: None
    """Always None, because nothing is generated."""
    prompt_tokens: int
    cached_tokens: int
    """Always 0."""


@dataclass(frozen=True)
class ClassifyReply:
    """Reply of `/classify` to one input."""

    embedding: tuple[float]
    """The reward in logits."""
    meta_info: MetaInfo


@dataclass(frozen=True)
class Embedding:
    """Reply of `/v1/embeddings` to one input."""

    embedding: list[float] | str
    """The reward in logits; with base64 its four bytes."""
    index: int
    object: str = "embedding"


@dataclass(frozen=True)
class Usage:
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


@dataclass(frozen=True)
class EmbeddingsReply:
    """Reply of `/v1/embeddings`."""

    data: list[Embedding]
    model: str
    object: str
    usage: Usage


async def classify(service: Service, body: Classify, http: HttpRequest) -> Reply:
    """Reply to `/classify`: an object for a single input, a list for a list."""
    replies = await service.of(http, "classify").texts(as_list(body.inputs))
    content = [_classified(reply) for reply in replies]
    return Reply(content[0] if is_single(body.inputs) else content)


def _classified(reply: BackendReply) -> ClassifyReply:
    meta_info = MetaInfo(
        id=secrets.token_hex(16),
        finish_reason=None,
        prompt_tokens=reply.sequence_tokens[0],
        cached_tokens=0,
    )
    return ClassifyReply((reply.rewards[0],), meta_info)


def routes(service: Service) -> APIRouter:
    """The route `/v1/embeddings`. `/classify` is in `routes.vllm`, which has the same path."""
    router = APIRouter()

    @router.post(
        "/v1/embeddings",
        summary="The reward as an embedding of one number",
        responses=reply_of(EmbeddingsReply),
    )
    async def embeddings(body: Embeddings, http: HttpRequest) -> Reply:
        service.check_model(body.model)
        replies = await service.of(http, "embeddings").texts(as_list(body.input))

        data = [
            Embedding(encoded(reply.rewards[0], body.encoding_format), index)
            for index, reply in enumerate(replies)
        ]
        tokens = sum(reply.sequence_tokens[0] for reply in replies)
        return Reply(EmbeddingsReply(data, service.identity.name, "list", Usage(tokens, tokens)))

    return router


def _is_wrong_choice(error: ErrorDetails) -> bool:
    """Whether the body only lacks SGLang's keys, which vLLM's bodies for `/classify` do not
    have."""
    return error["type"] == "value_error"


SGLANG = Client("SGLang", routes, union_bodies=(Classify,), hides=_is_wrong_choice)
