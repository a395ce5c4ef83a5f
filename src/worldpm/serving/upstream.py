"""Rewards from a vLLM server on another machine, with our routes, page, limits and log in front.

Conversations are sent as messages, so vLLM applies its chat template. The template must end a
conversation with the token at which the reward is read, like the templates of our checkpoints.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, TypeVar

import httpx
import msgspec

from worldpm.errors import ConfigError, DataError, NotFiniteError
from worldpm.scoring.scorer import Request
from worldpm.serving.backends import BackendReply, Text, UnavailableError
from worldpm.serving.batcher import BusyError, ExpiredError
from worldpm.serving.service import Identity
from worldpm.storage.json_files import Plain

Result = TypeVar("Result")
Reply = TypeVar("Reply")
CALLS_AT_ONCE = 64
"""Number of concurrent calls, which vLLM batches."""
IDENTIFY_SECONDS = 10
"""Time limit for the upstream server to name its model."""


class _Model(msgspec.Struct, frozen=True):
    """An entry of `/v1/models`."""

    id: str
    max_model_len: int | None = None


class _ModelsReply(msgspec.Struct, frozen=True):
    """Reply of `/v1/models`."""

    data: list[_Model]


class _Classes(msgspec.Struct, frozen=True):
    """The part of `/classify`'s reply for one input."""

    probs: list[float | None]


class _Usage(msgspec.Struct, frozen=True):
    """Number of tokens of the input."""

    prompt_tokens: int


class _ClassifyReply(msgspec.Struct, frozen=True):
    """Reply of `/classify`."""

    data: list[_Classes]
    usage: _Usage


class _TokenizeReply(msgspec.Struct, frozen=True):
    """Reply of `/tokenize`."""

    count: int


class Classified(NamedTuple):
    """Reply of vLLM's `/classify` to one input."""

    reward: float
    """Logits."""
    tokens: int
    """Number of tokens that the model read, after any cut."""


class ResponseReply(NamedTuple):
    """Reward and lengths of one response."""

    reward: float
    length_tokens: int
    truncated: bool
    sequence_tokens: int


def identify(url: str) -> Identity:
    """The model of an upstream server. The hash of its weights is unknown.

    Raises:
        ConfigError: If no vLLM answers at the URL.
    """
    try:
        reply = httpx.get(f"{url}/v1/models", timeout=IDENTIFY_SECONDS).raise_for_status()
        # The first entry: a pooling server has one model, perhaps followed by adapters
        model = msgspec.json.decode(reply.content, type=_ModelsReply).data[0]
        return Identity(model.id, f"upstream {url} {model.id}", None, model.max_model_len)
    except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError, IndexError) as error:
        raise ConfigError(
            f"--upstream {url}: no vLLM answers at /v1/models ({error or type(error).__name__})."
            " Check the URL."
        ) from error


