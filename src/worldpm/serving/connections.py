"""HTTP connections with limits of time, size and number.

uvicorn closes idle connections, but waits forever for a client that sends half a header or never
reads its reply, and its fast parser takes headers of any size.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.responses import Response
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 36\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    b"too many connections; try again soon"
)
"""Reply to a connection beyond the limit, where all others are at work."""


HEADER_BYTES = 2**16
"""Bytes of the headers of a request, its trailers included."""
MOST_PIPELINED = 64
"""Requests that a client may send on one connection before the first of them is answered."""


class BoundedConnection(HttpToolsProtocol):
    """A connection whose headers arrive in time and whose replies are read in time.

    Beyond `most` connections, a new one takes the place of the one that has waited longest for a
    request to begin or to be complete; if all are at work, it is refused.
    """

    header_seconds = 10.0
    """From the first byte of a request, or from the connection's start, to the end of its
    headers."""
    write_seconds = 30.0
    """Time in which a client must take more of a reply that it lets wait."""
    most = 1024
    """Connections at once."""
    refusal: Callable[[Scope], Response | None] = staticmethod(lambda _: None)
    """Gives the reply to a request that the application need not see."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._waiting_since = time.monotonic()
        self._header_bytes = 0
        self._has_headers = False
        self._is_reading = False
        """Whether a request has begun, and its end has not arrived."""

    @property
    def _has_request(self) -> bool:
        """Whether the headers of a request are there, and it is not answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_at_work(self) -> bool:
        """Whether a whole request is there, and it is not answered."""
        return self._has_request and not self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection, or refuse it."""
        super().connection_made(transport)
        if len(self.connections) > self.most and not self._make_room():
            transport.write(FULL)
            transport.close()
            return
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget its timers."""
        super().connection_lost(exc)
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Read more of a request, whose headers must be complete in time."""
        if not self._has_request and self._header_timer is None:
            self._await_header()
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._has_request or not self._is_reading:
            self._header_arrived()
        is_idle = not self._has_request and not self._is_reading
        if is_idle and self.timeout_keep_alive_task is None:
            self._await_next()

    def on_message_begin(self) -> None:
        """Begin a request, if not too many wait."""
        if len(self.pipeline) > MOST_PIPELINED:
            raise ValueError("too many requests on one connection")
        super().on_message_begin()
        self._header_bytes, self._has_headers, self._is_reading = 0, False, True

    def on_url(self, url: bytes) -> None:
        """Add a part of the address."""
        self._count_header(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Trailers are dropped: a proxy in front of us may not have checked them."""
        self._count_header(name + value)
        if not self._has_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer the request, unless it is to be read again."""
        self._has_headers = True
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request, unless it is to be read again."""
        if not self.parser.should_upgrade():
            self._is_reading = False
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._waiting_since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Give the client some time to read its reply."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, with what its client never read."""
        super().timeout_keep_alive_handler()
        # `close` would wait until the client takes what is left
        self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Let the application answer a request, unless it is refused here."""
        reply = self.refusal(cast("Scope", cycle.scope))
        if reply is None:
            super()._start_asgi_task(cycle, app)
            return

        is_last = not cycle.keep_alive or reply.headers.get("connection") == "close"
        headers = [*self.server_state.default_headers, *reply.raw_headers]
        if is_last and "connection" not in reply.headers:
            headers.append((b"connection", b"close"))
        lines = [b"%b: %b\r\n" % line for line in headers]
        self.transport.write(
            b"".join([STATUS_LINE[reply.status_code], *lines, b"\r\n", reply.body])
        )
        cycle.response_started = cycle.response_complete = True
        if is_last:
            self.transport.close()
        self.on_response_complete()

    def _feed(self, data: bytes) -> None:
        """Parse data.

        Raises:
            httptools.HttpParserError: If it is not HTTP, or a limit is passed.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def _without_upgrade(self) -> bytes:
        """The head of a request that asks for another protocol, as one that does not.

        Java's client asks for HTTP/2 first. The parser would not read the body of its request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("this is not a proxy")

        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0].lower() != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _count_header(self, part: bytes) -> None:
        self._header_bytes += len(part)
        if self._header_bytes > HEADER_BYTES:
            raise ValueError("the headers are too large")

    def _await_header(self) -> None:
        self._header_timer = self.loop.call_later(self.header_seconds, self._header_is_late)

    def _await_next(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _header_arrived(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_is_late(self) -> None:
        self._header_timer = None
        if not self._has_request:
            self.transport.abort()

    def _await_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.write_seconds, self._reader_is_late, waiting)

    def _reader_is_late(self, waited_bytes: int) -> None:
        """Drop a client that took nothing in the time; one that reads slowly may go on."""
        if self.transport.get_write_buffer_size() >= waited_bytes:
            self.transport.abort()
        else:
            self._await_reader()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest; False if all others are at work."""
        others = (cast("BoundedConnection", one) for one in self.connections if one is not self)
        waiting = [one for one in others if not one._is_at_work]
        if not waiting:
            return False

        longest = min(waiting, key=lambda one: one._waiting_since)
        # Not when its transport reports it: more connections may come before
        self.connections.discard(longest)
        longest.transport.abort()
        return True


def bounded(
    *,
    header_seconds: float,
    write_seconds: float,
    most: int,
    refusal: Callable[[Scope], Response | None],
) -> type[BoundedConnection]:
    """The class of connections with these limits, which uvicorn creates itself."""
    limits = {
        "header_seconds": header_seconds,
        "write_seconds": write_seconds,
        "most": most,
        "refusal": staticmethod(refusal),
    }
    return type("Connection", (BoundedConnection,), limits)
