"""The output lines of `worldpm score`: each row with its rewards, or the reason why it has none."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, NamedTuple

from worldpm.errors import DataError
from worldpm.scoring.confidence import Confidence, Settings, choose, counts_of
from worldpm.scoring.requests import Line
from worldpm.scoring.scorer import Refused, Request, Scored, Scorer
from worldpm.stats.selection import kl_nats


class Chunk(NamedTuple):
    """Lines that are scored together."""

    lines: list[Line]
    failure: DataError | None = None
    """The error of the row after these lines, which stops the run."""


@dataclass
class PartCounts:
    """Counts of a part of the output."""

    lines: int = 0
    errors: int = 0
    """Lines without rewards."""
    of_earlier_run: int = 0
    """Lines that an earlier run scored."""


class Best(NamedTuple):
    """The best response of a line. The fields are keys of the output."""

    best: int
    """Index of the best response."""
    lead: float
    """Its reward minus the mean reward of all responses, in logits."""
    kl_nats: float
    """KL divergence of choosing the best of all responses, in nats."""


def write_lines(
    scorer: Scorer, chunk: Chunk, target: IO[bytes], *, settings: Settings | None
) -> PartCounts:
    """Score the lines, and write them with their rewards, and with `settings` also their best
    response.

    Raises:
        DataError: If a line is bad. The lines before it are written.
    """
    counts = PartCounts()
    asked = [
        request for line in chunk.lines for request in line.requests if isinstance(request, Request)
    ]
    scored = scorer.score(asked)
    for line in chunk.lines:
        answers = [
            request if isinstance(request, Refused) else next(scored) for request in line.requests
        ]
        added = _added(line, answers, settings)
        counts.lines += 1
        counts.errors += "error" in added
        row = {**line.row, **added}
        target.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    # write the lines before a bad one before its error
    target.flush()
    if chunk.failure:
        raise chunk.failure
    return counts


def _added(
    line: Line, answers: Sequence[Scored | Refused], settings: Settings | None
) -> Mapping[str, object]:
    """The keys that are added to a line: a reward for a single response, or a list of rewards."""
    rewards: list[float] = []
    for answer in answers:
        if isinstance(answer, Refused):
            return {"error": answer.reason}
        rewards += answer.rewards

    if line.is_single:
        return {"reward": rewards[0]}
    # responses to different prompts cannot be compared
    request, answer = line.requests[0], answers[0]
    is_comparable = len(answers) == 1 and bool(rewards)
    if settings and is_comparable and isinstance(request, Request) and isinstance(answer, Scored):
        return {"rewards": rewards, **_best(request, answer, settings)._asdict()}
    return {"rewards": rewards}


def _best(request: Request, answer: Scored, settings: Settings) -> Best:
    """The best of a line's responses under the settings."""
    rewards = answer.rewards
    counts = [
        counts_of(text, tokens)
        for text, tokens in zip(request.responses, answer.length_tokens, strict=True)
    ]

    # an empty Confidence, so that ties and order depend only on rewards and settings
    best = choose(Confidence(), rewards, counts, settings).ranking[0]
    lead = rewards[best] - sum(rewards) / len(rewards)
    return Best(best, lead, kl_nats(len(rewards)))
