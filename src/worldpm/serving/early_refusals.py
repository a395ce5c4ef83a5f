"""Refusals of an overloaded server, before the application gets the request.

At ten times the load, nine of ten requests are refused. A cheap refusal leaves more time for the
requests that are answered.
"""

import time

from starlette.responses import Response
from starlette.types import Scope

from worldpm.serving.access_log import AccessLog, Outcome
from worldpm.serving.error_replies import error_reply
from worldpm.serving.request_heads import (
    add_request_id,
    check_host,
    declared_bytes,
    is_always_taken,
    overload,
    recognise,
    reply_headers,
)
from worldpm.serving.service import RefusedError, Service


class EarlyRefusals:
    """Gives the reply to a request that the server cannot take now."""

    def __init__(self, service: Service, *, cors: bool) -> None:
        """`cors` is whether browsers may send requests; their refusals need more headers."""
        self._service, self._cors = service, cors
        self._log = AccessLog(service.metrics)

    def __call__(self, scope: Scope) -> Response | None:
        """The reply; None if the application must answer."""
        is_other = scope["method"] != "POST" or is_always_taken(scope["method"], scope["path"])
        if is_other or (self._cors and any(name == b"origin" for name, _ in scope["headers"])):
            return None
        declared = declared_bytes(scope)
        # The application reads the body, and then knows its size
        if declared is None:
            return None
        error = overload(self._service, scope, declared)
        if error is None:
            self._service.expect(scope)
            return None

        outcome = Outcome(time.monotonic(), error.status or 429)
        add_request_id(scope)
        try:
            check_host(scope, self._service)
            recognise(scope, self._service)
        except RefusedError:
            return None

        reply = error_reply(scope, error)
        reply.raw_headers.extend(reply_headers(scope))
        outcome.reply_bytes = len(reply.body)
        self._log.note(scope, outcome)
        return reply
