"""Checks of a request that do not need its body (host, API key and load), and the headers of every
reply."""

import hmac
import re
from random import Random

from starlette.types import Scope

from worldpm.serving.routes import page
from worldpm.serving.service import (
    COMING,
    KEY_NAME,
    OVERLOADED,
    REPLY_ID,
    REQUEST_ID,
    RefusedError,
    Service,
)

OPEN_PATHS = (
    *("/health", "/ping", "/ready", "/version", "/docs", "/openapi.json"),
    *page.PAGE_FILES,
)
"""Paths that need no API key. Every other path needs a key if the server has keys."""
ASSETS = "/docs-assets"
"""Folder of the scripts of `/docs`, which need no API key either."""
FREE_BYTES = 2**16
"""Number of bytes of a body that do not count as large."""
SENT_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""Valid request ids of clients, which appear in the client's log and in ours."""
PORT = re.compile(r":\d*$")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
ALLOWED = (
    b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none';"
    b" form-action 'self'"
)
CONTENT_POLICY = (b"content-security-policy", ALLOWED)
DOCS_POLICY = (
    b"content-security-policy",
    ALLOWED + b"; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'",
)
"""The policy of `/docs`, whose inline script comes from FastAPI and shows no text of a request."""


_ids = Random()
"""Source of request ids. They need no secrecy, and the system's source of random bytes gives up the
interpreter's lock at each call."""


def is_open(method: str, path: str) -> bool:
    """Whether a request is answered without an API key."""
    # a POST to `/` asks for rewards, as Hugging Face's clients do
    if (method, path) == ("POST", "/"):
        return False
    return path in OPEN_PATHS or path.startswith(f"{ASSETS}/")


def is_always_taken(method: str, path: str) -> bool:
    """Whether even a full server answers a request, because operators need it then."""
    return is_open(method, path) or path == "/metrics"


def header(scope: Scope, name: bytes) -> bytes:
    """A header's value; empty if it is absent."""
    # ASGI gives header names as bytes in lower case; of equal names the last one counts
    for sent, value in reversed(scope["headers"]):
        if sent == name:
            return bytes(value)
    return b""


def declared_bytes(scope: Scope) -> int | None:
    """The declared length of the body; None if no length is declared."""
    declared = header(scope, b"content-length")
    return int(declared) if declared.isdigit() else None


def add_request_id(scope: Scope) -> None:
    """Put the client's request id, or else a new id, into the scope."""
    sent = header(scope, b"x-request-id").decode("latin-1")
    known = sent if SENT_REQUEST_ID.fullmatch(sent) else f"{_ids.getrandbits(64):016x}"
    scope.setdefault("state", {})[REQUEST_ID] = known


def check_host(scope: Scope, service: Service) -> None:
    """Reject requests to other hosts, for instance from a page of another site to a local server.

    Raises:
        RefusedError: 421.
    """
    hosts = service.hosts
    if hosts is None:
        return
    # Remove the port, and the brackets around an IPv6 address
    sent = header(scope, b"host").decode("latin-1").lower()
    name = PORT.sub("", sent).strip("[]").rstrip(".")
    if name not in hosts:
        raise RefusedError(
            421,
            f"this server does not answer to the host {name[:80]!r}. Start it with --allow-hosts.",
            kind="MisdirectedRequest",
        )


def recognise(scope: Scope, service: Service) -> None:
    """Put the name of the request's API key into the scope.

    Raises:
        RefusedError: 401 if the server has keys, but the request has no valid key.
    """
    keys = service.keys
    if not keys:
        return

    scheme, _, token = header(scope, b"authorization").partition(b" ")
    # the name of a scheme may be in any case (RFC 9110, 11.1)
    sent = token.strip() if scheme.lower() == b"bearer" else header(scope, b"x-api-key")
    # Compare every key in constant time, so that the time of a reply does not reveal a key
    names = [name for name, entry in keys.items() if hmac.compare_digest(entry.key.encode(), sent)]

    if names:
        # Several names can have the same key
        scope["state"][KEY_NAME] = names[0]
    elif not is_open(scope["method"], scope["path"]):
        raise RefusedError(
            401, "an API key is needed. Send Authorization: Bearer KEY.", kind="Unauthorized"
        )


def overload(service: Service, scope: Scope, body_bytes: int | None) -> RefusedError | None:
    """The error of a request that the server cannot take now; None if it can.

    `body_bytes` is the declared length of a body that is not read yet; None if no length is
    declared.
    """
    if service.limits.queue_wait > 0:
        return None

    # Close the connection if the rest of the body is not read
    close = body_bytes is None or body_bytes > FREE_BYTES
    if service.open_requests >= service.limits.requests:
        return overloaded(f"the server has {service.open_requests} open requests", close=close)
    tokens = service.tokens_per_byte * (body_bytes or 0)
    others = service.coming - (COMING in scope.get("state", {}))
    seconds = service.backend.seconds_until_room(tokens, coming=others)
    if seconds is not None:
        return overloaded("the queue is full", seconds=seconds, close=close)
    return None


def overloaded(message: str, *, seconds: int = 1, close: bool = False) -> RefusedError:
    """The error of a request to a full server."""
    return RefusedError(
        429, f"{message}. Try again later.", kind=OVERLOADED, retry_after=seconds, close=close
    )


def reply_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers of every reply."""
    state = scope["state"]
    headers = [
        *SECURITY_HEADERS,
        DOCS_POLICY if scope["path"] == "/docs" else CONTENT_POLICY,
        (b"x-request-id", state[REQUEST_ID].encode()),
    ]
    if REPLY_ID in state:
        headers.append((b"x-reply-id", state[REPLY_ID].encode()))
    return headers
