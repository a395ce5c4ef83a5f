"""Rewards from vLLM servers on other machines, with our routes, page, limits and log in front.

Conversations and texts become tokens here, by the tokenizer and template of the same checkpoint.
vLLM gets token ids only, so its rewards are those of a local server, up to rounding.
"""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field

import httpx
import msgspec

from worldpm.errors import ConfigError, NotFiniteError
from worldpm.model.encoder import EncodedGroup
from worldpm.serving.backends import UnavailableError, before
from worldpm.serving.batcher import BusyError, TooLargeError

IDENTIFY_SECONDS = 10
"""Time limit for a server to name its model."""
CONNECT_SECONDS = 5
"""Time limit for a connection."""
SECONDS_BETWEEN_CHECKS, CHECK_SECONDS = 5.0, 3.0
"""Time between two checks of a server's health, and the time limit of a check. A call to a server
that does not answer ends with its first failed check."""
VISIBLE = re.compile(r"[\x21-\x7e]+")
"""Characters that a header can contain."""
JSON = {"Content-Type": "application/json"}
"""Header of the calls."""
PROBE_TOLERANCE = 0.05
"""Servers whose rewards of the same tokens differ by more than this serve different models."""


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


class _ClassifyReply(msgspec.Struct, frozen=True):
    """Reply of `/classify`."""

    data: list[_Classes]


@dataclass
class _Server:
    """One vLLM server."""

    name: str
    """Its name for clients, who must not see its address."""
    model: str
    """Name of its model."""
    client: httpx.AsyncClient
    calls: int = 0
    """Number of open calls."""
    down: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the server fails."""

    @property
    def healthy(self) -> bool:
        """Whether the server answered its last check or call."""
        return not self.down.is_set()


@dataclass
class UpstreamEngine:
    """vLLM servers with the same model. A request is one call to the least busy healthy server; if
    this server is full or fails, the others are tried."""

    servers: list[_Server]
    most_tokens: int
    """Largest number of tokens of a request, with the prompt repeated for each response."""
    queue_wait: float = 0.0
    """Seconds that a request waits if all servers are full."""
    _next: int = field(default=0, init=False)
    """The server that comes first among equally busy ones."""

    @classmethod
    def of(
        cls,
        urls: Sequence[str],
        *,
        key: str | None,
        max_length: int,
        probe: Sequence[int],
        most_tokens: int,
        queue_wait: float = 0.0,
    ) -> "UpstreamEngine":
        """The servers at these URLs, with their API key. They must take `max_length` tokens, and
        give equal rewards to the `probe`.

        Raises:
            ConfigError: If a URL or the key is not valid, or a server does not answer, takes
                shorter inputs, or serves another model than the first.
        """
        if key is not None and not VISIBLE.fullmatch(key):
            raise ConfigError(
                "--upstream-key: has characters that a header cannot contain. Write the key alone"
                " into the file."
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        servers, rewards = [], []
        for number, url in enumerate(urls, start=1):
            _check_url(url)
            with httpx.Client(base_url=url, headers=headers, timeout=IDENTIFY_SECONDS) as client:
                model = _identify(client, url, max_length)
                rewards.append(_probe(client, url, model, probe))
            # One client for each server, so that connections are reused; the caller has a deadline
            timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
            asynchronous = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout)
            servers.append(_Server(f"upstream server {number}", model, asynchronous))

        for url, reward in zip(urls, rewards, strict=True):
            if abs(reward - rewards[0]) > PROBE_TOLERANCE:
                raise ConfigError(
                    f"--upstream {url}: gives {reward:.4f} where {urls[0]} gives {rewards[0]:.4f}."
                    " Serve the same model at all URLs."
                )
        return cls(servers, most_tokens, queue_wait)

    async def rewards(
        self, groups: Sequence[EncodedGroup], *, deadline: float
    ) -> list[list[float]]:
        """See `Engine.rewards`."""
        tokens = sum(
            len(group.prefix) + len(suffix) for group in groups for suffix in group.suffixes
        )
        if tokens > self.most_tokens:
            raise TooLargeError(
                f"the request has {tokens:,} tokens, with its prompt for each response, but at most"
                f" {self.most_tokens:,} are accepted. Send less at once."
            )
        values = iter(await before(deadline, self._when_free(groups)) if tokens else ())
        return [[next(values) for _ in group.suffixes] for group in groups]

    async def _when_free(self, groups: Sequence[EncodedGroup]) -> list[float]:
        """The rewards, after waiting for a free server if requests may wait."""
        inputs = await asyncio.to_thread(_inputs, groups)
        end = time.monotonic() + self.queue_wait
        while True:
            try:
                return await self._classify(inputs)
            except BusyError as error:
                if time.monotonic() + error.seconds > end:
                    raise
                await asyncio.sleep(error.seconds)

    def seconds_until_room(self, tokens: float = 0.0, *, coming: int = 0) -> int | None:
        """See `Engine.seconds_until_room`. Only the servers know their queues."""
        return None

    @property
    def can_work(self) -> bool:
        """Whether a server was healthy at its last check."""
        return any(server.healthy for server in self.servers)

    async def run(self) -> None:
        """Check the servers' health until cancelled."""
        try:
            while True:
                await asyncio.gather(*map(_check, self.servers))
                await asyncio.sleep(SECONDS_BETWEEN_CHECKS)
        finally:
            await asyncio.gather(*(server.client.aclose() for server in self.servers))

    async def _classify(self, inputs: list[list[int]]) -> list[float]:
        """A reward for each input, from the first server that gives them.

        Raises:
            BusyError: If a server is full, and no other answers.
            UnavailableError: If no server answers.
        """
        failures: list[str] = []
        busy: list[int] = []
        for server in self._in_order():
            server.calls += 1
            try:
                return await _call(server, inputs)
            except BusyError as error:
                busy.append(error.seconds)
            except UnavailableError as error:
                server.down.set()
                failures.append(str(error))
            finally:
                server.calls -= 1

        if busy:
            raise BusyError(min(busy))
        raise UnavailableError("; ".join(failures))

    def _in_order(self) -> list[_Server]:
        """Healthy servers first, the least busy ones first among them; in turn if equally busy."""
        start = self._next % len(self.servers)
        self._next += 1
        turned = self.servers[start:] + self.servers[:start]
        return sorted(turned, key=lambda server: (not server.healthy, server.calls))


