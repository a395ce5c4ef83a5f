"""`worldpm score`: reads rows and writes JSON lines. Every row keeps its position and columns, and
gets its rewards or the reason why it has none."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from worldpm import console
from worldpm.errors import ConfigError, DataError
from worldpm.model import sources
from worldpm.model.sources import Source
from worldpm.options.score import ScoreOptions
from worldpm.options.shared import ModelOptions, column_names, names_of
from worldpm.scoring import ray_actors, requests
from worldpm.scoring.confidence import read_settings
from worldpm.scoring.output_lines import Chunk, PartCounts, write_lines
from worldpm.scoring.peers import Peers, launched
from worldpm.scoring.requests import Line
from worldpm.scoring.scorer import Scorer
from worldpm.storage import folders, parquet, rows
from worldpm.storage.json_files import Plain
from worldpm.storage.manifest import PROGRESS

logger = logging.getLogger(__name__)

STDOUT = 1
"""File descriptor of standard output."""
LINES_AT_ONCE = 256
"""Number of lines that are scored together and, with --out, saved together. A killed run loses at
most these."""


Write = Callable[[Chunk, IO[bytes]], PartCounts]
"""Scores a chunk and writes its lines to a file."""


def run(options: ScoreOptions) -> None:
    """Stream the rows through the scorer. A bad row stops the run with its number, after the rows
    before it are written."""
    _check_paths(options)
    peers = Peers.here()
    source = sources.of(options.model, options)
    settings = read_settings(options.allow, options.weigh) if options.best else None
    actors = None
    if options.engine == "ray":
        actors = ray_actors.Actors(options, settings)
        write: Write = actors.write
    else:
        write = partial(write_lines, Scorer.of(source, options), settings=settings)

    started = time.monotonic()
    with console.progress("score", total=_total(options.file)) as advance:
        chunks = _chunks(requests.read(options.file, column_names(options.columns)))
        if options.out is None:
            counts = _write_stream(sys.stdout.buffer, chunks, write, advance)
        elif _is_written_through(options.out):
            with _opened_through(options.out) as target:
                counts = _write_stream(target, chunks, write, advance)
        else:
            parts = _begin(options.out, options, source, peers)
            if actors is not None:
                chunks = actors.ahead(chunks, lambda number: (parts.path / _part(number)).exists())
            counts = _write_file(options.out, parts, peers, chunks, write, advance)

    if scored := counts.lines - counts.of_earlier_run:
        seconds = time.monotonic() - started
        logger.info("scored %s rows, %.0f a second", f"{scored:,}", scored / max(seconds, 1e-9))
    if counts.errors:
        logger.warning(
            "%d of %d rows have no reward. The key `error` in their lines has the reason.",
            counts.errors,
            counts.lines,
        )


def _check_paths(options: ScoreOptions) -> None:
    file, out = options.file, options.out
    is_shared = launched() > 1 or options.engine == "ray"
    if is_shared and (file is None or out is None or _is_written_through(out)):
        who = "--engine ray needs" if options.engine == "ray" else f"{launched()} processes need"
        raise ConfigError(f"{who} a file to read, and --out with a file to write. Name both.")
    if launched() > 1 and options.engine == "ray":
        raise ConfigError("--engine ray has its own processes. Run it without a launcher.")
    if file is not None and (not file.exists() or file.is_dir()):
        raise ConfigError(f"{file}: no such file. Check the path.")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out}: is a folder. Name a file to write.")
    if out is not None and _is_parquet(out) and _is_written_through(out):
        raise ConfigError(f"--out {out}: a Parquet file cannot be a link. Name another file.")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist. Create it first.")

    # opening --out empties the file behind a link before the first row is read
    if file and out and out.is_symlink() and out.is_file() and file.samefile(out):
        raise ConfigError(f"--out {out}: is the input file. Name another file.")


def _total(file: Path | None) -> int | None:
    """Number of rows; None for streams and unreadable files. Reading the row will report the
    error."""
    if file is None or not file.is_file():
        return None
    try:
        return rows.count(file)
    except DataError:
        return None


def _is_parquet(out: Path) -> bool:
    return out.suffix == ".parquet"


def _is_written_through(out: Path) -> bool:
    """Whether the output is a link, a pipe or a device, which a new file must not replace."""
    return out.is_symlink() or (out.exists() and not out.is_file())


def _opened_through(out: Path) -> IO[bytes]:
    # if standard output is `>> log`, opening /dev/stdout again would empty the log
    if out.exists() and os.path.samestat(out.stat(), os.fstat(STDOUT)):
        return os.fdopen(os.dup(STDOUT), "wb")
    return out.open("wb")


def _chunks(lines: Iterator[Line]) -> Iterator[Chunk]:
    pending: list[Line] = []
    try:
        for line in lines:
            pending.append(line)
            if len(pending) == LINES_AT_ONCE:
                yield Chunk(pending)
                pending = []
    except DataError as error:
        yield Chunk(pending, error)
        return
    if pending:
        yield Chunk(pending)


def _config(options: ScoreOptions, source: Source) -> Plain:
    """The settings that determine the output. A run resumes an earlier one only if all of them are
    equal."""
    names = [*names_of(ModelOptions), "columns", "best", "allow", "weigh"]
    settings = {name: getattr(options, name) for name in names}
    status = options.file.stat() if options.file else None
    # size and time show that the file changed, without reading it
    file = [str(options.file), status.st_size, status.st_mtime_ns] if status else None
    return {"model": sources.fingerprint(source), **settings, "file": file}


def _begin(out: Path, options: ScoreOptions, source: Source, peers: Peers) -> folders.Output:
    """Begin the folder of parts beside the file. It keeps the complete parts of a killed run."""
    folder = out.with_name(f"{out.name}.partial")
    if peers.is_first:
        output = folders.begin_scratch(
            folder,
            step="score",
            config=_config(options, source),
            # standard input and pipes cannot be read again
            resume=options.file is not None and options.file.is_file(),
        )
    peers.wait()
    return output if peers.is_first else folders.beside(folder)


def _write_stream(
    target: IO[bytes], chunks: Iterable[Chunk], write: Write, advance: console.Advance
) -> PartCounts:
    total = PartCounts()
    for chunk in chunks:
        _add(total, write(chunk, target), advance)
    return total


def _write_file(
    out: Path,
    parts: folders.Output,
    peers: Peers,
    chunks: Iterable[Chunk],
    write: Write,
    advance: console.Advance,
) -> PartCounts:
    """Write each chunk as a part, and join the parts at the end.

    A part holds the same lines in every run. The model therefore scores them in the same rows, and
    a resumed run, or one of several processes, writes the same bytes as an uninterrupted one. The
    counts of several processes are those of the first, until it joins the parts of all.
    """
    total, failure = PartCounts(), None
    with parts:
        if finished := len(list(parts.progress.glob("*.lines"))):
            logger.info("%s: continuing after %d lines", out, finished * LINES_AT_ONCE)

        # complete parts are not scored again
        names = []
        for number, chunk in enumerate(chunks):
            names.append(_part(number))
            if not peers.has(number):
                advance(len(chunk.lines), earlier=True)
                continue
            is_earlier = (parts.path / names[-1]).exists()
            counts = parts.part(names[-1], partial(_write_part, write, chunk))
            _add(total, msgspec.convert(counts, PartCounts), advance, earlier=is_earlier)
        peers.wait()
        if peers.is_first:
            failure = _join(parts, names, out)
    # only now, because the folder of the parts is gone
    if failure is not None:
        raise failure
    return total


def _join(parts: folders.Output, names: Sequence[str], out: Path) -> DataError | None:
    """Join the parts into the output. If Parquet cannot hold the rows, they are in a file of JSON
    lines, which the returned error names."""
    if not _is_parquet(out):
        parts.join(names, out)
        return None
    try:
        parts.join(names, out, parquet.write_lines)
    except DataError as error:
        lines = out.with_suffix(".jsonl")
        parts.join(names, lines)
        reason = str(error).partition(": ")[2].removesuffix(" Write JSON lines.")
        return DataError(out, f"{reason} All rows are in {lines}.")
    return None


def _part(number: int) -> str:
    return f"{PROGRESS}/{number:08}.lines"


def _add(
    total: PartCounts, counts: PartCounts, advance: console.Advance, *, earlier: bool = False
) -> None:
    total.lines += counts.lines
    total.errors += counts.errors
    total.of_earlier_run += counts.lines if earlier else 0
    advance(counts.lines, earlier=earlier)


def _write_part(write: Write, chunk: Chunk, aside: Path) -> Plain:
    with aside.open("wb") as file:
        return asdict(write(chunk, file))
