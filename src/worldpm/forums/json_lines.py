"""Lines of JSON as forums' dumps have them: plain, gzipped or compressed with Zstandard, streamed,
of any length."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import zstandard

from worldpm.errors import DataError

Json = dict[str, Any]

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".zst")
WINDOW = 2**31
"""The largest window of Zstandard: the dumps of Reddit need it."""
CHUNK = 1 << 20
SIP = 1 << 10
"""Compressed bytes at a time: a block of 4 may stand for 128 KiB of one letter."""
LONGEST = 1 << 26
"""Bytes of a line; a longer one is left out without being held."""
BROKEN_SHARE, BROKEN_FREE = 0.01, 10
"""More broken lines than this share of all, and than that many, are an error, told at the end of
the file."""
HOPELESS = 1000
"""A file of which more than half of the first so many lines are broken is of another format, and
told at once."""


def is_lines(path: Path) -> bool:
    """Whether the name is that of such a file."""
    return path.name.endswith(SUFFIXES)


def is_text(value: str) -> bool:
    """Whether a string of JSON can be written: a lone half of a surrogate pair cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_count(value: object) -> bool:
    """Whether a number is a whole one that fits a table."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def read(path: Path, drops: Counter[str], advance: Callable[[int], object] = int) -> Iterator[Json]:
    """The objects of the lines, in order; broken and over-long lines are counted in `drops`.
    `advance` is told the bytes of the file.

    Raises:
        DataError: If the file is cut or damaged, or too many lines are broken; those before were
            given.
    """
    lines = broken = 0
    with path.open("rb") as file, _open(path, file) as stream:
        told = 0
        for line in _lines(path, stream, drops):
            lines += 1
            if lines % 1000 == 0:
                advance(file.tell() - told)
                told = file.tell()
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
                continue
            broken += 1
            drops["line that is no JSON object"] += 1
            if lines >= HOPELESS and broken > lines / 2:
                raise DataError(
                    path,
                    f"{broken} of the first {lines} lines are no JSON objects; is it another"
                    " format?",
                    line=lines,
                )
        if broken > BROKEN_FREE and broken > BROKEN_SHARE * lines:
            raise DataError(
                path,
                f"{broken} of {lines} lines are no JSON objects, more than {BROKEN_SHARE:.0%}; mend"
                " or leave them out",
            )
        advance(file.tell() - told)


class _Stream(Protocol):
    """What text is read from."""

    def read(self, size: int, /) -> bytes: ...


class _Frames:
    """The text of a file of Zstandard frames; the library's own reader takes a cut file for a whole
    one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        self._frame = self._decompressor.decompressobj()
        self._begun = False

    def read(self, size: int, /) -> bytes:
        """About so much text, and at most 32 MiB more; empty at the end.

        Raises:
            EOFError: If the last frame is cut.
        """
        pieces, held = [], 0
        while held < size and (compressed := self._file.read(SIP)):
            while compressed:
                if self._frame.eof:
                    self._frame = self._decompressor.decompressobj()
                self._begun = True
                pieces.append(self._frame.decompress(compressed))
                held += len(pieces[-1])
                compressed = self._frame.unused_data if self._frame.eof else b""
        if not held and self._begun and not self._frame.eof:
            raise EOFError("the last frame is cut")
        return b"".join(pieces)


@contextmanager
def _open(path: Path, file: IO[bytes]) -> Iterator[_Stream]:
    if path.suffix == ".zst":
        yield _Frames(file)
    elif path.suffix == ".gz":
        with gzip.open(file) as stream:
            yield stream
    else:
        yield file


def _lines(path: Path, stream: _Stream, drops: Counter[str]) -> Iterator[bytes]:
    """Lines without their ends; what is longer than LONGEST is skipped and counted."""
    held, skipping, read_bytes = b"", False, 0
    while chunk := _chunk(path, stream, read_bytes):
        read_bytes += len(chunk)
        first, *rest = chunk.split(b"\n")
        if not rest:
            held, skipping = (
                (b"", True) if len(held) + len(first) > LONGEST else (held + first, skipping)
            )
            continue
        if skipping or len(held) + len(first) > LONGEST:
            drops["line longer than 64 MiB"] += 1
        else:
            yield held + first
        yield from rest[:-1]
        held, skipping = rest[-1], False
    if skipping:
        drops["line longer than 64 MiB"] += 1
    elif held:
        yield held


def _chunk(path: Path, stream: _Stream, before: int) -> bytes:
    try:
        return stream.read(CHUNK)
    except (zstandard.ZstdError, zlib.error, OSError, EOFError) as error:
        raise DataError(
            path, f"damaged or cut after {before:,} bytes of text ({error}); download it again"
        ) from error
