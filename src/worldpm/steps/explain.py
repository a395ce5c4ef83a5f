"""JSON lines in, JSON lines out, with what each reward rests on: its tokens and its sentences."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.formats import console

if TYPE_CHECKING:
    from worldpm.parts.scorer import Request, Scorer

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Explain the rewards of JSON lines, as `worldpm score` takes them."""

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path]
    """JSON lines to read."""
    by: tuple[Literal["tokens", "sentences"], ...] = ("tokens", "sentences")
    """Integrated gradients of every token, what each sentence adds, or both."""
    cut: bool = False
    """Cut what is too long, instead of refusing it."""

    def __post_init__(self) -> None:
        if not self.by:
            raise ConfigError("--by names nothing; say tokens, sentences or both")


def run(config: Config) -> None:
    """Write each line back to standard output with `explanations` added, one for each response."""
    from worldpm.parts.scorer import Scorer
    from worldpm.steps.score import read_lines

    if not config.file.is_file():
        raise ConfigError(f"{config.file}: no such file")
    scorer = Scorer.load(config.model, cut=config.cut)
    with config.file.open("rb") as source, console.progress("explain", total=None) as advance:
        lines = ((number, line) for number, line in enumerate(source, start=1) if line.strip())
        while chunk := list(islice(lines, 1)):
            read, failure = read_lines(chunk, str(config.file))
            for row, request in read:
                found = [_of_response(scorer, request._replace(responses=[text]), config.by) for text in request.responses]
                sys.stdout.write(json.dumps({**row, "explanations": found}, ensure_ascii=False, allow_nan=False) + "\n")
                sys.stdout.flush()
                advance()
            if failure:
                raise failure


def _of_response(scorer: "Scorer", request: "Request", by: Sequence[str]) -> Json:
    from worldpm.parts import explanations

    found: Json = {}
    if "tokens" in by:
        found["tokens"] = explanations.finished(explanations.of_tokens(scorer, request))._asdict()
    if "sentences" in by:
        found["sentences"] = [one._asdict() for one in explanations.finished(explanations.of_sentences(scorer, request))]
    return found
