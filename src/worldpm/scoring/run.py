"""`worldpm score`: JSON lines in, JSON lines out; every line keeps its position and gets its
rewards."""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

from worldpm import console
from worldpm.errors import ConfigError
from worldpm.model import sources
from worldpm.model.sources import Source
from worldpm.options.score import ScoreOptions
from worldpm.options.shared import ModelOptions
from worldpm.scoring.confidence import Confidence, Settings, choose, counts_of, read_settings
from worldpm.scoring.requests import Line, numbered_lines, read_lines
from worldpm.scoring.scorer import Request, Scored, Scorer
from worldpm.stats.selection import kl_nats
from worldpm.storage import folders
from worldpm.storage.json_files import Plain
from worldpm.storage.manifest import PROGRESS

logger = logging.getLogger(__name__)
Chunk = list[tuple[int, bytes]]
"""Lines with their numbers."""
Write = Callable[[Chunk, IO[bytes]], None]
"""Scores a chunk and writes its lines to a file."""

LINES_AT_ONCE = 256
"""Lines that are scored, and with --out kept, together: a killed run loses at most these."""


class Best(NamedTuple):
    """The best response of a line; the fields are keys of the output."""

    best: int
    """Its index."""
    lead: float
    """Its reward minus the mean of all, in logits."""
    kl_nats: float
    """KL divergence of choosing it from all, in nats."""


def run(options: ScoreOptions) -> None:
    """Stream the lines through the scorer; a bad line stops the run with its number, after the
    lines before it were written."""
    _check_paths(options)
    source = sources.find(options.model, revision=options.revision, remote_code=options.remote_code)
    scorer = Scorer.of(source, options)
    write = partial(
        _write,
        scorer,
        name=str(options.file or "stdin"),
        settings=read_settings(options.allow, options.weigh) if options.best else None,
    )

    with (
        options.file.open("rb") if options.file else nullcontext(sys.stdin.buffer) as file,
        console.progress("score", total=None) as advance,
    ):
        chunks = _chunks(numbered_lines(file))
        if options.out is not None:
            parts = _begin(options.out, options, source)
            _write_file(options.out, parts, chunks, write, advance)
            return

        for chunk in chunks:
            write(chunk, sys.stdout.buffer)
            advance(len(chunk))


def _check_paths(options: ScoreOptions) -> None:
    if options.file is not None and not options.file.is_file():
        raise ConfigError(f"{options.file}: no such file")

    out = options.out
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out}: a folder; name a file to write")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} is not there; make it first")


def _chunks(lines: Iterator[tuple[int, bytes]]) -> Iterator[Chunk]:
    while chunk := list(islice(lines, LINES_AT_ONCE)):
        yield chunk


def _config(options: ScoreOptions, source: Source) -> Plain:
    """Settings that decide the bytes of the output; lines of an earlier run stay only under the
    same ones."""
    names = [*ModelOptions.__dataclass_fields__, "best", "allow", "weigh"]
    settings = {name: getattr(options, name) for name in names}
    status = options.file.stat() if options.file else None
    # size and time show a change of the file without reading it
    file = [str(options.file), status.st_size, status.st_mtime_ns] if status else None
    return {"model": sources.fingerprint(source), **settings, "file": file}


def _begin(out: Path, options: ScoreOptions, source: Source) -> folders.Output:
    """The folder of parts beside the file; complete parts of a killed run stay in it."""
    return folders.begin_scratch(
        out.with_name(f"{out.name}.partial"),
        step="score",
        config=_config(options, source),
        # standard input cannot be read again
        resume=options.file is not None,
    )


def _write_file(
    out: Path,
    parts: folders.Output,
    chunks: Iterable[Chunk],
    write: Write,
    advance: console.Advance,
) -> None:
    """Keep each chunk as a part, and join the parts at the end.

    A part holds the same lines in every run. So they are scored in the same rows, and the bytes are
    those of a run that was not killed.
    """
    with parts:
        if finished := len(list(parts.progress.glob("*.lines"))):
            logger.info("%s: going on after %d lines", out, finished * LINES_AT_ONCE)

        # parts of the same lines are not scored again
        names = []
        for number, chunk in enumerate(chunks):
            names.append(f"{PROGRESS}/{number:08}.lines")
            parts.part(names[-1], partial(_write_part, write, chunk))
            advance(len(chunk))
        parts.join(names, out)


def _write_part(write: Write, chunk: Chunk, aside: Path) -> dict[str, int]:
    with aside.open("wb") as file:
        write(chunk, file)
    return {"lines": len(chunk)}


def _write(
    scorer: Scorer, chunk: Chunk, target: IO[bytes], *, name: str, settings: Settings | None
) -> None:
    """Score the lines and write them with their rewards; under `settings` with their best too.

    Raises:
        DataError: If a line is bad; those before it were written.
    """
    lines, failure = read_lines(chunk, name)
    answers = scorer.score(line.request for line in lines)
    for line, answer in zip(lines, answers, strict=True):
        row = {**line.row, **_added(line, answer, settings)}
        target.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    # the lines before a bad one must be out before the error is
    target.flush()
    if failure:
        raise failure


def _added(line: Line, answer: Scored, settings: Settings | None) -> Mapping[str, object]:
    """The keys that are added to a line: one reward to a conversation, a list to responses."""
    if "responses" not in line.row:
        return {"reward": answer.rewards[0]}
    if settings is None or not line.request.responses:
        return {"rewards": answer.rewards}
    return {"rewards": answer.rewards, **_best(line.request, answer, settings)._asdict()}


def _best(request: Request, answer: Scored, settings: Settings) -> Best:
    """The best of several responses under the settings."""
    rewards = answer.rewards
    counts = [
        counts_of(text, tokens)
        for text, tokens in zip(request.responses, answer.length_tokens, strict=True)
    ]

    # no confidence: ties and order depend on rewards and settings alone
    best = choose(Confidence(), rewards, counts, settings).ranking[0]
    lead = rewards[best] - sum(rewards) / len(rewards)
    return Best(best, lead, kl_nats(len(rewards)))
