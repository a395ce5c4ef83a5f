"""Checks of every request before a route: host, key, load, size and time. Logs each one
afterwards."""

import asyncio
import contextlib
import hmac
import logging
import re
import secrets
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worldpm.serving import body_check
from worldpm.serving.error_replies import STATUS_CLIENT_GONE, error_reply
from worldpm.serving.routes import page
from worldpm.serving.service import (
    ARRIVED,
    ERROR_KIND,
    KEY_NAME,
    PARSED,
    REPLY_ID,
    REQUEST_ID,
    HungUpError,
    RefusedError,
    Service,
)

logger = logging.getLogger("worldpm.access")

OPEN_PATHS = (
    *("/health", "/ping", "/ready", "/version", "/docs", "/openapi.json"),
    *page.PAGE_FILES,
)
"""Answered without an API key; every other path needs a key if the server has keys."""
ASSETS = "/docs-assets"
"""Below it, without an API key too, are the scripts of `/docs`."""
STATUS_TOO_LARGE = 413
DISCARD_SECONDS = 1.0
"""Time in which the rest of a body that is too large is read and discarded: many clients send all
of it before they read a reply."""
FREE_BYTES = 2**16
"""Bytes of a body that do not count as large."""
LARGE_BYTES = 2**25
"""Bytes beyond these of all bodies at once. Slow clients could fill the memory with them."""
SENT_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""Ids of requests that are taken from the client, for its own log and ours."""
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'self'"
)
DOCS_POLICY = (
    f"{CONTENT_POLICY}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
)
"""The script in the page of `/docs` is FastAPI's own, and shows no text of a request."""


@dataclass
class Outcome:
    """Fields of a request that the log needs."""

    started: float
    """Seconds on the monotonic clock."""
    # Stays 500 if the application fails before it sends a status
    status: int = 500
    is_started: bool = False
    """Whether a reply has begun."""
    body_bytes: int = 0
    reply_bytes: int = 0


