"""The server put together: routes, limits before them, and errors in the words of each client."""

import asyncio
import contextlib
import hmac
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worldpm.serving.routes import get_reward, own, sglang, tei, vllm
from worldpm.serving.routing import RoutingRules
from worldpm.serving.service import HungUpError, RefusedError, Service

logger = logging.getLogger("worldpm.access")

Json = dict[str, Any]
OPEN = ("/", "/health", "/ping", "/ready", "/version", "/docs", "/openapi.json")
"""Answered without an API key; everything else needs one where there are keys."""
ASSETS = "/docs-assets"
"""Script and style of `/docs`, which asks nobody else for them; open too."""
TEI_ROUTES = ("/predict", "/info")
BODY_TAGS = (
    "body",
    "OfText",
    "OfMessages",
    "PoolText",
    "PoolMessages",
    "Classify",
    "Rerank",
    "RerankTexts",
)
GONE = 499
"""What the log says of a client that left; nobody reads it."""


def build(
    service: Service,
    *,
    rules: RoutingRules | None = None,
    keys: Mapping[str, str] | None = None,
    settings: Mapping[str, own.Preferences] | None = None,
) -> FastAPI:
    """The application. `keys` are API keys by the clients' names, `settings` their preference
    settings."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(service.engine.run())
        work.add_done_callback(_stop_if_dead)
        service.ready = True
        yield
        service.ready = False
        work.cancel()
        if service.decisions is not None:
            service.decisions.close()

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
    for routes in (vllm.routes, sglang.routes, tei.routes, get_reward.routes):
        app.include_router(routes(service))
    app.include_router(own.routes(service, rules, settings or {}))
    _about(app, service)
    _errors(app)
    app.add_middleware(Admission, service=service, keys=keys or {})
    return app


def _stop_if_dead(work: asyncio.Task[None]) -> None:
    """Without its engine a server would take requests and never answer."""
    if not work.cancelled():
        logging.getLogger(__name__).critical(
            "the engine died; the server stops", exc_info=work.exception()
        )
        os.kill(os.getpid(), signal.SIGTERM)


def _about(app: FastAPI, service: Service) -> None:
    """What operators and browsers ask."""

    @app.get("/health", tags=["operation"], summary="200 while the process lives")
    @app.get("/ping", include_in_schema=False)
    async def health() -> Response:
        return Response()

    @app.get(
        "/ready",
        tags=["operation"],
        summary="200 while requests are taken, 503 before; while it drains, none comes in",
    )
    async def ready() -> Response:
        return Response(status_code=200 if service.ready else 503)

    @app.get("/version", tags=["operation"], summary="Release, model and template")
    async def told() -> JSONResponse:
        identity = service.identity
        return JSONResponse(
            {
                "version": version("worldpm"),
                "model": identity.name,
                "model_sha256": identity.sha256,
                "template_hash": identity.template,
            }
        )

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
    @app.exception_handler(RefusedError)
    async def refused(http: HttpRequest, error: RefusedError) -> JSONResponse:
        return _refusal(http.scope, error)

    @app.exception_handler(HungUpError)
    async def gone(http: HttpRequest, error: HungUpError) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: HttpRequest, error: RequestValidationError) -> JSONResponse:
        found = _wrong_fields(error)
        lines = "\n".join(f"  {one}" for one in found)
        message = f"{len(found)} validation error{'s' * (len(found) != 1)}:\n{lines}"
        own_route = http.url.path in ("/v1/rewards", "/v1/explain", "/v1/route")
        status = 422 if own_route or http.url.path in TEI_ROUTES else 400
        return _refusal(
            http.scope, RefusedError(status, message, kind="Bad Request", param=found[0]["loc"])
        )

    @app.exception_handler(HTTPException)
    async def failed(http: HttpRequest, error: HTTPException) -> JSONResponse:
        return _refusal(
            http.scope, RefusedError(error.status_code, str(error.detail), kind="Bad Request")
        )

    @app.exception_handler(Exception)
    async def broken(http: HttpRequest, error: Exception) -> JSONResponse:
        return _refusal(
            http.scope,
            RefusedError(
                500,
                f"{type(error).__name__}; the server's log has the rest",
                kind="InternalServerError",
            ),
        )


def _wrong_fields(error: RequestValidationError) -> list[Json]:
    """What is wrong with a body, in vLLM's form. Of forms of other clients that share the route
    nothing is said."""
    found = error.errors()
    if (
        len({part for one in found for part in one["loc"][1:2]}) > 1
    ):  # forms of two clients were tried: the first is vLLM's
        found = [one for one in found if one["type"] != "value_error" and "texts" not in one["loc"]]
    return [
        {
            "type": one["type"],
            "loc": ".".join(
                [
                    "body",
                    *(
                        str(part)
                        for part in one["loc"]
                        if part not in BODY_TAGS and not str(part).startswith("function-")
                    ),
                ]
            ),
            "msg": one["msg"],
            "input": _summary(one.get("input")),
        }
        for one in found or error.errors()
    ]


def _summary(value: object) -> str:
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return repr(value)[:80]


def _refusal(scope: Scope, error: RefusedError) -> JSONResponse:
    """The error as the route's clients read it."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    if scope["path"] in TEI_ROUTES or scope.get("state", {}).get("tei"):
        return JSONResponse(
            {"error": error.message, "error_type": error.kind},
            status_code=error.status,
            headers=headers,
        )
    content = {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.status,
    }
    return JSONResponse({"error": content}, status_code=error.status, headers=headers)


