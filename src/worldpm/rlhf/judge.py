"""Rewards of rollouts for all trainers, from a folder or a server, with optional guards.

The model computes a prompt once for all its rollouts.
"""

import json
import math
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from itertools import count
from typing import Any, Protocol

import msgspec

from worldpm.errors import ConfigError, TemplateRefusalError, WorldPMError
from worldpm.records import ASSISTANT, Message
from worldpm.scoring.confidence import Confidence, Settings, choose, counts_of
from worldpm.scoring.scorer import Refused, Request, Scored, Scorer
from worldpm.storage.json_files import Plain

PATIENCE_SECONDS = 600.0
"""Time in which a request must succeed. A restart of a server takes minutes."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 120.0
"""Wait after the first failure, which doubles with each further one, and the longest wait, even if
the server requests more."""
MOST_RESPONSES, MOST_CHARACTERS = 128, 500_000
"""Responses of one request to a server, and their characters. Longer lists are split."""
TOO_LARGE = ("TooManyTokens", "TooManyInputs")
"""Errors of a server whose limits are smaller. The request is then split again."""
REQUESTS_AT_ONCE = 16
"""Prompts that are sent to a server at once, so that it can fill its rows."""
RETRIED_STATUSES = (429, 502, 503, 504)
"""HTTP statuses of a server, or of a gateway in front of it, that is full or slow."""


@dataclass(frozen=True)
class RolloutRewards:
    """Rewards of one prompt's responses, in order."""

    rewards: list[float]
    """Logits."""
    length_tokens: list[int]
    """Tokens of each response, before any cut."""


class Judge(Protocol):
    """A source of rewards."""

    def judge(self, requests: Sequence[Request]) -> list[RolloutRewards]:
        """Rewards of each request's responses. Long inputs are cut."""


@dataclass(frozen=True)
class LocalJudge:
    """A checkpoint in this process."""

    scorer: Scorer
    _turn: threading.Lock = field(default_factory=threading.Lock)
    """OpenRLHF calls from many threads, but tokenizer and model can serve only one at a time."""

    def judge(self, requests: Sequence[Request]) -> list[RolloutRewards]:
        """See `Judge.judge`."""
        with self._turn:
            return [_rollouts(answer) for answer in self.scorer.score(requests)]


def _rollouts(answer: Scored | Refused) -> RolloutRewards:
    if isinstance(answer, Refused):
        raise TemplateRefusalError(answer.name, answer.reason)
    return RolloutRewards(answer.rewards, answer.length_tokens)


class _Usage(msgspec.Struct, frozen=True):
    """Tokens of the responses, before any cut."""

    response_tokens: list[int]


class _Reply(msgspec.Struct, frozen=True):
    """The parts of `/v1/rewards`'s reply that are used."""

    rewards: list[float]
    usage: _Usage


def _bodies(request: Request) -> list[Plain]:
    """Bodies for a server. If the last turn has tool calls, each response becomes a separate
    conversation."""
    prompt = [message.turn() for message in request.prompt]
    texts = list(request.responses)
    if request.last == ASSISTANT:
        return [{"prompt": prompt, "responses": part} for part in _parts(texts)]
    return [{"messages": [*prompt, {**request.last.turn(), "content": text}]} for text in texts]


def _parts(texts: Sequence[str]) -> list[list[str]]:
    """The texts in parts of limited size; one part without texts."""
    parts: list[list[str]] = [[]]
    characters = 0
    for text in texts:
        is_full = len(parts[-1]) == MOST_RESPONSES or characters + len(text) > MOST_CHARACTERS
        if parts[-1] and is_full:
            parts.append([])
            characters = 0
        parts[-1].append(text)
        characters += len(text)
    return parts