class Admission:
    """Checks each request before any route; logs and counts it after it."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app, self._service = app, service
        self._slots = asyncio.Semaphore(service.limits.requests)
        self._large_bytes = 0
        self._most_large_bytes = max(LARGE_BYTES, 2 * service.limits.body_bytes)
        # Large bodies are checked and parsed one at a time: neither lets other code run meanwhile
        self._parsing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        # Start and shutdown of the application; there are no websockets
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        outcome = Outcome(time.monotonic())
        scope.setdefault("state", {})[REQUEST_ID] = _request_id(scope)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome.status, outcome.is_started = message["status"], True
                message["headers"] = [*message["headers"], *_reply_headers(scope)]
            outcome.reply_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._admit(scope, receive, send_and_note, outcome)
        except RefusedError as error:
            if error.status == STATUS_TOO_LARGE:
                await _discard(receive)
            await error_reply(scope, error)(scope, receive, send_and_note)
        except HungUpError:
            outcome.status = STATUS_CLIENT_GONE
        # Without the error's own text in the reply, which may contain inputs
        except Exception as error:
            logger.exception("a request failed")
            message = f"{type(error).__name__}; the server's log has the rest"
            failure = RefusedError(500, message, kind="InternalServerError")
            if not outcome.is_started:
                await error_reply(scope, failure)(scope, receive, send_and_note)
        finally:
            self._note(scope, outcome)

    async def _admit(self, scope: Scope, receive: Receive, send: Send, outcome: Outcome) -> None:
        """Pass the request on.

        Raises:
            RefusedError: If it is not admitted.
            HungUpError: If the client closed the connection.
        """
        self._check_host(scope)
        self._recognise(scope)
        # Operators need these most when the server is overloaded
        if is_open(scope["path"]) or scope["path"] == "/metrics":
            await self._app(scope, receive, send)
            return

        self._check_load(scope)
        body = _Body(scope, self._service.limits.body_bytes)
        try:
            await self._read(body, receive)
            outcome.body_bytes = body.size
            scope["state"][ARRIVED] = time.monotonic()
            # Only now: a client that sends half a body must not take a slot
            await self._take_slot()
            try:
                await self._pass_on(scope, body.content, receive, send)
            finally:
                self._service.open_requests -= 1
                self._slots.release()
        finally:
            self._large_bytes -= body.large_bytes

    async def _read(self, body: "_Body", receive: Receive) -> None:
        """Read the whole body in time."""
        try:
            async with asyncio.timeout(self._service.limits.body_seconds):
                while not body.is_complete:
                    large_before = body.large_bytes
                    try:
                        body.add(await receive())
                    finally:
                        self._large_bytes += body.large_bytes - large_before
                    if self._large_bytes > self._most_large_bytes:
                        raise _overloaded("many large bodies are inside", close=True)
        except TimeoutError:
            raise RefusedError(
                408, "the body did not arrive in time", kind="RequestTimeout", close=True
            ) from None

    def _check_load(self, scope: Scope) -> None:
        """Reject a request before its body is read if it could not be taken."""
        service = self._service
        if service.limits.queue_wait > 0:
            return

        # A body that is not read must not be waited for either
        declared = _declared_bytes(scope)
        close = declared is None or declared > FREE_BYTES
        if self._slots.locked():
            raise _overloaded(f"{service.open_requests} requests are inside", close=close)
        seconds = service.backend.seconds_until_room()
        if seconds is not None:
            raise _overloaded("the queue is full", seconds=seconds, close=close)

    async def _take_slot(self) -> None:
        """Take a slot, after waiting for one up to `queue_wait` seconds."""
        service = self._service
        full = _overloaded(f"{service.open_requests} requests are inside")
        if service.limits.queue_wait <= 0 and self._slots.locked():
            raise full
        try:
            seconds = min(service.limits.queue_wait, service.limits.seconds)
            async with asyncio.timeout(seconds or None):
                await self._slots.acquire()
        except TimeoutError:
            raise full from None
        service.open_requests += 1

    async def _check_body(self, content: bytes) -> None:
        if len(content) <= body_check.SMALL_BYTES:
            return
        # In a thread: the event loop must answer others meanwhile
        fault = await asyncio.to_thread(
            body_check.fault_of, content, most_values=self._service.limits.values
        )
        if fault is not None:
            raise RefusedError(None, fault, kind="Bad Request")

    async def _pass_on(self, scope: Scope, content: bytes, receive: Receive, send: Send) -> None:
        """Check the body and let a route answer."""
        if len(content) <= FREE_BYTES:
            await self._check_body(content)
            await self._app(scope, _replay(content, receive), send)
            return

        await self._parsing.acquire()
        with contextlib.ExitStack() as parsed:
            parsed.callback(self._parsing.release)
            # The route releases it once it has the body; a second release does nothing
            scope["state"][PARSED] = parsed.close
            await self._check_body(content)
            await self._app(scope, _replay(content, receive), send)

    def _check_host(self, scope: Scope) -> None:
        """Reject requests that a page of another site sent to a server of this machine alone.

        Raises:
            RefusedError: 421.
        """
        hosts = self._service.hosts
        if hosts is None:
            return
        # Remove the port, and the brackets around an IPv6 address
        sent = _header(scope, b"host").decode("latin-1").lower()
        name = re.sub(r":\d*$", "", sent).strip("[]").rstrip(".")
        if name not in hosts:
            raise RefusedError(
                421,
                f"this server does not answer to the host {name[:80]!r}; start it with"
                " --allow-hosts",
                kind="MisdirectedRequest",
            )

    def _recognise(self, scope: Scope) -> None:
        """Put the name of the request's API key into the scope.

        Raises:
            RefusedError: 401, if the server has keys and the request has none of them.
        """
        keys = self._service.keys
        if not keys:
            return

        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        # the name of a scheme may be in any case (RFC 9110, 11.1)
        sent = token.strip() if scheme.lower() == b"bearer" else _header(scope, b"x-api-key")
        # Every key is compared, in constant time: the time of a reply must not reveal a key
        names = [
            name for name, entry in keys.items() if hmac.compare_digest(entry.key.encode(), sent)
        ]

        if names:
            # Two names may have the same key
            scope["state"][KEY_NAME] = names[0]
        elif not is_open(scope["path"]):
            raise RefusedError(
                401, "an API key is needed: Authorization: Bearer KEY", kind="Unauthorized"
            )

    def _note(self, scope: Scope, outcome: Outcome) -> None:
        """Log and count a finished request."""
        seconds = time.monotonic() - outcome.started
        state = scope["state"]
        # The route's pattern, not the path: labels of a metric must be few
        route = scope["route"].path if "route" in scope else "other"
        metrics = self._service.metrics
        metrics.requests.labels(route, outcome.status).inc()
        metrics.seconds.labels(route).observe(seconds)
        if ERROR_KIND in state:
            metrics.errors.labels(state[ERROR_KIND]).inc()

        # Names and units of Elastic's common schema
        fields = {
            "http.request.method": scope["method"],
            "http.request.id": state[REQUEST_ID],
            "http.request.body.bytes": outcome.body_bytes,
            "http.response.status_code": outcome.status,
            "http.response.body.bytes": outcome.reply_bytes,
            "url.path": scope["path"],
            "event.duration": round(seconds * 1e9),
            "client.address": (scope.get("client") or ["?"])[0],
            "user.name": state.get(KEY_NAME),
            "error.type": state.get(ERROR_KIND),
        }
        logger.info("%s %s %d", scope["method"], scope["path"], outcome.status, extra=fields)


class _Body:
    """A body that arrives in parts, unpacked if it is packed."""

    def __init__(self, scope: Scope, most_bytes: int) -> None:
        self._most = most_bytes
        encoding = _header(scope, b"content-encoding").lower()
        if encoding not in (b"", b"identity", b"gzip"):
            raise RefusedError(
                415, "a body may be packed with gzip only", kind="Bad Request", close=True
            )
        # 16 more than the largest window: zlib then reads the header of gzip
        self._unpack = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding == b"gzip" else None
        self._parts: list[bytes] = []
        self._arrived = 0
        self.size = 0
        """Bytes that have arrived, unpacked."""
        self.is_complete = False

        declared = _declared_bytes(scope)
        if declared is not None and declared > most_bytes:
            raise self._too_large()

    @property
    def content(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)

    @property
    def large_bytes(self) -> int:
        """Bytes beyond `FREE_BYTES`."""
        return max(0, self.size - FREE_BYTES)

    def add(self, message: Message) -> None:
        """Add a part.

        Raises:
            RefusedError: 413, if it is too large by now; 400, if it cannot be unpacked.
            HungUpError: If the client closed the connection before the end.
        """
        if message["type"] == "http.disconnect":
            raise HungUpError

        part = message.get("body", b"")
        self.is_complete = not message.get("more_body", False)
        self._arrived += len(part)
        if self._arrived > self._most:
            raise self._too_large()
        if self._unpack is not None:
            part = self._unpacked(part)
        self._parts.append(part)
        self.size += len(part)
        # The sum is checked too: a chunked body declares no length
        if self.size > self._most:
            raise self._too_large()

    def _unpacked(self, part: bytes) -> bytes:
        assert self._unpack is not None
        try:
            # One byte more than allowed, not all: a few bytes may become gigabytes
            unpacked = self._unpack.decompress(part, self._most - self.size + 1)
        except zlib.error:
            raise _not_packed() from None
        fits = len(unpacked) + self.size <= self._most
        # zlib would keep bytes after the stream, and no limit would count them
        if self._unpack.unused_data or (self.is_complete and fits and not self._unpack.eof):
            raise _not_packed()
        return unpacked

    def _too_large(self) -> RefusedError:
        message = f"the body is larger than {self._most:,} bytes; send less at once"
        return RefusedError(STATUS_TOO_LARGE, message, kind="PayloadTooLarge", close=True)


async def _discard(receive: Receive) -> None:
    """Read the rest of a body, for a short time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _not_packed() -> RefusedError:
    return RefusedError(
        400, "the body is not one whole gzip stream", kind="Bad Request", close=True
    )