def _check_url(url: str) -> None:
    """Check the form of a URL.

    Raises:
        ConfigError: If it has another form, or holds a password, which messages could show.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--upstream {url}: not a URL ({error}). Check it.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"--upstream {url}: not a URL of HTTP. Begin it with http://.")
    if parsed.userinfo:
        raise ConfigError("--upstream: a URL holds a password. Use --upstream-key FILE.")


def _inputs(groups: Sequence[EncodedGroup]) -> list[list[int]]:
    """The token ids of each response with its prompt."""
    return [
        [*map(int, group.prefix), *map(int, suffix)]
        for group in groups
        for suffix in group.suffixes
    ]


def _identify(client: httpx.Client, url: str, max_length: int) -> str:
    """The name of the model of a server."""
    try:
        reply = client.get("/v1/models").raise_for_status()
        # The first entry: a pooling server has one model, perhaps followed by adapters
        model = msgspec.json.decode(reply.content, type=_ModelsReply).data[0]
    except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError, IndexError) as error:
        raise ConfigError(
            f"--upstream {url}: no vLLM answers at /v1/models ({error or type(error).__name__})."
            " Check the URL, and --upstream-key."
        ) from error

    if model.max_model_len is not None and model.max_model_len < max_length:
        raise ConfigError(
            f"--upstream {url}: takes {model.max_model_len:,} tokens, but the checkpoint"
            f" {max_length:,}. Use --max-length {model.max_model_len}."
        )
    return model.id


def _probe(client: httpx.Client, url: str, model: str, probe: Sequence[int]) -> float:
    """The reward of the probe."""
    try:
        body = _body(model, [list(probe)])
        reply = client.post("/classify", content=body, headers=JSON).raise_for_status()
        (reward,) = _rewards_in(reply.content, 1)
    except (httpx.HTTPError, UnavailableError) as error:
        raise ConfigError(
            f"--upstream {url}: gives no reward at /classify ({error or type(error).__name__})."
            " Start vLLM with --runner pooling on a model with one label."
        ) from error
    return reward


def _body(model: str, inputs: list[list[int]]) -> bytes:
    """The body that asks for raw rewards of token ids."""
    return msgspec.json.encode({"model": model, "input": inputs, "use_activation": False})


def _rewards_in(content: bytes, count: int) -> list[float]:
    """The rewards in a reply of `/classify`."""
    try:
        rows = msgspec.json.decode(content, type=_ClassifyReply).data
    except msgspec.DecodeError as error:
        raise UnavailableError(
            f"its reply has another form ({error}). Check that it is vLLM."
        ) from error
    if len(rows) != count or any(len(row.probs) != 1 for row in rows):
        raise UnavailableError(
            f"gave {len(rows)} results for {count} inputs, or several numbers for one. Check that"
            " its model has one label."
        )

    rewards = []
    for row in rows:
        (reward,) = row.probs
        # JSON has no NaN, so vLLM writes null
        if reward is None or not math.isfinite(reward):
            raise NotFiniteError(f"upstream: gave {reward!r} as a reward. Check its model.")
        rewards.append(reward)
    return rewards


async def _call(server: _Server, inputs: list[list[int]]) -> list[float]:
    """The rewards of inputs from one server.

    Raises:
        UnavailableError: If the server does not answer, fails, or replies in another form.
        BusyError: If the server is overloaded.
    """
    try:
        body = await asyncio.to_thread(_body, server.model, inputs)
        reply = await _while_up(server, server.client.post("/classify", content=body, headers=JSON))
        if reply.status_code in (429, 503):
            # A date in the header is ignored
            seconds = reply.headers.get("retry-after", "")
            raise BusyError(int(seconds) if seconds.isdigit() else 1)
        # Our tokens are valid, so other refusals are faults of the server's settings
        if reply.status_code != 200:
            raise UnavailableError(f"answered {reply.status_code}: {reply.text[:300]}")
        rewards = _rewards_in(reply.content, len(inputs))
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"{server.name}: does not answer ({type(error).__name__}). Try again later."
        ) from error
    except UnavailableError as error:
        raise UnavailableError(f"{server.name}: {error}") from error
    server.down.clear()
    return rewards


async def _while_up(server: _Server, call: Awaitable[httpx.Response]) -> httpx.Response:
    """The reply of a server.

    Raises:
        UnavailableError: If the server goes down before it replies.
    """
    task = asyncio.ensure_future(call)
    was_down = server.down.is_set()
    down = asyncio.ensure_future(server.down.wait())
    try:
        # A server that was down before gets a chance, because no other was left
        await asyncio.wait([task] if was_down else [task, down], return_when="FIRST_COMPLETED")
        if not task.done():
            raise UnavailableError("does not answer its health check. Try again later.")
        return task.result()
    finally:
        task.cancel()
        down.cancel()


async def _check(server: _Server) -> None:
    """Note whether a server is healthy."""
    try:
        reply = await server.client.get("/health", timeout=CHECK_SECONDS)
        is_up = reply.status_code == 200
    except httpx.HTTPError:
        is_up = False
    if is_up:
        server.down.clear()
    else:
        server.down.set()