@dataclass(frozen=True)
class RemoteJudge:
    """Servers that `worldpm serve` started with the same model. Several are tried in turn."""

    urls: tuple[str, ...]
    key: str | None = None
    """API key; None if the servers need none."""
    timeout_seconds: float = 180.0
    """Time limit for each attempt."""
    patience_seconds: float = PATIENCE_SECONDS
    """Time limit for a request with all its attempts."""
    _turns: Iterator[int] = field(default_factory=count)
    """Numbers of the calls: each starts at the next server."""

    def judge(self, requests: Sequence[Request]) -> list[RolloutRewards]:
        """See `Judge.judge`. If a server is full, fails or does not answer, the next is tried, with
        growing waits, until the patience ends.

        Raises:
            WorldPMError: If no server answers in time, or one rejects a request.
        """
        # Cut inputs, because a rollout over the limit also needs a reward
        bodies = [[{**body, "cut": True} for body in _bodies(request)] for request in requests]
        flat = [body for of_request in bodies for body in of_request]
        # Set if one request fails, or on Ctrl-C: the others then stop waiting
        stop = threading.Event()
        threads = ThreadPoolExecutor(REQUESTS_AT_ONCE)
        try:
            replies = iter(list(threads.map(lambda body: self._answer(body, stop), flat)))
        finally:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)

        rollouts: list[RolloutRewards] = []
        for of_request in bodies:
            parts = [next(replies) for _ in of_request]
            rewards = [reward for reply in parts for reward in reply.rewards]
            lengths = [tokens for reply in parts for tokens in reply.usage.response_tokens]
            rollouts.append(RolloutRewards(rewards, lengths))
        return rollouts

    def _answer(self, body: Plain, stop: threading.Event) -> _Reply:
        """The reply to a body, in halves if it is too large for the server."""
        try:
            return self._post(body, stop)
        except _TooLargeError as error:
            responses = body.get("responses")
            if not isinstance(responses, list) or len(responses) < 2:
                raise WorldPMError(str(error)) from error
            middle = len(responses) // 2
            halves = [
                self._answer({**body, "responses": part}, stop)
                for part in (responses[:middle], responses[middle:])
            ]
            lengths = [tokens for half in halves for tokens in half.usage.response_tokens]
            return _Reply([reward for half in halves for reward in half.rewards], _Usage(lengths))

    def _post(self, body: Plain, stop: threading.Event) -> _Reply:
        """The reply of `/v1/rewards`."""
        end = time.monotonic() + self.patience_seconds
        start = next(self._turns)
        for attempt in count():
            url = self.urls[(start + attempt) % len(self.urls)]
            try:
                seconds = min(self.timeout_seconds, max(1.0, end - time.monotonic()))
                return self._attempt(url, body, seconds)
            except _BriefError as failure:
                # Without a wait, unless every server failed
                is_round = (attempt + 1) % len(self.urls) == 0
                wait = _wait(attempt // len(self.urls), failure.retry_after) if is_round else 0.0
                if time.monotonic() + wait > end or stop.wait(wait):
                    raise WorldPMError(
                        f"{url}: {failure} for {self.patience_seconds:.0f} s. Check that `worldpm"
                        " serve` is running there."
                    ) from failure
        raise AssertionError("the attempts have no end")

    def _attempt(self, url: str, body: Plain, seconds: float) -> _Reply:
        """The reply of one server.

        Raises:
            _BriefError: If another attempt may succeed.
            _TooLargeError: If a part of the body may be accepted.
            WorldPMError: If neither.
        """
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        path = f"{url.rstrip('/')}/v1/rewards"
        # without escapes, which would triple the size of Chinese text
        content = json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")
        http_request = urllib.request.Request(path, content, headers)
        try:
            with urllib.request.urlopen(http_request, timeout=seconds) as reply:
                return msgspec.json.decode(reply.read(), type=_Reply)
        # HTTPError is also an OSError, so it comes first
        except urllib.error.HTTPError as error:
            text = f"answered {error.code}: {error.read(600).decode(errors='replace')}"
            if error.code == 413 or any(kind in text for kind in TOO_LARGE):
                raise _TooLargeError(f"{url}: {text}") from error
            if error.code not in RETRIED_STATUSES:
                raise WorldPMError(f"{url}: {text}") from error
            raise _BriefError(text, error.headers.get("Retry-After")) from error
        except msgspec.DecodeError as error:
            raise WorldPMError(
                f"{url}: its reply has another form ({error}). Check that it is `worldpm serve`."
            ) from error
        # a server that restarts refuses or resets connections, or ends a reply early
        except (OSError, HTTPException) as error:
            raise _BriefError(f"no answer ({error or type(error).__name__})") from error


class _BriefError(Exception):
    """A failure that may end soon."""

    def __init__(self, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _TooLargeError(Exception):
    """A request that is too large for a server."""


def _wait(rounds: int, retry_after: str | None) -> float:
    """Seconds before the next attempt: as the server requests, or else twice as long after each
    round of failures. Random, because clients that failed
    together would otherwise return together."""
    # The exponent is bounded, because the power would overflow after many rounds
    growing = min(FIRST_WAIT_SECONDS * 2.0 ** min(rounds, 30), LONGEST_WAIT_SECONDS)
    requested = _seconds_to_wait(retry_after)
    if requested is None:
        return growing * random.uniform(0.5, 1.0)
    return requested + random.uniform(0.0, min(1.0, growing))


def _seconds_to_wait(retry_after: str | None) -> float | None:
    """The time that a server requests, in seconds or as a date (RFC 9110, 10.2.3); None if it
    requests none."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    # NaN is not a time
    return min(max(seconds, 0.0), LONGEST_WAIT_SECONDS) if math.isfinite(seconds) else None


_judges: dict[tuple[str, str | None], Judge] = {}
"""Judges of this process, by folder or URL, and API key."""
_loading = threading.Lock()


def judge_of(source: str, key: str | None = None) -> Judge:
    """The judge in a folder, or at a URL with an API key. Several URLs, separated by commas, are
    servers with the same model.

    A process loads it only once, even if many threads call this function at once.
    """
    # Hold the lock while a model loads, so that other threads wait instead of loading it again
    with _loading:
        if (source, key) not in _judges:
            if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
                raise ConfigError(
                    "the API key has characters that a header cannot contain. Use visible ASCII."
                )
            is_url = source.startswith(("http://", "https://"))
            urls = tuple(url.strip() for url in source.split(",") if url.strip())
            _judges[source, key] = (
                RemoteJudge(urls, key) if is_url else LocalJudge(Scorer.load(source, cut=True))
            )

        return _judges[source, key]


def messages_of(turns: str | Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """A prompt or completion as messages, with their tool calls. A text becomes a user message, and
    parts become lines. The turns may be an array, as pandas reads them.

    Raises:
        ConfigError: If a message has no text, or has parts other than text.
    """
    if isinstance(turns, str):
        return (Message("user", turns),)
    try:
        return tuple(map(Message.of, turns))
    except TypeError as error:
        raise ConfigError(
            f"{error}. Only text can be scored: give a text, or parts of type `text`."
        ) from error


@dataclass(frozen=True)
class Guards:
    """Optional limits on the length and style that a policy is rewarded for.

    Weights add log odds for each unit of style difference to the prompt's other rollouts. Rollouts
    outside a range get the lowest value of their prompt's rollouts minus 1, so that no reward can
    compensate for it.
    """

    ranges: Mapping[str, tuple[float, float]] | None = None
    """Allowed counts by feature, as in `confidence.Settings`."""
    weights: Mapping[str, float] | None = None
    """Log odds by feature, as in `confidence.Settings`."""

    def values(
        self, rewards: Sequence[float], lengths: Sequence[int], texts: Sequence[str]
    ) -> list[float]:
        """The values of one prompt's rollouts for the policy. Without guards, they are the
        rewards."""
        if not self.ranges and not self.weights:
            return list(rewards)

        counts = [counts_of(text, tokens) for text, tokens in zip(texts, lengths, strict=True)]
        settings = Settings(ranges=self.ranges or {}, weights=self.weights or {})
        choice = choose(Confidence(), rewards, counts, settings)

        # Add the mean reward, which log odds leave out, so that values have the units of rewards
        mean = sum(rewards) / max(1, len(rewards))
        values = [mean + odds for odds in choice.log_odds]
        # Below all other values, by a margin that a policy notices
        lowest = min(values, default=0.0) - 1
        return [
            lowest if reasons else value
            for value, reasons in zip(values, choice.outside, strict=True)
        ]


def rewards_of(
    judge: Judge,
    prompts: Sequence[Sequence[Message]],
    responses: Sequence[str | Message],
    guards: Guards,
) -> list[float]:
    """A value for each response, in order. A response can be a message with tool calls.

    Entries with the same prompt are its rollouts, in any order.

    Raises:
        ConfigError: If the numbers of prompts and responses differ.
    """
    if len(prompts) != len(responses):
        raise ConfigError(
            f"there are {len(prompts)} prompts but {len(responses)} responses. Give one prompt for"
            " each response."
        )

    numbers, requests = _requests(prompts, responses)
    values = [0.0] * len(responses)
    for indices, request, rollouts in zip(numbers, requests, judge.judge(requests), strict=True):
        guarded = guards.values(rollouts.rewards, rollouts.length_tokens, request.responses)
        for index, value in zip(indices, guarded, strict=True):
            values[index] = value
    return values


def _requests(
    prompts: Sequence[Sequence[Message]], responses: Sequence[str | Message]
) -> tuple[list[list[int]], list[Request]]:
    """A request for each set of equal prompts whose last turns differ only in their content, and
    the indices of its responses."""
    by_prompt: dict[tuple[tuple[Message, ...], Message], list[int]] = {}
    texts: list[str] = []
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if isinstance(response, str):
            text, last = response, ASSISTANT
        else:
            text, last = response.content, replace(response, content="")
        texts.append(text)
        by_prompt.setdefault((tuple(prompt), last), []).append(index)

    requests = [
        Request(f"rollout {indices[0]}", prompt, [texts[index] for index in indices], last)
        for (prompt, last), indices in by_prompt.items()
    ]
    return list(by_prompt.values()), requests
