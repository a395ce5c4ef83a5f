"""`worldpm explain`: reads JSON lines, and writes them with what each token and sentence adds to
the reward."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from worldpm import console
from worldpm.errors import ConfigError, DataError
from worldpm.options.explain import ExplainOptions
from worldpm.scoring import explanations, requests
from worldpm.scoring.explanations import Sentence, TokenAttributions
from worldpm.scoring.requests import Line
from worldpm.scoring.scorer import Refused, Request, Scorer


class Explanation(NamedTuple):
    """The explanation of one response; a part is None if --by leaves it out."""

    tokens: TokenAttributions | None
    sentences: list[Sentence] | None


def run(options: ExplainOptions) -> None:
    """Write each line to standard output, with an entry in `explanations` for each response."""
    if not options.file.is_file():
        raise ConfigError(f"{options.file}: no such file. Check the path.")
    scorer = Scorer.of(options.model, options)

    with console.progress("explain", total=None) as advance:
        # one line at a time, because a line takes seconds
        for line in requests.read(options.file, {}):
            explained: list[Explanation] = []
            for request in line.requests:
                if isinstance(request, Refused):
                    raise DataError(request.name, request.reason)
                explained += _explained(scorer, request, options.by)
            _write(line, explained)
            advance()


def _write(line: Line, explained: Sequence[Explanation]) -> None:
    row = {**line.row, "explanations": list(map(_to_json, explained))}
    sys.stdout.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def _to_json(explanation: Explanation) -> Mapping[str, object]:
    """The requested parts, under the names of their fields."""
    parts: dict[str, object] = {}
    if explanation.tokens is not None:
        parts["tokens"] = explanation.tokens._asdict()
    if explanation.sentences is not None:
        parts["sentences"] = [sentence._asdict() for sentence in explanation.sentences]
    return parts


def _explained(scorer: Scorer, request: Request, by: Sequence[str]) -> list[Explanation]:
    """The explanation of each response, in order."""
    explained = []
    for text in request.responses:
        single = request._replace(responses=[text])
        tokens = explanations.of_tokens(scorer, single) if "tokens" in by else None
        sentences = explanations.of_sentences(scorer, single) if "sentences" in by else None
        explained.append(Explanation(tokens, sentences))
    return explained
