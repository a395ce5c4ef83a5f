"""Rewards for every route, within limits and deadlines. They are logged before they are sent."""

import asyncio
import contextlib
import json
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TypeVar

from starlette.requests import Request as HttpRequest
from starlette.types import Scope

from worldpm.errors import DataError, NotFiniteError
from worldpm.model.checkpoint import Activation
from worldpm.scoring.confidence import Confidence, Settings
from worldpm.scoring.scorer import Request
from worldpm.serving.backends import (
    CUT_TO_MODEL_LIMIT,
    Backend,
    BackendReply,
    Text,
    UnavailableError,
)
from worldpm.serving.batcher import (
    MEMORY,
    BusyError,
    ExpiredError,
    TooLargeError,
    WorkerLostError,
)
from worldpm.serving.decision_log import DecisionLog
from worldpm.serving.decisions import (
    ConversationInputs,
    Decision,
    IdInputs,
    Inputs,
    TextInputs,
)
from worldpm.serving.prometheus import Metrics
from worldpm.serving.routing import RoutingRules
from worldpm.storage.json_files import Json

Result = TypeVar("Result")
Listener = Callable[[Sequence[BackendReply], Sequence[Inputs]], None]
RELEASE = version("worldpm")
TIMEOUT_HEADER = "x-timeout-seconds"
KEY_NAME = "key_name"
"""Key of the connection's state that holds the name of the request's API key."""
REQUEST_ID = "request_id"
"""Key of the connection's state that holds the id of the request."""
REPLY_ID = "reply_id"
"""Key of the connection's state that holds the id of a reply with rewards."""
BODY_BYTES = "body_bytes"
"""Key of the connection's state that holds the number of bytes of the decompressed body."""
COMING = "coming"
"""Key of the connection's state that is set while the request counts as `Service.coming`."""
COMING_SECONDS = 0.1
PARSED = "parsed"
"""Key of the connection's state that holds a function, which a route calls once it has the body."""
ARRIVED = "arrived"
"""Key of the connection's state that holds the time of the complete body, on the monotonic
clock."""
ERROR_KIND = "error_kind"
"""Key of the connection's state that holds the kind of the error of the reply."""

OVERLOADED = "Overloaded"
"""Kind of the error of a request that a full server refuses."""