class UpstreamBackend:
    """Calls `/classify` and `/tokenize` once for each response.

    With a cut, it also calls `/tokenize` for the whole conversation.
    """

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        # One client, so that connections are reused
        self._client = httpx.AsyncClient(base_url=url)
        self._free = asyncio.Semaphore(CALLS_AT_ONCE)

    async def conversations(
        self, requests: Sequence[Request], *, cut_to: int | None, deadline: float
    ) -> list[BackendReply]:
        """See `Backend.conversations`."""
        calls = [self._conversation(request, cut_to=cut_to) for request in requests]
        return await _together(calls, deadline)

    async def texts(
        self, texts: Sequence[Text], *, cut_to: int | None, deadline: float
    ) -> list[BackendReply]:
        """See `Backend.texts`."""
        return await _together([self._text(text, cut_to=cut_to) for text in texts], deadline)

    def seconds_until_room(self, tokens: float = 0.0) -> int | None:
        """See `Backend.seconds_until_room`. Only the upstream server knows its queue."""
        return None

    async def run(self) -> None:
        """See `Backend.run`. The upstream server computes, so this only waits."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._client.aclose()

    async def _text(self, text: Text, *, cut_to: int | None) -> BackendReply:
        # A tuple or array of ids is a list in JSON
        content = text if isinstance(text, str) else list(text)
        reward, tokens = await self._classify({"input": content}, cut_to=cut_to)
        if cut_to is None:
            return BackendReply([reward], [tokens], [False], [tokens], tokens)

        uncut = await self._count({"prompt": text}) if isinstance(text, str) else len(text)
        return BackendReply([reward], [tokens], [tokens < uncut], [tokens], tokens)

    async def _conversation(self, request: Request, *, cut_to: int | None) -> BackendReply:
        prompt = [message.turn() for message in request.prompt]
        # Compute equal responses once, so that they tie exactly
        distinct = list(dict.fromkeys(request.responses))
        calls = [self._response(prompt, response, cut_to=cut_to) for response in distinct]
        reply_of = dict(zip(distinct, await _together(calls), strict=True))

        replies = [reply_of[response] for response in request.responses]
        return BackendReply(
            rewards=[reply.reward for reply in replies],
            length_tokens=[reply.length_tokens for reply in replies],
            truncated=[reply.truncated for reply in replies],
            sequence_tokens=[reply.sequence_tokens for reply in replies],
            computed_tokens=sum(reply.sequence_tokens for reply in replies),
        )

    async def _response(
        self, prompt: Sequence[Plain], response: str, *, cut_to: int | None
    ) -> ResponseReply:
        """The reply for one response to a prompt. All calls run concurrently."""
        messages = [*prompt, {"role": "assistant", "content": response}]
        classify = asyncio.ensure_future(self._classify({"messages": messages}, cut_to=cut_to))
        length = asyncio.ensure_future(
            self._count({"prompt": response, "add_special_tokens": False})
        )
        uncut: asyncio.Future[int] | None = None
        if cut_to is not None:
            body = {"messages": messages, "add_generation_prompt": False}
            uncut = asyncio.ensure_future(self._count(body))

        await _finish([classify, length, *([uncut] if uncut is not None else [])])

        reward, tokens = classify.result()
        truncated = uncut is not None and tokens < uncut.result()
        return ResponseReply(reward, length.result(), truncated, tokens)

    async def _classify(self, body: Plain, *, cut_to: int | None) -> Classified:
        """The raw reward of one input."""
        cut = {} if cut_to is None else {"truncate_prompt_tokens": cut_to}
        body = {**body, "use_activation": False, **cut}
        reply = await self._post("/classify", body, _ClassifyReply)

        reward = reply.data[0].probs[0]
        # JSON has no NaN, so vLLM writes null
        if reward is None or not math.isfinite(reward):
            raise NotFiniteError(f"upstream: gave {reward!r} as a reward. Check its model.")
        return Classified(reward, reply.usage.prompt_tokens)

    async def _count(self, body: Plain) -> int:
        """The number of tokens of a text, or of a conversation, without a cut."""
        return (await self._post("/tokenize", body, _TokenizeReply)).count

    async def _post(self, route: str, body: Plain, reply_type: type[Reply]) -> Reply:
        """Call a route, and parse its reply.

        Raises:
            UnavailableError: If the server does not answer, fails, or replies in another form.
            BusyError: If the server is overloaded.
            DataError: If the server rejects the body.
        """
        try:
            async with self._free:
                # No timeout, because the caller has a deadline
                reply = await self._client.post(
                    route, json={"model": self._model, **body}, timeout=None
                )
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"upstream: does not answer ({type(error).__name__}). Try again later."
            ) from error

        if reply.status_code in (429, 503):
            # A date in the header is ignored
            seconds = reply.headers.get("retry-after", "")
            raise BusyError(int(seconds) if seconds.isdigit() else 1)
        if reply.status_code >= 500:
            raise UnavailableError(f"upstream: answered {reply.status_code}: {reply.text[:300]}")
        if reply.status_code != 200:
            raise DataError("upstream", f"answered {reply.status_code}: {reply.text[:300]}")
        try:
            return msgspec.json.decode(reply.content, type=reply_type)
        except msgspec.DecodeError as error:
            raise UnavailableError(
                f"upstream: its reply has another form ({error}). Check that it is vLLM."
            ) from error


async def _together(
    calls: Sequence[Awaitable[Result]], deadline: float | None = None
) -> list[Result]:
    """All results, in order. Raises the errors of `_finish`."""
    # Start all calls before waiting for any
    tasks = [asyncio.ensure_future(call) for call in calls]
    await _finish(tasks, deadline)
    return [task.result() for task in tasks]


async def _finish(tasks: Sequence[asyncio.Future[Any]], deadline: float | None = None) -> None:
    """Wait for all tasks. The first error, or the deadline, cancels the others.

    Raises:
        ExpiredError: If the deadline passed.
    """
    try:
        async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
            await asyncio.gather(*tasks)
    except TimeoutError:
        raise ExpiredError from None
    finally:
        for task in tasks:
            task.cancel()
