"""JSON lines in, JSON lines out, with what each reward rests on: its tokens and its sentences."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm import console
from worldpm.options.explain import ExplainOptions

if TYPE_CHECKING:
    from worldpm.scoring.scorer import Request, Scorer

Json = dict[str, Any]




def run(options: ExplainOptions) -> None:
    """Write each line back to standard output with `explanations` added, one for each response."""
    from worldpm.scoring.scorer import Scorer
    from worldpm.scoring.run import read_lines

    if not options.file.is_file():
        raise ConfigError(f"{options.file}: no such file")
    scorer = Scorer.load(options.model, cut=options.cut)
    with options.file.open("rb") as source, console.progress("explain", total=None) as advance:
        lines = ((number, line) for number, line in enumerate(source, start=1) if line.strip())
        while chunk := list(islice(lines, 1)):
            read, failure = read_lines(chunk, str(options.file))
            for row, request in read:
                found = [_of_response(scorer, request._replace(responses=[text]), options.by) for text in request.responses]
                sys.stdout.write(json.dumps({**row, "explanations": found}, ensure_ascii=False, allow_nan=False) + "\n")
                sys.stdout.flush()
                advance()
            if failure:
                raise failure


def _of_response(scorer: "Scorer", request: "Request", by: Sequence[str]) -> Json:
    from worldpm.scoring import explanations

    found: Json = {}
    if "tokens" in by:
        found["tokens"] = explanations.finished(explanations.of_tokens(scorer, request))._asdict()
    if "sentences" in by:
        found["sentences"] = [one._asdict() for one in explanations.finished(explanations.of_sentences(scorer, request))]
    return found
