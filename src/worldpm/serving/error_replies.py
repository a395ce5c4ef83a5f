"""Error replies, each in the format of the client that sent the request."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from worldpm.serving.client import Client, Reply, chosen_error_client
from worldpm.serving.routes import CLIENTS
from worldpm.serving.routes.vllm import VLLM
from worldpm.serving.service import ERROR_KIND, HungUpError, RefusedError

MOST_REPORTED = 16
"""Largest number of validation errors of a body in a reply."""
LONGEST_LOCATION = 200
"""Largest number of characters of an error's location."""
STATUS_CLIENT_GONE = 499
"""HTTP status in the log if the client closed the connection. No client receives it."""


def handle_errors(app: FastAPI) -> None:
    """Add a handler for each type of error to the application."""

    @app.exception_handler(RefusedError)
    async def refused(http: HttpRequest, error: RefusedError) -> Reply:
        return error_reply(http.scope, error)

    @app.exception_handler(HungUpError)
    async def gone(http: HttpRequest, error: HungUpError) -> Response:
        return Response(status_code=STATUS_CLIENT_GONE)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: HttpRequest, error: RequestValidationError) -> Reply:
        errors = _shown(error.errors())
        fields = list(map(_wrong_field, errors[:MOST_REPORTED]))
        lines = "\n".join(f"  {asdict(field)}" for field in fields)
        message = f"{len(errors)} validation error{'s' * (len(errors) != 1)}:\n{lines}"
        if len(errors) > MOST_REPORTED:
            message += f"\n  and {len(errors) - MOST_REPORTED} more"
        return error_reply(
            http.scope, RefusedError(None, message, kind="Bad Request", param=fields[0].loc)
        )

    # The framework raises it for unknown paths and methods
    @app.exception_handler(HTTPException)
    async def failed(http: HttpRequest, error: HTTPException) -> Reply:
        refusal = RefusedError(error.status_code, str(error.detail), kind="Bad Request")
        reply = error_reply(http.scope, refusal)
        # Headers of a reply to a wrong method list the right methods
        reply.headers.update(error.headers or {})
        return reply


@dataclass(frozen=True)
class WrongField:
    """A validation error. Each is one line of the message, in vLLM's form."""

    type: str
    """Pydantic's name of the error, for instance `missing`."""
    loc: str
    """Keys and indices of the field, for instance `body.messages.0.role`."""
    msg: str
    input: str
    """The value, shortened."""


def _shown(errors: Sequence[ErrorDetails]) -> Sequence[ErrorDetails]:
    """Validation errors of a body, at least one.

    Errors about other clients' formats on the same route are left out.
    """
    # loc is ("body", FORMAT, field, ...) if a route has several formats, else ("body", field, ...)
    if len({error["loc"][1:2] for error in errors}) <= 1:
        return errors
    return [
        error for error in errors if not any(client.hides(error) for client in CLIENTS)
    ] or errors


def _wrong_field(error: ErrorDetails) -> WrongField:
    return WrongField(
        error["type"], _location(error["loc"]), error["msg"], _summary(error.get("input"))
    )


def _location(loc: Sequence[int | str]) -> str:
    """The location of an error in the body, without the names of formats."""
    formats = {body.__name__ for client in CLIENTS for body in client.union_bodies}
    # pydantic calls a format with validators `function-after[VALIDATOR(), FORMAT]`
    parts = [
        str(part)
        for part in loc[1:]
        if part not in formats and not str(part).startswith("function-")
    ]
    # Shorten the location, because a key can be as long as the body
    return ".".join(["body", *parts])[:LONGEST_LOCATION]


def _summary(value: object) -> str:
    # Shorten the value, so that a large input does not cause a large error
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return repr(value)[:80]


def _error_client(scope: Scope) -> Client:
    """The client whose format the errors of a request have."""
    chosen = chosen_error_client(scope)
    if chosen is not None:
        return chosen

    path: str = scope["path"]
    return next((client for client in CLIENTS if path in client.paths), VLLM)


def error_reply(scope: Scope, error: RefusedError) -> Reply:
    """The reply with an error in the client's format. The log and the metrics get the error's
    kind."""
    scope.setdefault("state", {})[ERROR_KIND] = error.kind
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.close:
        headers["connection"] = "close"

    client = _error_client(scope)
    status = client.invalid_status if error.status is None else error.status
    return Reply(client.error_body(error, status), status_code=status, headers=headers)