class Admission:
    """Before any route: keys, sizes, how many are inside; after it: one line of log, one count."""

    def __init__(self, app: ASGIApp, *, service: Service, keys: Mapping[str, str]) -> None:
        self._app, self._service, self._keys = app, service, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._let_in(scope, receive, noted)
        except HungUpError:
            status = GONE
        finally:
            self._note(scope, status, time.monotonic() - started)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        try:
            self._recognise(scope)
            if _is_open(scope["path"]) or scope["path"] == "/metrics":
                await self._app(scope, receive, send)
                return
            if service.inside >= service.limits.requests:
                raise RefusedError(
                    429,
                    f"{service.inside} requests are inside; try again",
                    kind="Overloaded",
                    retry_after=1,
                )
        except RefusedError as error:
            await _refusal(scope, error)(scope, receive, send)
            return
        service.inside += 1
        try:
            async with asyncio.timeout(service.limits.seconds):
                body = await _body(scope, receive, service.limits.body_bytes)
        except TimeoutError:
            late = RefusedError(408, "the body did not arrive in time", kind="RequestTimeout")
            await _refusal(scope, late)(scope, receive, send)
        except RefusedError as error:
            await _refusal(scope, error)(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)
        finally:
            service.inside -= 1

    def _recognise(self, scope: Scope) -> None:
        """Put the client's name into the scope; every key is compared, in constant time.

        Raises:
            RefusedError: 401, if there are keys and none came.
        """
        if not self._keys:
            return
        headers = dict(scope["headers"])
        came = headers.get(b"authorization", b"").removeprefix(b"Bearer ") or headers.get(
            b"x-api-key", b""
        )
        names = [
            name for name, key in self._keys.items() if hmac.compare_digest(key.encode(), came)
        ]
        if names:
            scope.setdefault("state", {})["client"] = names[0]
        elif not _is_open(scope["path"]):
            raise RefusedError(
                401, "an API key is needed: Authorization: Bearer KEY", kind="Unauthorized"
            )

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["route"].path if "route" in scope else "other"
        self._service.metrics.requests.labels(route, status).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)
        fields = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "http.response.status_code": status,
            "event.duration": round(seconds * 1e9),
            "client.address": (scope.get("client") or ["?"])[0],
            "user.name": scope.get("state", {}).get("client"),
        }
        logger.info("%s %s %d", scope["method"], scope["path"], status, extra=fields)


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(f"{ASSETS}/")


async def _body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The whole body; what is too large is refused as soon as that is known.

    Raises:
        RefusedError: 413.
        HungUpError: If the client left in the middle.
    """
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    too_large = RefusedError(
        413, f"the body is larger than {most:,} bytes; send less at once", kind="PayloadTooLarge"
    )
    if declared.isdigit() and int(declared) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUpError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise too_large
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the connection tells."""
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
