"""The whole application: the clients' routes, limits before them, and errors in each client's
format."""

import asyncio
import contextlib
import hmac
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worldpm.serving import body_check
from worldpm.serving.client import Client, Reply, chosen_error_client
from worldpm.serving.routes.get_reward import GET_REWARD
from worldpm.serving.routes.own import OWN
from worldpm.serving.routes.sglang import SGLANG
from worldpm.serving.routes.tei import TEI
from worldpm.serving.routes.vllm import VLLM
from worldpm.serving.service import KEY_NAME, HungUpError, RefusedError, Service

logger = logging.getLogger("worldpm.access")

CLIENTS: tuple[Client, ...] = (VLLM, SGLANG, TEI, GET_REWARD, OWN)
"""Every client, in the order of `/docs`."""
OPEN_PATHS = ("/", "/health", "/ping", "/ready", "/version", "/docs", "/openapi.json")
"""Answered without an API key; every other path needs a key if the server has keys."""
ASSETS = "/docs-assets"
"""Assets of `/docs`, served locally and without an API key."""
MOST_REPORTED = 16
"""Validation errors of a body that are reported."""
LONGEST_LOCATION = 200
"""Characters of the location of an error."""
STATUS_CLIENT_GONE = 499
"""HTTP status in the log for a client that closed the connection; no client receives it."""


def build(service: Service) -> FastAPI:
    """The application over a service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(service.backend.run())
        work.add_done_callback(_stop_if_dead)
        # Only now: a load balancer sends requests as soon as /ready gives 200
        service.ready = True

        yield

        service.ready = False
        # uvicorn has answered all accepted requests before it ends the lifespan
        work.cancel()
        if service.decisions is not None:
            service.decisions.close()

    # Unlike plain FastAPI, it serves the scripts of /docs itself: the server may have no internet
    app = FastAPIOffline(
        title="WorldPM",
        version=version("worldpm"),
        lifespan=lifespan,
        redoc_url=None,
        static_url=ASSETS,
        description=(
            "Rewards of a prompt's responses, on our own routes and on those of vLLM, SGLang, TEI,"
            " OpenRLHF, Cohere and Jina."
        ),
    )
    for client in CLIENTS:
        app.include_router(client.routes(service), tags=[client.heading])

    _operation(app, service)
    _errors(app)
    # Runs before all routes, and for paths without a route
    app.add_middleware(Admission, service=service)
    return app


def _stop_if_dead(work: asyncio.Task[None]) -> None:
    """Stop the server if its backend dies, because requests would then wait forever."""
    if not work.cancelled():
        logging.getLogger(__name__).critical(
            "the backend died; the server stops", exc_info=work.exception()
        )
        # A signal instead of an exit: uvicorn still answers and closes
        os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class Version:
    """Reply of `/version`."""

    version: str
    """Release of this package."""
    model: str
    model_sha256: str
    template_hash: str | None
    """Hash of the chat template; None if the model is upstream."""


def _operation(app: FastAPI, service: Service) -> None:
    """Add the routes of operators and browsers."""

    @app.get("/health", tags=["operation"], summary="200 while the process lives")
    # vLLM has it too, for SageMaker
    @app.get("/ping", include_in_schema=False)
    async def health() -> Response:
        return Response()

    @app.get(
        "/ready",
        tags=["operation"],
        summary="200 when ready, 503 while starting. Connections are refused during shutdown.",
    )
    async def ready() -> Response:
        return Response(status_code=200 if service.ready else 503)

    @app.get("/version", tags=["operation"], summary="Release, model and template")
    async def identity() -> Reply:
        model = service.identity
        return Reply(Version(version("worldpm"), model.name, model.sha256, model.template))

    # The content type tells Prometheus the version of its text format
    @app.get("/metrics", tags=["operation"], summary="For Prometheus")
    async def metrics() -> Response:
        return Response(
            service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(
            files("worldpm.serving").joinpath("page.html").read_text(encoding="utf-8")
        )


def _errors(app: FastAPI) -> None:
    """Add a handler for each kind of error."""

    @app.exception_handler(RefusedError)
    async def refused(http: HttpRequest, error: RefusedError) -> Reply:
        return _error_reply(http.scope, error)

    @app.exception_handler(HungUpError)
    async def gone(http: HttpRequest, error: HungUpError) -> Response:
        return Response(status_code=STATUS_CLIENT_GONE)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: HttpRequest, error: RequestValidationError) -> Reply:
        fields = _wrong_fields(error.errors())
        lines = "\n".join(f"  {asdict(field)}" for field in fields[:MOST_REPORTED])
        message = f"{len(fields)} validation error{'s' * (len(fields) != 1)}:\n{lines}"
        if len(fields) > MOST_REPORTED:
            message += f"\n  and {len(fields) - MOST_REPORTED} more"
        status = _error_client(http.scope).invalid_status

        return _error_reply(
            http.scope, RefusedError(status, message, kind="Bad Request", param=fields[0].loc)
        )

    # Raised by the framework for unknown paths and methods
    @app.exception_handler(HTTPException)
    async def failed(http: HttpRequest, error: HTTPException) -> Reply:
        return _error_reply(
            http.scope, RefusedError(error.status_code, str(error.detail), kind="Bad Request")
        )

    @app.exception_handler(Exception)
    async def broken(http: HttpRequest, error: Exception) -> Reply:
        # Without the error's own text, which may contain inputs
        message = f"{type(error).__name__}; the server's log has the rest"
        return _error_reply(http.scope, RefusedError(500, message, kind="InternalServerError"))


@dataclass(frozen=True)
class WrongField:
    """A validation error; vLLM prints one a line in this form."""

    type: str
    """Pydantic's name of the error, for instance `missing`."""
    loc: str
    """Keys and indices down to the field, for instance `body.messages.0.role`."""
    msg: str
    input: str
    """The value, shortened."""


