"""What every route asks: rewards within limits and deadlines, logged before they leave, counted."""

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request as HttpRequest

from worldpm.errors import DataError, NotFiniteError
from worldpm.scoring.confidence import Confidence
from worldpm.scoring.scorer import Request
from worldpm.serving.backends import AS_MADE, Answer, Engine, Text, UnavailableError
from worldpm.serving.batcher import BusyError, ExpiredError, TooLargeError
from worldpm.serving.decision_log import Decision, DecisionLog
from worldpm.serving.prometheus import Metrics

Json = dict[str, Any]
Result = TypeVar("Result")
TIMEOUT_HEADER = "x-timeout-seconds"


class RefusedError(Exception):
    """A request that gets no rewards, and the HTTP status that says why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.retry_after = (
            status,
            message,
            kind,
            param,
            retry_after,
        )


class HungUpError(Exception):
    """The client left; nobody reads an answer."""


class RequestLimits(NamedTuple):
    """What one request may ask for."""

    body_bytes: int = 4 * 2**20
    inputs: int = 256
    """Responses, or texts, of one request."""
    requests: int = 512
    """Requests that are in the server at once."""
    seconds: float = 60.0
    """Deadline, unless the request sets an earlier one."""


class Identity(NamedTuple):
    """Which model answers."""

    name: str
    sha256: str
    template: str | None
    max_length: int | None
    dtype: str | None = None
    row_tokens: int | None = None
    """Tokens of a row of the model."""
    also: tuple[str, ...] = ()
    """Other names that clients may say: verl names a model by its path."""


@dataclass
class Service:
    """One model behind every route."""

    engine: Engine
    identity: Identity
    limits: RequestLimits = field(default_factory=RequestLimits)
    confidence: Confidence = field(default_factory=Confidence)
    metrics: Metrics = field(default_factory=Metrics)
    decisions: DecisionLog | None = None
    keep_inputs: bool = True
    """Whether the decision log holds inputs, or only their hashes."""
    listeners: list[Callable[[Sequence[Answer], Sequence[Json]], None]] = field(
        default_factory=list
    )
    """Told of every answer and its inputs, for what watches them."""
    ready: bool = False
    inside: int = 0

    def of(self, http: HttpRequest) -> "Call":
        """The call of one HTTP request."""
        return Call(self, http)

    def check_model(self, name: str | None) -> None:
        """A client that names another model is told so.

        Raises:
            RefusedError: 404, in vLLM's words.
        """
        if name is not None and name not in (self.identity.name, *self.identity.also):
            check_text(name)
            raise RefusedError(404, f"The model `{name}` does not exist.", kind="NotFoundError")


@dataclass
class Call:
    """One HTTP request on its way through."""

    service: Service
    http: HttpRequest
    settings: Json = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def client(self) -> str | None:
        """The name of the API key that came, where there are keys."""
        name: str | None = self.http.scope.get("state", {}).get("client")
        return name

    async def conversations(
        self, requests: Sequence[Request], *, cut_to: int | None = None
    ) -> list[Answer]:
        """Answers to conversations; what is too long is refused, or cut as `Engine` has it.

        Raises:
            RefusedError: If the limits, the queue, the deadline or the model say no.
            HungUpError: If the client left.
        """
        inputs = [
            {
                "prompt": [asdict(message) for message in request.prompt],
                "responses": list(request.responses),
            }
            for request in requests
        ]
        engine, deadline = self.service.engine, self.deadline()
        self._note_cut(cut_to)
        return await self._answered(
            lambda: engine.conversations(requests, cut_to=cut_to, deadline=deadline), inputs
        )

    async def texts(self, texts: Sequence[Text], *, cut_to: int | None = None) -> list[Answer]:
        """Answers to rendered texts or token ids; raises as `conversations` does."""
        inputs: list[Json] = [
            {"text": text} if isinstance(text, str) else {"ids": list(text)} for text in texts
        ]
        engine, deadline = self.service.engine, self.deadline()
        self._note_cut(cut_to)
        return await self._answered(
            lambda: engine.texts(texts, cut_to=cut_to, deadline=deadline), inputs
        )

    def _note_cut(self, cut_to: int | None) -> None:
        """To repeat a decision one must know what its input was cut to, in tokens."""
        if cut_to is not None:
            self.settings = {
                **self.settings,
                "cut_to": self.service.identity.max_length if cut_to == AS_MADE else cut_to,
            }

    async def _answered(
        self, work: Callable[[], Awaitable[list[Answer]]], inputs: Sequence[Json]
    ) -> list[Answer]:
        asked = sum(len(one.get("responses", (0,))) for one in inputs)
        if asked > self.service.limits.inputs:
            raise RefusedError(
                422,
                f"{asked} inputs; at most {self.service.limits.inputs} fit into one request",
                kind="TooManyInputs",
            )
        check_text(json.dumps(inputs, ensure_ascii=False))
        answers = await self.while_connected(refusing(work()))
        self.service.metrics.answered(
            [r for one in answers for r in one.rewards],
            [n for one in answers for n in one.length_tokens],
        )
        for listener in self.service.listeners:
            listener(answers, inputs)
        await self._log(answers, inputs)
        return answers

    async def while_connected(self, work: Awaitable[Result]) -> Result:
        """The result, unless the client closes the connection first: then the work is cancelled."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(self.http))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise HungUpError
            return task.result()
        finally:
            for one in (task, gone):
                one.cancel()

    def deadline(self) -> float:
        """On the monotonic clock; the header may bring it nearer, never put it off."""
        seconds = self.service.limits.seconds
        if (asked := self.http.headers.get(TIMEOUT_HEADER)) is not None:
            try:
                wanted = float(asked)
            except ValueError:
                wanted = -1.0
            if not wanted > 0:
                raise RefusedError(
                    422,
                    f"{TIMEOUT_HEADER}: {asked!r} is not a number of seconds above 0",
                    kind="ValidationError",
                )
            seconds = min(seconds, wanted)
        return self.started + seconds

    async def _log(self, answers: Sequence[Answer], inputs: Sequence[Json]) -> None:
        """Write the decisions; without that there is no answer."""
        service, log = self.service, self.service.decisions
        if log is None:
            return
        started = time.monotonic()
        at = datetime.now(UTC).isoformat(timespec="microseconds")
        known: Json = {
            "at": at,
            "route": self.http.url.path,
            "client": self.client,
            "settings": self.settings,
            "model": service.identity.sha256,
            "template": service.identity.template,
            "milliseconds": 1e3 * (started - self.started),
        }
        decisions = [
            Decision(
                inputs=given if service.keep_inputs else _hashed(given),
                rewards=answer.rewards,
                probabilities=service.confidence.over_others(answer.rewards),
                **known,
            )
            for given, answer in zip(inputs, answers, strict=True)
        ]
        try:
            await asyncio.wrap_future(log.append(decisions))
        except sqlite3.Error as error:
            raise RefusedError(
                503,
                f"the decision cannot be logged ({error}), so it is not given",
                kind="LogFailed",
                retry_after=5,
            ) from error
        service.metrics.decisions.inc(len(decisions))
        service.metrics.stage("log", time.monotonic() - started)


