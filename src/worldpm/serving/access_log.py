"""Log and metrics of finished requests."""

import asyncio
import logging
import time
from dataclasses import dataclass

from starlette.types import Scope

from worldpm.serving.prometheus import Metrics
from worldpm.serving.service import ERROR_KIND, KEY_NAME, OVERLOADED, REQUEST_ID

logger = logging.getLogger("worldpm.access")

EVERY_SECONDS = 1.0
"""An overloaded server logs one refused request in this time, and only counts the others. At ten
times the load, a line for each would cost more than all other work on it."""


@dataclass
class Outcome:
    """Fields of a request that the log needs."""

    started: float
    """Seconds on the monotonic clock."""
    # Stays 500 if the application fails before it sends a status
    status: int = 500
    is_started: bool = False
    """Whether the reply has started."""
    body_bytes: int = 0
    reply_bytes: int = 0


class AccessLog:
    """Logs and counts finished requests."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._unlogged: int | None = None
        """Number of requests refused since the last line; None if the next one gets a line."""

    def note(self, scope: Scope, outcome: Outcome) -> None:
        """Log and count a request."""
        seconds = time.monotonic() - outcome.started
        kind = scope["state"].get(ERROR_KIND)
        # The route's pattern, not the path, because a metric must have few labels
        route = scope["route"].path if "route" in scope else "other"
        self._metrics.requests.labels(route, outcome.status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if kind is not None:
            self._metrics.errors.labels(kind).inc()

        if kind != OVERLOADED or self._is_logged():
            _log(scope, outcome, seconds)

    def _is_logged(self) -> bool:
        """Whether a refused request gets its own line. Count it if not."""
        if self._unlogged is None:
            self._unlogged = 0
            asyncio.get_running_loop().call_later(EVERY_SECONDS, self._log_others)
            return True
        self._unlogged += 1
        return False

    def _log_others(self) -> None:
        """Log the number of refused requests that got no line."""
        count, self._unlogged = self._unlogged, None
        if count:
            fields = {"http.response.status_code": 429, "error.type": OVERLOADED}
            logger.info("%d more requests refused: overloaded", count, extra=fields)


def _log(scope: Scope, outcome: Outcome, seconds: float) -> None:
    state = scope["state"]
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