def _wrong_fields(errors: Sequence[ErrorDetails]) -> list[WrongField]:
    """Validation errors of a body, at least one.

    Errors about other clients' formats on the same route are left out.
    """
    shown = errors

    # loc is ("body", FORMAT, field, ...) where several formats are tried, else ("body", field, ...)
    if len({error["loc"][1:2] for error in errors}) > 1:
        shown = [
            error for error in errors if not any(client.hides(error) for client in CLIENTS)
        ] or errors
    return [
        WrongField(
            error["type"],
            _location(error["loc"]),
            error["msg"],
            _summary(error.get("input")),
        )
        for error in shown
    ]


def _location(loc: Sequence[int | str]) -> str:
    """Where an error is in the body, without the names of the formats that were tried."""
    formats = {body.__name__ for client in CLIENTS for body in client.union_bodies}
    # pydantic calls a format with validators `function-after[VALIDATOR(), FORMAT]`
    parts = [
        str(part)
        for part in loc[1:]
        if part not in formats and not str(part).startswith("function-")
    ]
    # A key may be as long as the body
    return ".".join(["body", *parts])[:LONGEST_LOCATION]


def _summary(value: object) -> str:
    # A large input must not become a large error
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return repr(value)[:80]


def _error_client(scope: Scope) -> Client:
    """The client in whose format the errors of a request are written."""
    chosen = chosen_error_client(scope)
    if chosen is not None:
        return chosen

    path: str = scope["path"]
    return next((client for client in CLIENTS if path in client.paths), VLLM)