def _overloaded(message: str, *, seconds: int = 1, close: bool = False) -> RefusedError:
    return RefusedError(
        429, f"{message}; try again", kind="Overloaded", retry_after=seconds, close=close
    )


def _header(scope: Scope, name: bytes) -> bytes:
    """A header's value; empty if it is absent."""
    # ASGI gives names of headers as bytes in lower case
    value: bytes = dict(scope["headers"]).get(name, b"")
    return value


def _declared_bytes(scope: Scope) -> int | None:
    """The declared length of the body; None if it has none."""
    declared = _header(scope, b"content-length")
    return int(declared) if declared.isdigit() else None


def _request_id(scope: Scope) -> str:
    """The client's id of the request, else a new one."""
    sent = _header(scope, b"x-request-id").decode("latin-1")
    return sent if SENT_REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)


def _reply_headers(scope: Scope) -> Sequence[tuple[bytes, bytes]]:
    """Headers that every reply has."""
    state = scope["state"]
    headers = {
        **SECURITY_HEADERS,
        "content-security-policy": DOCS_POLICY if scope["path"] == "/docs" else CONTENT_POLICY,
        "x-request-id": state[REQUEST_ID],
    }
    if REPLY_ID in state:
        headers["x-reply-id"] = state[REPLY_ID]
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def is_open(path: str) -> bool:
    """Whether a path is answered without an API key."""
    return path in OPEN_PATHS or path.startswith(f"{ASSETS}/")


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
