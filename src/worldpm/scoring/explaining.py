"""JSON lines in, JSON lines out, with what each reward rests on: its tokens and its sentences."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from worldpm import console
from worldpm.errors import ConfigError
from worldpm.options.explain import ExplainOptions
from worldpm.scoring import explanations
from worldpm.scoring.requests import numbered_lines, read_lines
from worldpm.scoring.scorer import Request, Scorer

Json = dict[str, Any]


def run(options: ExplainOptions) -> None:
    """Write each line back to standard output with `explanations` added, one for each response."""

    if not options.file.is_file():
        raise ConfigError(f"{options.file}: no such file")
    scorer = Scorer.of(options.model, options)
    with options.file.open("rb") as source, console.progress("explain", total=None) as advance:
        for line in numbered_lines(source):
            read, failure = read_lines([line], str(options.file))
            for row, request in read:
                found = [
                    _of_response(scorer, request._replace(responses=[text]), options.by)
                    for text in request.responses
                ]
                sys.stdout.write(
                    json.dumps({**row, "explanations": found}, ensure_ascii=False, allow_nan=False)
                    + "\n"
                )
                sys.stdout.flush()
                advance()
            if failure:
                raise failure


def _of_response(scorer: Scorer, request: Request, by: Sequence[str]) -> Json:

    found: Json = {}
    if "tokens" in by:
        found["tokens"] = explanations.of_tokens(scorer, request)._asdict()
    if "sentences" in by:
        found["sentences"] = [one._asdict() for one in explanations.of_sentences(scorer, request)]
    return found
