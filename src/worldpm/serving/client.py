"""Client programs whose APIs the server implements, and code that the routes of all clients
share."""

import base64
import json
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails
from starlette.responses import JSONResponse
from starlette.types import Scope

from worldpm.serving.backends import Text
from worldpm.serving.service import Call, RefusedError, Service
from worldpm.storage.json_files import Json

Element = TypeVar("Element")
Many = Annotated[list[Element], Field(fail_fast=True)]
"""A list for which only the first wrong element is reported."""
Texts = str | Many[str] | Many[int] | Many[Many[int]]
"""One text, several, or their token ids."""
ERROR_CLIENT = "error_client"
"""Key of the connection's state that holds the client that sent the body. A route sets it."""


@dataclass(frozen=True)
class OpenAIError:
    """An error in the format of OpenAI's, vLLM's and our clients."""

    message: str
    type: str
    """Class of the error, for instance `BadRequestError`."""
    param: str | None
    """Wrong key of the body, for instance `body.input`; None if the error has no key."""
    code: int
    """HTTP status."""


@dataclass(frozen=True)
class OpenAIErrorBody:
    """Body of a reply with an `OpenAIError`."""

    error: OpenAIError


class RequestBody(BaseModel):
    """A request body. `/docs` shows the docstrings of its fields."""

    model_config = ConfigDict(use_attribute_docstrings=True)


QUESTION, GOOD, POOR = (
    "How long should I bake a loaf?",
    "About 40 minutes at 220 C.",
    "This was asked before.",
)
"""A prompt and two responses, for the examples in `/docs`."""
CONVERSATION = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": GOOD}]
RENDERED = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n{GOOD}<|im_end|>\n"


def example(content: Json) -> ConfigDict:
    """The configuration that shows an example of a body in `/docs`."""
    return ConfigDict(json_schema_extra={"examples": [content]})


def openai_error(error: RefusedError, status: int) -> OpenAIErrorBody:
    """The body of an error in OpenAI's format."""
    return OpenAIErrorBody(OpenAIError(error.message, error.kind, error.param, status))


def shows_all(_: ErrorDetails) -> bool:
    """Hide no validation error."""
    return False


@dataclass(frozen=True)
class Client:
    """A client program whose API the server implements. Each module of `routes` has one."""

    heading: str
    """Title of its routes in `/docs`."""
    routes: Callable[[Service], APIRouter]
    """Builds the client's routes over a service."""
    paths: tuple[str, ...] = ()
    """Paths whose errors have this client's format. Every other path has vLLM's."""
    error_body: Callable[[RefusedError, int], object] = openai_error
    """Builds the body of an error with an HTTP status: a dataclass with the keys that this client
    reads."""
    error_type: type = OpenAIErrorBody
    """Type of the value of `error_body`."""
    invalid_status: int = 400
    """HTTP status of a body that fails validation."""
    union_bodies: tuple[type[BaseModel], ...] = ()
    """Alternative formats of a route's body. Their names are left out of the location of an
    error."""
    hides: Callable[[ErrorDetails], bool] = shows_all
    """Whether a validation error only means that a body does not have this client's format.

    It is used if several fields or formats failed, because most such bodies come from another
    client of the same route.
    """


def use_errors_of(client: Client, http: HttpRequest) -> None:
    """Use a client's format for the errors of a request, on a path that clients share."""
    http.scope.setdefault("state", {})[ERROR_CLIENT] = client


def chosen_error_client(scope: Scope) -> Client | None:
    """The client that `use_errors_of` chose for this request; None if none was chosen."""
    client: Client | None = scope.get("state", {}).get(ERROR_CLIENT)
    return client


class Reply(JSONResponse):
    """A JSON reply whose content can hold dataclasses. Keys have the order of their fields."""

    def render(self, content: Any) -> bytes:
        """The content as JSON bytes, equal to starlette's for plain values."""
        # `vars` for dataclasses, because `asdict` would copy every number of a large matrix
        text = json.dumps(
            content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=vars
        )
        return text.encode()


@dataclass(frozen=True)
class ReplyHead:
    """The first keys of our replies and of vLLM's."""

    id: str
    """Unique, `KIND-` and 16 hexadecimal digits."""
    object: str
    """Kind of the reply, or `list`."""
    created: int
    """Unix seconds."""
    model: str


def head_of(call: Call, *, holds: str) -> Json:
    """The fields of a `ReplyHead`. `holds` is the value of `object`."""
    return vars(ReplyHead(call.reply_id, holds, int(time.time()), call.service.identity.name))


Documented = dict[int | str, dict[str, Any]]
"""Replies by status, in FastAPI's form for `/docs`."""
ERRORS = {
    400: "The body does not have the form of the route.",
    401: "An API key is needed.",
    404: "The model or the path does not exist.",
    405: "The path takes another method.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The content encoding is not gzip.",
    421: "The server does not answer to this host.",
    422: "The body cannot be answered, for instance because a text is too long.",
    429: "The server is full. Try again after `Retry-After` seconds.",
    500: "The server failed, or a reward is not finite.",
    501: "The server's process does not hold the model, so it does not support this.",
    503: "The deadline passed, the model is unavailable, or the decision cannot be logged.",
}
"""Descriptions of statuses."""


def reply_of(content: Any) -> Documented:
    """The documentation of a route's reply, for `/docs`."""
    return {200: {"model": content}}


def errors_of(content: Any) -> Documented:
    """The documentation of the errors of a client's routes, for `/docs`."""
    return {
        status: {"model": content, "description": description}
        for status, description in ERRORS.items()
    }


def is_single(texts: Texts) -> bool:
    """Whether the input is a single text, or the token ids of a single text."""
    return isinstance(texts, str) or (bool(texts) and isinstance(texts[0], int))


def as_list(texts: Texts) -> list[Text]:
    """The texts as a list; a single text becomes a list of one."""
    if isinstance(texts, str):
        return [texts]

    ids = [item for item in texts if isinstance(item, int)]
    if ids:
        return [ids]
    return [item for item in texts if not isinstance(item, int)]


def encoded(value: float, form: Literal["float", "base64"]) -> list[float] | str:
    """A number as a list, or the base64 of its four bytes."""
    return [value] if form == "float" else base64.b64encode(struct.pack("<f", value)).decode()
