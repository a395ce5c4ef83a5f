"""Rewards of rollouts for all trainers, from a folder or a server, with optional guards.

The model computes a prompt once for all its rollouts.
"""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from itertools import groupby
from typing import Any, Protocol

import msgspec

from worldpm.errors import ConfigError, TemplateRefusalError, WorldPMError
from worldpm.records import ASSISTANT, Message
from worldpm.scoring.confidence import Confidence, Settings, choose, counts_of
from worldpm.scoring.scorer import Refused, Request, Scored, Scorer
from worldpm.storage.json_files import Plain

MOST_ATTEMPTS = 5
SECONDS_BETWEEN_ATTEMPTS = 1.0
"""Default wait, if the server does not request another time."""
LONGEST_WAIT_SECONDS = 120.0
"""Longest wait, even if the server requests more."""
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
    if request.last == ASSISTANT:
        return [{"prompt": prompt, "responses": list(request.responses)}]
    return [
        {"messages": [*prompt, {**request.last.turn(), "content": response}]}
        for response in request.responses
    ]


@dataclass(frozen=True)
class RemoteJudge:
    """A server that `worldpm serve` started."""

    url: str
    key: str | None = None
    """API key; None if the server needs none."""
    timeout_seconds: float = 180.0
    """Time limit for each attempt."""

    def judge(self, requests: Sequence[Request]) -> list[RolloutRewards]:
        """See `Judge.judge`. If the server is full or does not answer, a request is sent up to five
        times.

        Raises:
            WorldPMError: If the server does not answer, or rejects a request.
        """
        rollouts: list[RolloutRewards] = []
        for request in requests:
            # Cut inputs, because a rollout over the limit also needs a reward
            replies = [self._post({**body, "cut": True}) for body in _bodies(request)]
            rewards = [reward for reply in replies for reward in reply.rewards]
            lengths = [tokens for reply in replies for tokens in reply.usage.response_tokens]
            rollouts.append(RolloutRewards(rewards, lengths))
        return rollouts

    def _post(self, body: Plain) -> _Reply:
        """The reply of `/v1/rewards`."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = f"{self.url.rstrip('/')}/v1/rewards"
        http_request = urllib.request.Request(url, json.dumps(body).encode(), headers)

        for attempt in range(1, MOST_ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(http_request, timeout=self.timeout_seconds) as reply:
                    return msgspec.json.decode(reply.read(), type=_Reply)
            # HTTPError is also an OSError, so it comes first
            except urllib.error.HTTPError as error:
                if error.code not in RETRIED_STATUSES or attempt == MOST_ATTEMPTS:
                    text = error.read(300).decode(errors="replace")
                    raise WorldPMError(f"{self.url}: answered {error.code}: {text}") from error
                time.sleep(_seconds_to_wait(error.headers.get("Retry-After")))
            except msgspec.DecodeError as error:
                raise WorldPMError(
                    f"{self.url}: its reply has another form ({error}). Check that it is `worldpm"
                    " serve`."
                ) from error
            # a server that restarts refuses or resets connections for a moment
            except (OSError, HTTPException) as error:
                if attempt == MOST_ATTEMPTS:
                    raise WorldPMError(
                        f"{self.url}: no answer ({error}). Check that `worldpm serve` is running"
                        " there."
                    ) from error
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        raise AssertionError("the last attempt returns or raises")


def _seconds_to_wait(retry_after: str | None) -> float:
    """The time that a server requests, in seconds or as a date (RFC 9110, 10.2.3)."""
    if not retry_after:
        return SECONDS_BETWEEN_ATTEMPTS
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return SECONDS_BETWEEN_ATTEMPTS
    return min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


_judges: dict[tuple[str, str | None], Judge] = {}
"""Judges of this process, by folder or URL, and API key."""
_loading = threading.Lock()


def judge_of(source: str, key: str | None = None) -> Judge:
    """The judge in a folder, or at a URL with an API key.

    A process loads it only once, even if many threads call this function at once.
    """
    # Hold the lock while a model loads, so that other threads wait instead of loading it again
    with _loading:
        if (source, key) not in _judges:
            is_url = source.startswith(("http://", "https://"))
            _judges[source, key] = (
                RemoteJudge(source, key) if is_url else LocalJudge(Scorer.load(source, cut=True))
            )

        return _judges[source, key]


def messages_of(turns: str | Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """A prompt or completion as messages, with their tool calls. A text becomes a user message, and
    parts become lines.

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

    Consecutive entries with the same prompt are its rollouts. All trainers use this order.

    Raises:
        ConfigError: If the numbers of prompts and responses differ.
    """
    if len(prompts) != len(responses):
        raise ConfigError(
            f"there are {len(prompts)} prompts but {len(responses)} responses. Give one prompt for"
            " each response."
        )

    requests = list(_requests(prompts, responses))
    values: list[float] = []
    for request, rollouts in zip(requests, judge.judge(requests), strict=True):
        values += guards.values(rollouts.rewards, rollouts.length_tokens, request.responses)
    return values


def _requests(
    prompts: Sequence[Sequence[Message]], responses: Sequence[str | Message]
) -> Iterator[Request]:
    """A request for each run of equal prompts whose last turns differ only in their content."""
    last = [
        ASSISTANT if isinstance(response, str) else replace(response, content="")
        for response in responses
    ]
    texts = [response if isinstance(response, str) else response.content for response in responses]

    # Join only consecutive entries, so that values keep the order of the responses
    keys = [(tuple(prompt), turn) for prompt, turn in zip(prompts, last, strict=True)]
    for (prompt, turn), run in groupby(range(len(prompts)), key=lambda index: keys[index]):
        indices = list(run)
        yield Request(f"rollout {indices[0]}", prompt, [texts[index] for index in indices], turn)
