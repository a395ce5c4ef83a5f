"""Lines of JSON in forum dumps: plain, gzipped or compressed with Zstandard, streamed, of any
length.

    {"id": "s1", "title": "Why?", "score": 9}
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, TypeGuard

import zstandard

from worldpm.errors import DataError
from worldpm.storage.rows import Row

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".zst")
WINDOW_BYTES = 2**31
"""Largest window of Zstandard: the dumps of Reddit need it."""
CHUNK_BYTES = 1 << 20
"""Text that is read at a time."""
COMPRESSED_CHUNK_BYTES = 1 << 10
"""Compressed bytes that are read at a time. Few, because a block of 4 bytes can unpack to 128 KiB
of one letter."""
LINE_LIMIT_BYTES = 1 << 26
"""Longer lines are dropped and never completely in memory."""
BROKEN_SHARE, BROKEN_COUNT = 0.01, 10
"""At its end, a file is rejected if its broken lines exceed both this share and this number."""
FORMAT_CHECK_LINES = 1000
"""From this line on, a file is rejected at once if more than half of its lines are broken: it has
another format."""
LINES_A_REPORT = 1000
"""Lines between two calls of `advance`."""


def is_lines(path: Path) -> bool:
    """Whether the file's name has an ending of JSON lines."""
    return path.name.endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The file's name without the ending of JSON lines."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


def is_text(value: str) -> bool:
    """Whether a string of JSON can be encoded: a string with an unpaired surrogate cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value is an integer that fits a table."""
    # JSON's true and false are integers to Python, and a column holds 64 bits.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def read(path: Path, drops: Counter[str], advance: Callable[[int], object] = int) -> Iterator[Row]:
    """The objects of the lines, in order; broken and over-long lines are counted in `drops`.

    `advance` is called with numbers of bytes of the file that were read.

    Raises:
        DataError: If the file is truncated or damaged, or too many lines are broken. Rows before
            the fault are yielded first.
    """
    lines = broken = 0

    with path.open("rb") as file, _open(path, file) as stream:
        reported = 0
        for line in _lines(path, stream, drops):
            lines += 1
            # Progress is counted in bytes, because the number of lines is unknown.
            if lines % LINES_A_REPORT == 0:
                advance(file.tell() - reported)
                reported = file.tell()
            if not line.strip():
                continue

            row = _object(line)
            if row is not None:
                yield row
                continue

            broken += 1
            drops["line that is not a JSON object"] += 1
            _check_format(path, broken, lines)

        _check_share(path, broken, lines)
        advance(file.tell() - reported)


def _check_format(path: Path, broken: int, lines: int) -> None:
    """Reject a file of another format early, after `lines` lines."""
    if lines >= FORMAT_CHECK_LINES and broken > lines / 2:
        raise DataError(
            path,
            f"{broken} of the first {lines} lines are not JSON objects. Check the file's format.",
            line=lines,
        )


def _check_share(path: Path, broken: int, lines: int) -> None:
    """Reject a file with too many broken lines, at its end."""
    # A few broken lines of a short file exceed the share, but do not show that it is damaged.
    if broken > BROKEN_COUNT and broken > BROKEN_SHARE * lines:
        raise DataError(
            path,
            f"{broken} of {lines} lines are not JSON objects, more than {BROKEN_SHARE:.0%}. Correct"
            " or remove them.",
        )


def _object(line: bytes) -> Row | None:
    """The object of a line, or None if the line is broken or has another value."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the latter for thousands of nested brackets
        return None
    return row if isinstance(row, dict) else None


class _Stream(Protocol):
    """A source of text."""

    def read(self, size: int, /) -> bytes: ...


class _Frames:
    """The text of a file of Zstandard frames. The library's reader does not detect a truncated
    file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        self._frame = self._decompressor.decompressobj()
        self._begun = False

    def read(self, size: int, /) -> bytes:
        """About `size` bytes of text, and at most 32 MiB more; empty at the end.

        Raises:
            EOFError: If the last frame is truncated.
        """
        pieces: list[bytes] = []
        length = 0

        while length < size and (compressed := self._file.read(COMPRESSED_CHUNK_BYTES)):
            text = self._decompress(compressed)
            pieces += text
            length += sum(map(len, text))

        # The file has ended; an empty file has no frame, and is not truncated.
        if not length and self._begun and not self._frame.eof:
            raise EOFError("the last frame is truncated")
        return b"".join(pieces)

    def _decompress(self, compressed: bytes) -> list[bytes]:
        """The text of some bytes of the file, which may end a frame and begin others."""
        pieces = []

        while compressed:
            # A file may have many frames, one after another.
            if self._frame.eof:
                self._frame = self._decompressor.decompressobj()
            self._begun = True
            pieces.append(self._frame.decompress(compressed))
            compressed = self._frame.unused_data if self._frame.eof else b""

        return pieces


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
    """Lines without their ends; lines over the limit are skipped and counted."""
    pending, skipping, text_bytes = b"", False, 0

    while chunk := _chunk(path, stream, text_bytes):
        text_bytes += len(chunk)
        first, *rest = chunk.split(b"\n")
        too_long = len(pending) + len(first) > LINE_LIMIT_BYTES

        if not rest:
            # The line continues in the next chunk. A line that is too long is not kept.
            skipping = skipping or too_long
            pending = b"" if too_long else pending + first
            continue

        if skipping or too_long:
            drops["line longer than 64 MiB"] += 1
        else:
            yield pending + first
        yield from rest[:-1]
        pending, skipping = rest[-1], False

    if skipping:
        drops["line longer than 64 MiB"] += 1
    elif pending:
        yield pending


def _chunk(path: Path, stream: _Stream, text_bytes: int) -> bytes:
    """The next chunk of text, after `text_bytes` bytes."""
    try:
        return stream.read(CHUNK_BYTES)
    except (zstandard.ZstdError, zlib.error, OSError, EOFError) as error:
        raise DataError(
            path,
            f"damaged or truncated after {text_bytes:,} bytes of text ({error}). Download it"
            " again.",
        ) from error