class RefusedError(Exception):
    """The HTTP error that a request gets instead of rewards."""

    def __init__(
        self,
        status: int | None,
        message: str,
        *,
        kind: str,
        param: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        """Without a status, the reply has the client's status for invalid bodies. `close` ends the
        connection, because the body was not read."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.retry_after = retry_after
        self.close = close


class HungUpError(Exception):
    """The client closed the connection, so no reply is sent."""


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request, and of all requests at once."""

    body_bytes: int = 4 * 2**20
    inputs: int = 256
    """Number of responses, or of texts, in one request."""
    values: int = 2**20
    """Number of elements of all lists and objects of a body."""
    requests: int = 512
    """Number of open requests at once."""
    seconds: float = 60.0
    """Deadline, unless the request sets an earlier one."""
    body_seconds: float = 30.0
    """Time in which a body must arrive."""
    queue_wait: float = 0.0
    """Seconds that a request waits if the server is full; 0 rejects it immediately."""


@dataclass(frozen=True)
class Identity:
    """The model behind the server."""

    name: str
    """The model's name in requests and replies."""
    sha256: str
    """Hash of the weights."""
    template: str
    """Hash of the chat template."""
    max_length: int
    """Largest number of tokens of prompt and response."""
    activation: Activation = "sigmoid"
    """What vLLM makes of this model's rewards unless a request chooses."""
    dtype: str | None = None
    """Compute type, for instance `float32`; None if the model is upstream."""
    row_tokens: int | None = None
    """Number of tokens of a row of the model; None if the model is upstream."""
    also: tuple[str, ...] = ()
    """Other names that clients may use, for instance the model's path, which verl uses."""
    any_name: bool = False
    """Whether requests may use any name, for clients with fixed names."""


@dataclass(frozen=True)
class ApiKey:
    """An API key and the preference settings of its owner."""

    key: str
    settings: Settings
    """Settings of requests that have none."""


@dataclass
class Service:
    """One model behind every route."""

    backend: Backend
    identity: Identity
    limits: RequestLimits = field(default_factory=RequestLimits)
    confidence: Confidence = field(default_factory=Confidence)
    metrics: Metrics = field(default_factory=Metrics)
    decisions: DecisionLog | None = None
    """None if decisions are not logged."""
    rules: RoutingRules | None = None
    """Rules of `/v1/route`; None if the route is off."""
    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """API keys by name; empty if the server needs no key."""
    listeners: list[Listener] = field(default_factory=list)
    """Called with the replies and inputs of every request, for instance to watch for drift."""
    hosts: frozenset[str] | None = None
    """Accepted host names, in lower case; None accepts all."""
    started: bool = False
    """Whether requests are accepted."""
    open_requests: int = 0
    """Number of open requests."""
    coming: int = 0
    """Number of accepted requests that are not parsed yet."""
    tokens_per_byte: float = 0.0
    """Average number of computed tokens per byte of a body; 0 before the first reply."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted and can be answered."""
        can_log = self.decisions is None or self.decisions.can_write
        return self.started and can_log and self.backend.engine.can_work

    def computed(self, tokens: int, *, body_bytes: int) -> None:
        """Count the tokens that the model computed for a body."""
        ratio = tokens / body_bytes
        if self.tokens_per_byte:
            ratio = MEMORY * self.tokens_per_byte + (1 - MEMORY) * ratio
        self.tokens_per_byte = ratio

    def expect(self, scope: Scope) -> None:
        """Count an accepted request as coming until `parsed`, or for a short time.

        Many requests arrive before the first of them is parsed, and all would see the same room in
        the queue.
        """
        self.coming += 1
        scope.setdefault("state", {})[COMING] = True
        # A client that sends its body slowly must not exclude others
        asyncio.get_running_loop().call_later(COMING_SECONDS, self.parsed, scope)

    def parsed(self, scope: Scope) -> None:
        """End `expect`; a second call does nothing."""
        if scope["state"].pop(COMING, False):
            self.coming -= 1

    def of(self, http: HttpRequest, kind: str) -> "Call":
        """The call of one HTTP request. `kind` is the prefix of the reply's id."""
        call = Call(self, http, f"{kind}-{secrets.token_hex(8)}")
        state = http.scope.setdefault("state", {})
        state[REPLY_ID] = call.reply_id
        call.started = state.get(ARRIVED, call.started)
        self.parsed(http.scope)
        if PARSED in state:
            state[PARSED]()
        return call

    def check_model(self, name: str | None) -> None:
        """Reject a request that names another model.

        Raises:
            RefusedError: 404, with vLLM's message.
        """
        if name is None or self.identity.any_name:
            return
        if name not in (self.identity.name, *self.identity.also):
            # The reply contains the name, which must therefore be encodable
            check_text(name)
            raise RefusedError(404, f"The model `{name}` does not exist.", kind="NotFoundError")


@dataclass
class Call:
    """One HTTP request, from its parsed body to its rewards."""

    service: Service
    http: HttpRequest
    reply_id: str
    """Id of the reply and its decisions."""
    queues: Callable[[Sequence[float]], list[str]] | None = None
    """Gives the queue of each response from the rewards; None without rules."""
    settings: Json = field(default_factory=dict)
    """Settings for the decision log: preferences, rules, or the cut."""
    started: float = field(default_factory=time.monotonic)
    """Start of the call on the monotonic clock."""

    @property
    def key_name(self) -> str | None:
        """The name of the request's API key; None if the server needs no key."""
        # `Admission` sets it
        name: str | None = self.http.scope.get("state", {}).get(KEY_NAME)
        return name

    async def conversations(
        self, requests: Sequence[Request], *, cut_to: int | None = None
    ) -> list[BackendReply]:
        """Rewards of conversations. Long inputs are handled as in `Backend.conversations`.

        Raises:
            RefusedError: If limits, queue, deadline or model reject the request.
            HungUpError: If the client closed the connection.
        """
        inputs = [
            ConversationInputs(list(request.prompt), list(request.responses), request.last)
            for request in requests
        ]
        backend, deadline = self.service.backend, self.deadline()
        self._note_cut(cut_to)

        return await self._answered(
            lambda: backend.conversations(requests, cut_to=cut_to, deadline=deadline), inputs
        )

    async def texts(
        self, texts: Sequence[Text], *, cut_to: int | None = None
    ) -> list[BackendReply]:
        """Rewards of rendered texts or token ids. Raises the errors of `conversations`."""
        inputs = [
            TextInputs(text) if isinstance(text, str) else IdInputs(list(text)) for text in texts
        ]
        backend, deadline = self.service.backend, self.deadline()
        self._note_cut(cut_to)

        return await self._answered(
            lambda: backend.texts(texts, cut_to=cut_to, deadline=deadline), inputs
        )

    def _note_cut(self, cut_to: int | None) -> None:
        """Log the number of tokens that inputs are cut to, which a replay needs."""
        if cut_to is not None:
            tokens = self.service.identity.max_length if cut_to == CUT_TO_MODEL_LIMIT else cut_to
            self.settings = {**self.settings, "cut_to": tokens}

    async def _answered(
        self, work: Callable[[], Awaitable[list[BackendReply]]], inputs: Sequence[Inputs]
    ) -> list[BackendReply]:
        """The backend's replies, counted and logged."""
        service = self.service
        count = sum(request_inputs.reward_count for request_inputs in inputs)
        if count > service.limits.inputs:
            raise RefusedError(
                422,
                f"the request has {count} inputs. Send at most {service.limits.inputs} at once.",
                kind="TooManyInputs",
            )
        # One check for all texts of all inputs
        contents = [request_inputs.content() for request_inputs in inputs]
        try:
            check_text(json.dumps(contents, ensure_ascii=False, allow_nan=False))
        except ValueError as error:
            raise RefusedError(
                422, "a number is NaN or infinite. Send finite numbers.", kind="ValidationError"
            ) from error

        replies = await self.while_connected(refusing(work()))

        service.computed(
            sum(reply.computed_tokens for reply in replies),
            body_bytes=self.http.scope["state"][BODY_BYTES],
        )
        service.metrics.answered(
            [reward for reply in replies for reward in reply.rewards],
            [tokens for reply in replies for tokens in reply.length_tokens],
        )
        for listener in service.listeners:
            listener(replies, inputs)
        # Last, and awaited, so that no reward is sent before its decision is on disk
        await self._log(replies, inputs)
        return replies

    async def while_connected(self, work: Awaitable[Result]) -> Result:
        """The result of the work, which is cancelled if the client closes the connection.

        Raises:
            HungUpError: If the client closed the connection first.
        """
        task = asyncio.ensure_future(work)
        disconnect = asyncio.ensure_future(_hung_up(self.http))

        # `wait`, unlike `gather`, raises no error of either task
        try:
            await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise HungUpError
            return task.result()
        finally:
            task.cancel()
            disconnect.cancel()

    def deadline(self) -> float:
        """The deadline on the monotonic clock. The request's header can only make it earlier.

        Raises:
            RefusedError: 422 if the header is not a positive number.
        """
        seconds = self.service.limits.seconds
        header = self.http.headers.get(TIMEOUT_HEADER)
        if header is not None:
            try:
                client_seconds = float(header)
            except ValueError:
                client_seconds = -1.0
            # `not >` instead of `<=`, so that NaN is rejected too
            if not client_seconds > 0:
                raise RefusedError(
                    422,
                    f"{TIMEOUT_HEADER}: {header!r} is not a number above 0. Send seconds.",
                    kind="ValidationError",
                )
            seconds = min(seconds, client_seconds)

        # Starts with the complete body, which has its own time limit, and includes waiting
        return self.started + seconds

    async def _log(self, replies: Sequence[BackendReply], inputs: Sequence[Inputs]) -> None:
        """Write the decisions to disk.

        Raises:
            RefusedError: 503 if this fails. The rewards are then not sent.
        """
        service, log = self.service, self.service.decisions
        if log is None:
            return

        started = time.monotonic()
        decisions = self._decisions(replies, inputs)
        try:
            # The log's thread completes the future
            await asyncio.wrap_future(log.append(decisions))
        except (sqlite3.Error, OSError) as error:
            raise RefusedError(
                503,
                f"the decision cannot be logged ({error}), so it is not sent. Try again later.",
                kind="LogFailed",
                retry_after=5,
            ) from error

        service.metrics.decisions.inc(len(decisions))
        service.metrics.stage("log", time.monotonic() - started)

    def _decisions(
        self, replies: Sequence[BackendReply], inputs: Sequence[Inputs]
    ) -> list[Decision]:
        """A decision for each reply."""
        service = self.service
        at = datetime.now(UTC).isoformat(timespec="microseconds")
        milliseconds = 1e3 * (time.monotonic() - self.started)

        return [
            Decision(
                at=at,
                reply=self.reply_id,
                request=self.http.scope["state"].get(REQUEST_ID, ""),
                route=self.http.url.path,
                key=self.key_name,
                release=RELEASE,
                model=service.identity.sha256,
                template=service.identity.template,
                temperature=service.confidence.temperature,
                calibration=service.confidence.sha256,
                settings=self.settings,
                queues=None if self.queues is None else self.queues(reply.rewards),
                inputs=request_inputs,
                rewards=reply.rewards,
                probabilities=service.confidence.over_others(reply.rewards),
                milliseconds=milliseconds,
            )
            for request_inputs, reply in zip(inputs, replies, strict=True)
        ]


async def refusing(work: Awaitable[Result]) -> Result:
    """The result of the work. Errors of the backend become HTTP errors.

    Raises:
        RefusedError: Instead of the backend's errors.
    """
    try:
        return await work
    except BusyError as error:
        raise RefusedError(429, str(error), kind=OVERLOADED, retry_after=error.seconds) from error
    # No Retry-After, because the request will never fit
    except TooLargeError as error:
        raise RefusedError(None, str(error), kind="TooManyTokens") from error
    except (UnavailableError, WorkerLostError) as error:
        raise RefusedError(503, str(error), kind="UpstreamUnavailable", retry_after=5) from error
    except ExpiredError as error:
        raise RefusedError(503, str(error), kind="DeadlineExceeded", retry_after=1) from error
    except NotFiniteError as error:
        raise RefusedError(500, str(error), kind="NotFinite") from error
    except DataError as error:
        raise RefusedError(None, str(error), kind="ValidationError") from error


async def _hung_up(http: HttpRequest) -> None:
    """Return when the client closes the connection. The body must be read before."""
    # Starlette raises RuntimeError if a closed connection is read again
    with contextlib.suppress(RuntimeError):
        while (await http.receive())["type"] != "http.disconnect":
            pass


def check_text(text: str) -> None:
    """Reject unpaired surrogates, which JSON can contain.

    Raises:
        RefusedError: 422.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(
            422,
            "a text contains an unpaired surrogate. Fix the encoding of the request.",
            kind="ValidationError",
        ) from error
