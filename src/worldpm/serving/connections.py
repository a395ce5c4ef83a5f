"""HTTP connections with time limits, and a limit on their number.

uvicorn closes idle connections, but waits forever for a client that sends half a header or never
reads its reply.
"""

import asyncio
import time
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 36\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    b"too many connections; try again soon"
)
"""Reply to a connection beyond the limit, where all others are at work."""


class BoundedConnection(H11Protocol):
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

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._waiting_since = time.monotonic()

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
        super().data_received(data)
        if self._has_request:
            self._header_arrived()

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

    def _await_header(self) -> None:
        self._header_timer = self.loop.call_later(self.header_seconds, self._header_is_late)

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


def bounded(*, header_seconds: float, write_seconds: float, most: int) -> type[BoundedConnection]:
    """The class of connections with these limits, which uvicorn creates itself."""
    limits = {"header_seconds": header_seconds, "write_seconds": write_seconds, "most": most}
    return type("Connection", (BoundedConnection,), limits)