async def refusing(work: Awaitable[Result]) -> Result:
    """What the engine says no to, as HTTP says it."""
    try:
        return await work
    except BusyError as error:
        raise RefusedError(429, str(error), kind="Overloaded", retry_after=error.seconds) from error
    except TooLargeError as error:
        raise RefusedError(422, str(error), kind="TooManyTokens") from error
    except UnavailableError as error:
        raise RefusedError(503, str(error), kind="UpstreamUnavailable", retry_after=5) from error
    except ExpiredError as error:
        raise RefusedError(503, str(error), kind="DeadlineExceeded", retry_after=1) from error
    except NotFiniteError as error:
        raise RefusedError(500, str(error), kind="NotFinite") from error
    except DataError as error:
        raise RefusedError(422, str(error), kind="ValidationError") from error


async def _hung_up(http: HttpRequest) -> None:
    """Returns when the client closes the connection; the body was read before."""
    with contextlib.suppress(RuntimeError):
        while (await http.receive())["type"] != "http.disconnect":
            pass


def check_text(text: str) -> None:
    """JSON can write what is no character.

    Raises:
        RefusedError: 422, if the text holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(
            422,
            "a text holds half of a surrogate pair, which is no character",
            kind="ValidationError",
        ) from error


def _hashed(inputs: Json) -> Json:
    return {"sha256": hashlib.sha256(json.dumps(inputs, ensure_ascii=False).encode()).hexdigest()}
