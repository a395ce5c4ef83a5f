"""JSON lines in, JSON lines out: every line comes back in its place with its rewards added."""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from worldpm import console
from worldpm.errors import ConfigError
from worldpm.model import sources
from worldpm.model.sources import Source
from worldpm.options.score import ScoreOptions
from worldpm.options.shared import ModelOptions
from worldpm.scoring.confidence import Confidence, Settings, choose, counts_of, read_settings
from worldpm.scoring.requests import numbered_lines, read_lines
from worldpm.scoring.scorer import Request, Scored, Scorer
from worldpm.stats.selection import kl_nats
from worldpm.storage import folders

logger = logging.getLogger(__name__)
Json = dict[str, Any]
Added = Callable[[Json, Request, Scored], Json]
"""What is added to a line, from the line, its request and its rewards."""
Lines = Iterator[tuple[int, bytes]]
"""Lines with their numbers."""

LINES_AT_ONCE = 256
"""Lines that are scored, and with --out kept, together: a killed run loses at most these."""


def run(options: ScoreOptions) -> None:
    """Stream the lines through the scorer; a bad line stops the run with its number, after the
    lines before it were written."""
    if options.file is not None and not options.file.is_file():
        raise ConfigError(f"{options.file}: no such file")
    if options.out is not None and options.out.is_dir():
        raise ConfigError(f"--out {options.out}: a folder; name a file to write")
    if options.out is not None and not options.out.parent.is_dir():
        raise ConfigError(
            f"--out {options.out}: the folder {options.out.parent} is not there; make it first"
        )
    source = sources.find(options.model, revision=options.revision, remote_code=options.remote_code)
    scorer = Scorer.of(source, options)
    write = partial(
        _write,
        scorer,
        name=str(options.file or "stdin"),
        added=_with_best(options) if options.best else _rewards,
    )
    with (
        options.file.open("rb") if options.file else nullcontext(sys.stdin.buffer) as file,
        console.progress("score", total=None) as advance,
    ):
        chunks = _chunks(numbered_lines(file))
        if options.out is None:
            for chunk in chunks:
                write(chunk, sys.stdout.buffer)
                advance(len(chunk))
        else:
            _write_file(options.out, _terms(options, source), chunks, write, advance)


def _chunks(lines: Lines) -> Iterator[list[tuple[int, bytes]]]:
    while chunk := list(islice(lines, LINES_AT_ONCE)):
        yield chunk


def _terms(options: ScoreOptions, source: Source) -> Json:
    """What must be the same for the lines of an earlier run to be kept; standard input never is,
    for it cannot be read again."""
    names = [*ModelOptions.__dataclass_fields__, "best", "allow", "weigh"]
    settings = {name: getattr(options, name) for name in names}
    read = options.file.stat() if options.file else None
    file = [str(options.file), read.st_size, read.st_mtime_ns] if read else None
    return {"model": sources.fingerprint(source), **settings, "file": file}


def _write_file(
    out: Path,
    terms: Json,
    chunks: Iterable[list[tuple[int, bytes]]],
    write: Callable[..., None],
    advance: console.Advance,
) -> None:
    """Keep the chunks as parts of a folder beside the file, and join them at the end; whole parts
    of a killed run stay.

    A part holds the same lines in every run, so they are scored in the same rows, and the bytes are
    those of a run that was not killed.
    """
    output = folders.begin_scratch(
        out.with_name(f"{out.name}.partial"),
        step="score",
        config=terms,
        resume=terms["file"] is not None,
    )
    with output:
        if found := len(list(output.progress.glob("*.lines"))):
            logger.info("%s: going on after %d lines", out, found * LINES_AT_ONCE)
        names = []
        for number, chunk in enumerate(chunks):
            names.append(f"{folders.PROGRESS}/{number:08}.lines")
            output.part(names[-1], partial(_write_part, write, chunk))
            advance(len(chunk))
        output.join(names, out)


def _write_part(write: Callable[..., None], chunk: list[tuple[int, bytes]], aside: Path) -> Json:
    with aside.open("wb") as file:
        write(chunk, file)
    return {"lines": len(chunk)}


def _write(
    scorer: Scorer, chunk: list[tuple[int, bytes]], target: IO[bytes], *, name: str, added: Added
) -> None:
    """Score the lines and write them with what is added.

    Raises:
        DataError: If a line is bad; those before it were written.
    """
    read, failure = read_lines(chunk, name)
    answers = scorer.score(request for _, request in read)
    for (row, request), answer in zip(read, answers, strict=True):
        target.write(
            json.dumps(
                {**row, **added(row, request, answer)}, ensure_ascii=False, allow_nan=False
            ).encode()
            + b"\n"
        )
    target.flush()
    if failure:
        raise failure


def _rewards(row: Json, request: Request, answer: Scored) -> Json:
    """What every line gets."""
    return {"reward": answer.rewards[0]} if "responses" not in row else {"rewards": answer.rewards}


def _with_best(options: ScoreOptions) -> Added:
    """The rewards, and of several responses the best under the settings."""

    settings: Settings = read_settings(options.allow, options.weigh)

    def added(row: Json, request: Request, answer: Scored) -> Json:
        if not request.responses or "responses" not in row:
            return _rewards(row, request, answer)
        counts = [
            counts_of(text, tokens)
            for text, tokens in zip(request.responses, answer.length_tokens, strict=True)
        ]
        best = choose(Confidence(), answer.rewards, counts, settings).ranking[0]
        lead = answer.rewards[best] - sum(answer.rewards) / len(answer.rewards)
        return {
            "rewards": answer.rewards,
            "best": best,
            "lead": lead,
            "kl_nats": kl_nats(len(request.responses)),
        }

    return added
