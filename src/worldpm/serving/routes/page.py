"""The page at `/` with its script and style, which are separate files because of the strict
Content-Security-Policy."""

from functools import partial
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

PAGE_FILES = {
    "/": ("page.html", "text/html"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/page.css": ("page.css", "text/css"),
}
"""File and media type by path. None of them needs an API key."""


def routes() -> APIRouter:
    """The paths of `PAGE_FILES`."""
    router = APIRouter(include_in_schema=False)
    for path, (name, media_type) in PAGE_FILES.items():
        router.add_api_route(path, partial(_file, name, media_type), methods=["GET"])
    return router


async def _file(name: str, media_type: str) -> Response:
    content = files("worldpm.serving").joinpath("page", name).read_bytes()
    # A page of one release must not run a cached script of another
    return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})
