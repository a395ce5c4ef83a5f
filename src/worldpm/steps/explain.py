"""JSON lines in, JSON lines out, with what each reward rests on: its tokens and its sentences."""

import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.formats import console


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
    from worldpm.parts import explanations
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
                found = [
                    {
                        **({"tokens": explanations.of_tokens(scorer, request.prompt, text)._asdict()} if "tokens" in config.by else {}),
                        **({"sentences": [one._asdict() for one in explanations.of_sentences(scorer, request.prompt, text)]}
                           if "sentences" in config.by else {}),
                    }
                    for text in request.responses
                ]  # fmt: skip
                sys.stdout.write(json.dumps({**row, "explanations": found}, ensure_ascii=False, allow_nan=False) + "\n")
                sys.stdout.flush()
                advance()
            if failure:
                raise failure
