"""The application: the routes of clients and operators, and the limits in front of them."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from worldpm.serving import error_replies
from worldpm.serving.admission import Admission
from worldpm.serving.client import OpenAIErrorBody, Reply, errors_of, reply_of
from worldpm.serving.request_heads import ASSETS, is_open
from worldpm.serving.routes import CLIENTS, page
from worldpm.serving.service import TIMEOUT_HEADER, Service
from worldpm.storage.json_files import Json


def build(service: Service, *, cors: Sequence[str] = ()) -> FastAPI:
    """Build the application over a service. Pages of the origins in `cors` may call it from a
    browser."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(service.backend.run())
        work.add_done_callback(_stop_if_dead)
        # Set only now, because a load balancer sends requests as soon as /ready gives 200
        service.started = True

        yield

        service.started = False
        # uvicorn has answered all accepted requests before it ends the lifespan
        work.cancel()
        if service.decisions is not None:
            service.decisions.close()

    # FastAPIOffline serves the scripts of /docs itself, because the internet may be unreachable
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
        app.include_router(
            client.routes(service),
            tags=[client.heading],
            responses=errors_of(client.error_type),
        )

    _operation(app, service)
    error_replies.handle_errors(app)
    # Runs before all routes, and for paths without a route
    app.add_middleware(Admission, service=service)
    _describe(app, needs_key=bool(service.keys))
    if cors:
        # Outside of Admission, because a browser's preflight request has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors,
            allow_methods=["GET", "POST"],
            allow_headers=[
                *("authorization", "content-type", "content-encoding"),
                *("x-api-key", "x-request-id", TIMEOUT_HEADER),
            ],
            expose_headers=["retry-after", "x-reply-id", "x-request-id"],
        )
    return app


def _describe(app: FastAPI, *, needs_key: bool) -> None:
    """Add the ways to send an API key to the description of the routes."""
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    # An empty entry means that no key is needed
    ways: list[dict[str, list[str]]] = [{name: []} for name in schemes]
    ways += [] if needs_key else [{}]
    plain = app.openapi

    def described() -> Json:
        if app.openapi_schema is None:
            schema = plain()
            schema["components"]["securitySchemes"] = schemes
            for path, methods in schema["paths"].items():
                for method, operation in methods.items():
                    operation["security"] = [{}] if is_open(method.upper(), path) else ways
        return plain()

    app.openapi = described  # type: ignore[method-assign]


def _stop_if_dead(work: asyncio.Task[None]) -> None:
    """Stop the server if its backend dies, because requests would then wait forever."""
    if not work.cancelled():
        logging.getLogger(__name__).critical(
            "the backend died, so the server stops", exc_info=work.exception()
        )
        # A signal instead of an exit lets uvicorn answer and close
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

    errors = errors_of(OpenAIErrorBody)
    router = APIRouter(
        tags=["operation"],
        responses={status: errors[status] for status in (401, 405, 421, 500)},
    )

    @router.head("/health", include_in_schema=False)
    @router.get("/health", summary="200 while the process lives", response_class=Response)
    # vLLM also has this route, for SageMaker
    @router.get("/ping", include_in_schema=False)
    async def health() -> Response:
        return Response()

    @router.get(
        "/ready",
        summary="200 when ready; 503 while starting, or while decisions cannot be logged."
        " Connections are refused during shutdown.",
        response_class=Response,
        responses={503: {"description": "Send requests elsewhere."}},
    )
    async def ready() -> Response:
        return Response(status_code=200 if service.is_ready else 503)

    @router.get("/version", summary="Release, model and template", responses=reply_of(Version))
    async def identity() -> Reply:
        model = service.identity
        return Reply(Version(version("worldpm"), model.name, model.sha256, model.template))

    # The content type contains the version of Prometheus's text format
    @router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(
            service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    app.include_router(router)
    app.include_router(page.routes())