def _error_reply(scope: Scope, error: RefusedError) -> Reply:
    """An error in the client's format."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return Reply(_error_client(scope).error_body(error), status_code=error.status, headers=headers)


class Admission:
    """Checks API key, load and size before any route; logs and counts each request after it."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request of one connection."""
        # Start and shutdown of the application; there are no websockets
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        # Stays 500 if the application fails before it sends a status
        started, status = time.monotonic(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admit(scope, receive, send_and_note)
        except HungUpError:
            status = STATUS_CLIENT_GONE
        finally:
            self._note(scope, status, time.monotonic() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject the request, or read its body and pass it on."""
        service = self._service
        try:
            self._recognise(scope)
            # Operators need these most when the server is overloaded
            if _is_open(scope["path"]) or scope["path"] == "/metrics":
                await self._app(scope, receive, send)
                return
            if service.open_requests >= service.limits.requests:
                raise RefusedError(
                    429,
                    f"{service.open_requests} requests are inside; try again",
                    kind="Overloaded",
                    retry_after=1,
                )
        except RefusedError as error:
            await _error_reply(scope, error)(scope, receive, send)
            return

        # No await since the check, so concurrent requests cannot pass it together
        service.open_requests += 1
        try:
            await self._with_body(scope, receive, send)
        finally:
            service.open_requests -= 1

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body within the deadline, then let the route answer."""
        limits = self._service.limits
        try:
            async with asyncio.timeout(limits.seconds):
                body = await _body(scope, receive, limits.body_bytes)
        except TimeoutError:
            late = RefusedError(408, "the body did not arrive in time", kind="RequestTimeout")
            await _error_reply(scope, late)(scope, receive, send)
        except RefusedError as error:
            await _error_reply(scope, error)(scope, receive, send)
        else:
            # In a thread: the event loop must answer others meanwhile
            fault = await asyncio.to_thread(body_check.fault_of, body)
            if fault is not None:
                status = _error_client(scope).invalid_status
                too_much = RefusedError(status, f"the body has {fault}", kind="Bad Request")
                await _error_reply(scope, too_much)(scope, receive, send)
                return
            await self._app(scope, _replay(body, receive), send)

    def _recognise(self, scope: Scope) -> None:
        """Put the name of the request's API key into the scope.

        Raises:
            RefusedError: 401, if the server has keys and the request has none of them.
        """
        keys = self._service.keys
        if not keys:
            return

        # ASGI gives names of headers as bytes in lower case
        headers = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        # the name of a scheme may be in any case (RFC 9110, 11.1)
        sent = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        # Every key is compared, in constant time: the time of a reply must not reveal a key
        names = [
            name for name, entry in keys.items() if hmac.compare_digest(entry.key.encode(), sent)
        ]

        if names:
            # Two names may have the same key
            scope.setdefault("state", {})[KEY_NAME] = names[0]
        elif not _is_open(scope["path"]):
            raise RefusedError(
                401, "an API key is needed: Authorization: Bearer KEY", kind="Unauthorized"
            )

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Log and count a finished request."""
        # The route's pattern, not the path: labels of a metric must be few
        route = scope["route"].path if "route" in scope else "other"
        self._service.metrics.requests.labels(route, status).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)

        # Names and units of Elastic's common schema
        fields = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "http.response.status_code": status,
            "event.duration": round(seconds * 1e9),
            "client.address": (scope.get("client") or ["?"])[0],
            "user.name": scope.get("state", {}).get(KEY_NAME),
        }
        logger.info("%s %s %d", scope["method"], scope["path"], status, extra=fields)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(f"{ASSETS}/")


async def _body(scope: Scope, receive: Receive, most_bytes: int) -> bytes:
    """The whole body; one over the limit is rejected without reading the rest.

    Raises:
        RefusedError: 413.
        HungUpError: If the client closed the connection before the end.
    """
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    too_large = RefusedError(
        413,
        f"the body is larger than {most_bytes:,} bytes; send less at once",
        kind="PayloadTooLarge",
    )
    if declared.isdigit() and int(declared) > most_bytes:
        raise too_large

    parts: list[bytes] = []
    size = 0
    # The sum is checked too: a chunked body declares no length
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUpError

        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most_bytes:
            raise too_large
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receiver that gives the whole body first, then the connection's later messages."""
    replayed = False

    # Starlette's request reads the body again, and later waits here for a disconnect
    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
