"""What all trainers share: rewards of rollouts, prompts computed once, from a folder here or a
server elsewhere, within stated guards."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Protocol

from worldpm.errors import ConfigError, WorldPMError
from worldpm.records import Message
from worldpm.scoring.confidence import Confidence, Settings, choose, counts_of
from worldpm.scoring.scorer import Request, Scorer

Json = dict[str, Any]
Rewards = tuple[list[float], list[int]]
"""Rewards and lengths in tokens of one prompt's responses."""
TRIES, SECONDS_BETWEEN = 5, 1.0
AGAIN = (429, 503)


class Judge(Protocol):
    """Where rewards come from."""

    def judge(self, requests: Sequence[Request]) -> list[Rewards]:
        """Rewards and lengths of each request's responses; what is too long is cut."""


@dataclass(frozen=True)
class LocalJudge:
    """A checkpoint in this process."""

    scorer: Scorer
    _turn: threading.Lock = field(default_factory=threading.Lock)
    """OpenRLHF asks from many threads; a tokenizer and a model serve one at a time."""

    def judge(self, requests: Sequence[Request]) -> list[Rewards]:
        """As `Judge` has it."""
        with self._turn:
            return [
                (scored.rewards, scored.length_tokens) for scored in self.scorer.score(requests)
            ]


@dataclass(frozen=True)
class RemoteJudge:
    """A server that `worldpm serve` started."""

    url: str
    key: str | None = None
    timeout_seconds: float = 180.0

    def judge(self, requests: Sequence[Request]) -> list[Rewards]:
        """As `Judge` has it; a server that is full is asked again, five times at most.

        Raises:
            WorldPMError: If it does not answer, or refuses.
        """
        found = []
        for request in requests:
            prompt = [asdict(message) for message in request.prompt]
            told = self._post({"prompt": prompt, "responses": list(request.responses), "cut": True})
            found.append((told["rewards"], told["usage"]["response_tokens"]))
        return found

    def _post(self, body: Json) -> Json:
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self.key}"} if self.key else {}),
        }
        asked = urllib.request.Request(
            f"{self.url.rstrip('/')}/v1/rewards", json.dumps(body).encode(), headers
        )
        for attempt in range(TRIES):
            try:
                with urllib.request.urlopen(asked, timeout=self.timeout_seconds) as reply:
                    told: Json = json.load(reply)
                    return told
            except urllib.error.HTTPError as error:
                if error.code not in AGAIN or attempt == TRIES - 1:
                    raise WorldPMError(
                        f"{self.url}: answered {error.code}:"
                        f" {error.read(300).decode(errors='replace')}"
                    ) from error
                time.sleep(float(error.headers.get("Retry-After") or SECONDS_BETWEEN))
            except OSError as error:
                raise WorldPMError(
                    f"{self.url}: no answer ({error}); is `worldpm serve` running there?"
                ) from error
        raise AssertionError("the last attempt returns or raises")


_known: dict[tuple[str, str | None], Judge] = {}
_loading = threading.Lock()


def judge_of(place: str, key: str | None = None) -> Judge:
    """The judge at a URL, which may ask for an API key, or in a folder; loaded once in a process,
    however many threads ask."""
    with _loading:
        if (place, key) not in _known:
            remote = place.startswith(("http://", "https://"))
            _known[place, key] = (
                RemoteJudge(place, key) if remote else LocalJudge(Scorer.load(place, cut=True))
            )
        return _known[place, key]


def messages_of(turns: str | Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """A prompt, or a completion, as messages: a text is one of the user's; the pieces of a message
    are lines.

    Raises:
        ConfigError: If a message has no text, or pieces of another kind.
    """
    if isinstance(turns, str):
        return (Message("user", turns),)
    return tuple(Message(str(turn["role"]), _words(turn["content"])) for turn in turns)


def _words(content: object) -> str:
    if isinstance(content, str):
        return content
    if not (
        isinstance(content, list | tuple)
        and all(isinstance(piece, Mapping) and piece.get("type") == "text" for piece in content)
    ):
        raise ConfigError(
            f"a message's content is {content!r:.60}; rewards are of text: give a text, or pieces"
            " of type `text`"
        )
    return "\n".join(str(piece["text"]) for piece in content)


@dataclass(frozen=True)
class Guards:
    """Limits of length and style on what a policy is rewarded for, as `Settings` of the server has
    them; none unless set.

    With `weights`, log odds move by them for each unit of style difference to the other rollouts of
    the prompt. Rollouts outside `ranges` get the lowest value of their prompt's rollouts less one,
    so that no reward can make up for it.
    """

    ranges: Mapping[str, tuple[float, float]] | None = None
    weights: Mapping[str, float] | None = None

    def values(
        self, rewards: Sequence[float], lengths: Sequence[int], texts: Sequence[str]
    ) -> list[float]:
        """What the policy is given for each rollout of one prompt: the rewards themselves where no
        guard is set."""
        if not self.ranges and not self.weights:
            return list(rewards)
        counts = [counts_of(text, tokens) for text, tokens in zip(texts, lengths, strict=True)]
        choice = choose(
            Confidence(),
            rewards,
            counts,
            Settings(ranges=self.ranges or {}, weights=self.weights or {}),
        )
        mean = sum(rewards) / max(1, len(rewards))
        values = [
            mean + odds for odds in choice.log_odds
        ]  # in units of the reward, about the same mean
        lowest = min(values, default=0.0) - 1
        return [lowest if why else value for value, why in zip(values, choice.outside, strict=True)]


def rewards_of(
    judge: Judge, prompts: Sequence[Sequence[Message]], responses: Sequence[str], guards: Guards
) -> list[float]:
    """A value for each response, in order; neighbours with one prompt are its group, which is how
    rollouts come.

    Raises:
        ConfigError: If there are not as many prompts as responses.
    """
    if len(prompts) != len(responses):
        raise ConfigError(
            f"{len(prompts)} prompts came with {len(responses)} responses; one prompt for each is"
            " needed"
        )
    runs = [
        list(run)
        for _, run in groupby(range(len(prompts)), key=lambda place: tuple(prompts[place]))
    ]
    requests = [
        Request(f"rollout {run[0]}", tuple(prompts[run[0]]), [responses[place] for place in run])
        for run in runs
    ]
    found = judge.judge(requests)
    return [
        value
        for request, (rewards, lengths) in zip(requests, found, strict=True)
        for value in guards.values(rewards, lengths, request.responses)
    ]
