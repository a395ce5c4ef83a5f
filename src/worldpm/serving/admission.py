"""Checks of every request before its route: host, key, load, size and time. Each request is logged
afterwards."""

import asyncio
import contextlib
import logging
import time
import zlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worldpm.serving import body_check
from worldpm.serving.access_log import AccessLog, Outcome
from worldpm.serving.error_replies import STATUS_CLIENT_GONE, error_reply
from worldpm.serving.request_heads import (
    FREE_BYTES,
    add_request_id,
    check_host,
    declared_bytes,
    header,
    is_always_taken,
    overload,
    overloaded,
    recognise,
    reply_headers,
)
from worldpm.serving.service import (
    ARRIVED,
    BODY_BYTES,
    PARSED,
    HungUpError,
    RefusedError,
    Service,
)

logger = logging.getLogger("worldpm.access")

STATUS_TOO_LARGE = 413
DISCARD_SECONDS = 1.0
"""How long to read and discard the rest of a body that is too large. Many clients send the whole
body before they read a reply."""
LARGE_BYTES = 2**25
"""Limit for the large bytes (see `_Body.large_bytes`) of all bodies at once. Without it, slow
clients could fill the memory."""


class Admission:
    """Checks each request before its route, and logs and counts it afterwards."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app, self._service = app, service
        self._slots = asyncio.Semaphore(service.limits.requests)
        self._large_bytes = 0
        self._most_large_bytes = max(LARGE_BYTES, 2 * service.limits.body_bytes)
        # Check and parse large bodies one at a time, because neither lets other code run
        self._parsing = asyncio.Lock()
        self._log = AccessLog(service.metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        # Startup and shutdown of the application; websockets are not served
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        outcome = Outcome(time.monotonic())
        add_request_id(scope)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome.status, outcome.is_started = message["status"], True
                message["headers"] = [*message["headers"], *reply_headers(scope)]
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
        # The reply leaves out the error's text, which may contain inputs
        except Exception as error:
            logger.exception("a request failed")
            message = f"{type(error).__name__}. The server's log has the details."
            failure = RefusedError(500, message, kind="InternalServerError")
            if not outcome.is_started:
                await error_reply(scope, failure)(scope, receive, send_and_note)
        finally:
            self._service.parsed(scope)
            self._log.note(scope, outcome)

    async def _admit(self, scope: Scope, receive: Receive, send: Send, outcome: Outcome) -> None:
        """Check the request and pass it on.

        Raises:
            RefusedError: If the request is not admitted.
            HungUpError: If the client closed the connection.
        """
        check_host(scope, self._service)
        recognise(scope, self._service)
        if is_always_taken(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return

        declared = declared_bytes(scope)
        self._check_load(scope, declared)
        body = _Body(scope, self._service.limits.body_bytes)
        try:
            await self._read(body, receive)
            outcome.body_bytes = scope["state"][BODY_BYTES] = body.size
            # The size of a compressed body, or of one without declared length, is known only now
            if body.size != declared:
                self._check_load(scope, body.size)
            scope["state"][ARRIVED] = time.monotonic()
            # Take a slot only now, so that a client that sends half a body does not hold one
            await self._take_slot()
            try:
                await self._pass_on(scope, body.content, receive, send)
            finally:
                self._service.open_requests -= 1
                self._slots.release()
        finally:
            self._large_bytes -= body.large_bytes

    async def _read(self, body: "_Body", receive: Receive) -> None:
        """Read the whole body within the time limit."""
        try:
            async with asyncio.timeout(self._service.limits.body_seconds):
                while not body.is_complete:
                    large_before = body.large_bytes
                    try:
                        body.add(await receive())
                    finally:
                        self._large_bytes += body.large_bytes - large_before
                    if self._large_bytes > self._most_large_bytes:
                        raise overloaded("the server has too many large bodies", close=True)
        except TimeoutError:
            raise RefusedError(
                408, "the body did not arrive in time", kind="RequestTimeout", close=True
            ) from None

    def _check_load(self, scope: Scope, body_bytes: int | None) -> None:
        """Reject a request that the server cannot take, before its body is read or parsed."""
        error = overload(self._service, scope, body_bytes)
        if error is not None:
            raise error

    async def _take_slot(self) -> None:
        """Take a slot. Wait for one for up to `queue_wait` seconds."""
        service = self._service
        full = overloaded(f"the server has {service.open_requests} open requests")
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
        # In a thread, so that the event loop can answer other requests
        fault = await asyncio.to_thread(
            body_check.fault_of, content, most_values=self._service.limits.values
        )
        if fault is not None:
            raise RefusedError(None, fault, kind="Bad Request")

    async def _pass_on(self, scope: Scope, content: bytes, receive: Receive, send: Send) -> None:
        """Check the body and let the route answer."""
        if len(content) <= FREE_BYTES:
            await self._check_body(content)
            await self._app(scope, _replay(content, receive), send)
            return

        await self._parsing.acquire()
        with contextlib.ExitStack() as parsed:
            parsed.callback(self._parsing.release)
            # The route releases the lock once it has the body; a second release does nothing
            scope["state"][PARSED] = parsed.close
            await self._check_body(content)
            await self._app(scope, _replay(content, receive), send)


class _Body:
    """A body that arrives in parts, and is decompressed if it is compressed."""

    def __init__(self, scope: Scope, most_bytes: int) -> None:
        self._most = most_bytes
        encoding = header(scope, b"content-encoding").lower()
        if encoding not in (b"", b"identity", b"gzip"):
            raise RefusedError(
                415,
                "the content encoding is not supported. Use gzip or none.",
                kind="Bad Request",
                close=True,
            )
        # 16 more than the largest window makes zlib read gzip's header
        self._unpack = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding == b"gzip" else None
        self._parts: list[bytes] = []
        self._arrived = 0
        self.size = 0
        """Bytes that have arrived, after decompression."""
        self.is_complete = False

        declared = declared_bytes(scope)
        if declared is not None and declared > most_bytes:
            raise self._too_large()

    @property
    def content(self) -> bytes:
        """The whole body."""
        return b"".join(self._parts)

    @property
    def large_bytes(self) -> int:
        """Bytes beyond `FREE_BYTES`."""
        return max(0, self.size - FREE_BYTES)

    def add(self, message: Message) -> None:
        """Add a part.

        Raises:
            RefusedError: 413 if the body is now too large, 400 if it cannot be decompressed.
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
        # Check the sum too, because a chunked body declares no length
        if self.size > self._most:
            raise self._too_large()

    def _unpacked(self, part: bytes) -> bytes:
        assert self._unpack is not None
        try:
            # At most one byte more than allowed, because a few bytes can become gigabytes
            unpacked = self._unpack.decompress(part, self._most - self.size + 1)
        except zlib.error:
            raise _not_packed() from None
        fits = len(unpacked) + self.size <= self._most
        # zlib would keep bytes after the stream, and no limit would count them
        if self._unpack.unused_data or (self.is_complete and fits and not self._unpack.eof):
            raise _not_packed()
        return unpacked

    def _too_large(self) -> RefusedError:
        message = f"the body is larger than {self._most:,} bytes. Send less at once."
        return RefusedError(STATUS_TOO_LARGE, message, kind="PayloadTooLarge", close=True)


async def _discard(receive: Receive) -> None:
    """Read the rest of a body for a short time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _not_packed() -> RefusedError:
    return RefusedError(
        400,
        "the body is not a single complete gzip stream. Compress it again.",
        kind="Bad Request",
        close=True,
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receiver that first gives the whole body, and then the connection's later messages."""
    replayed = False

    # Starlette's request reads the body from here, and later waits here for a disconnect
    async def receive_again() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
