"""The whole application: the clients' routes, with limits before them, and those of operators."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from worldpm.serving import error_replies
from worldpm.serving.admission import ASSETS, Admission
from worldpm.serving.client import Reply
from worldpm.serving.routes import CLIENTS, page
from worldpm.serving.service import TIMEOUT_HEADER, Service


def build(service: Service, *, cors: Sequence[str] = ()) -> FastAPI:
    """The application over a service; pages of the origins `cors` may call it in a browser."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(service.backend.run())
        work.add_done_callback(_stop_if_dead)
        # Only now: a load balancer sends requests as soon as /ready gives 200
        service.started = True

        yield

        service.started = False
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
    error_replies.handle_errors(app)
    # Runs before all routes, and for paths without a route
    app.add_middleware(Admission, service=service)
    if cors:
        # Outside of it: a browser asks for permission without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", TIMEOUT_HEADER],
            expose_headers=["retry-after", "x-reply-id", "x-request-id"],
        )
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

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["operation"], summary="200 while the process lives")
    # vLLM has it too, for SageMaker
    @app.get("/ping", include_in_schema=False)
    async def health() -> Response:
        return Response()

    @app.get(
        "/ready",
        tags=["operation"],
        summary="200 when ready; 503 while starting, or while decisions cannot be logged."
        " Connections are refused during shutdown.",
    )
    async def ready() -> Response:
        return Response(status_code=200 if service.is_ready else 503)

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

    app.include_router(page.routes())
