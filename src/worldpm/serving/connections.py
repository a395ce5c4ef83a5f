"""HTTP connections with limits of time, size and number.

uvicorn closes idle connections. But it waits forever for a client that sends half a header or never
reads its reply, and its fast parser accepts headers of any size.
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
"""Reply to a connection over the limit, if all other connections are busy."""


HEADER_BYTES = 2**16
"""Largest number of bytes of a request's headers and trailers."""
MOST_PIPELINED = 64
"""Number of requests that a client may send on one connection before the first is answered."""


class BoundedConnection(HttpToolsProtocol):
    """A connection with time limits for headers and for reading replies.

    If there are more than `most` connections, a new one replaces the one that has waited longest
    for a complete request. If all are busy, the new one is refused.
    """

    header_seconds = 10.0
    """Time limit for headers, from the first byte of a request, or from the start of the
    connection."""
    write_seconds = 30.0
    """Time in which a client must read some more of its reply."""
    most = 1024
    """Largest number of connections at once."""
    refusal: Callable[[Scope], Response | None] = staticmethod(lambda _: None)
    """Gives the reply to a refused request, which the application does not get; otherwise None."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._waiting_since = time.monotonic()
        self._header_bytes = 0
        self._has_headers = False
        self._is_reading = False
        """Whether the start of a request has arrived, but not its end."""

    @property
    def _has_request(self) -> bool:
        """Whether the headers of a request have arrived, and it is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_at_work(self) -> bool:
        """Whether a complete request has arrived, and it is not answered yet."""
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
        """Cancel the connection's timers."""
        super().connection_lost(exc)
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Read more of a request, and start or cancel timers."""
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
        """Begin a request, unless too many are waiting."""
        if len(self.pipeline) > MOST_PIPELINED:
            raise ValueError("too many requests on one connection")
        super().on_message_begin()
        self._header_bytes, self._has_headers, self._is_reading = 0, False, True

    def on_url(self, url: bytes) -> None:
        """Add a part of the address."""
        self._count_header(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Drop trailers, because a proxy in front may not have checked them."""
        self._count_header(name + value)
        if not self._has_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer the request, unless it will be read again."""
        self._has_headers = True
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request, unless it will be read again."""
        if not self.parser.should_upgrade():
            self._is_reading = False
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._waiting_since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Start the time limit for reading the reply."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """Cancel the time limit, because the client reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and drop what its client has not read."""
        super().timeout_keep_alive_handler()
        # `close` would wait until the client has read the rest
        self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Let the application answer a request, unless `refusal` refuses it."""
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
            httptools.HttpParserError: If the data is not HTTP, or exceeds a limit.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def _without_upgrade(self) -> bytes:
        """The head of a request that asks for another protocol, without this upgrade.

        Java's client asks for HTTP/2 first. The parser would then not read the request's body.
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
        """Drop a client that read nothing in the time; a client that reads slowly may continue."""
        if self.transport.get_write_buffer_size() >= waited_bytes:
            self.transport.abort()
        else:
            self._await_reader()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest; False if all others are busy."""
        others = (cast("BoundedConnection", other) for other in self.connections)
        waiting = [other for other in others if other is not self and not other._is_at_work]
        if not waiting:
            return False

        longest = min(waiting, key=lambda connection: connection._waiting_since)
        # Now, not when the transport reports it, because more connections may arrive before that
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
    """The class of connections with these limits, for uvicorn, which creates the instances."""
    limits = {
        "header_seconds": header_seconds,
        "write_seconds": write_seconds,
        "most": most,
        "refusal": staticmethod(refusal),
    }
    return type("Connection", (BoundedConnection,), limits)
