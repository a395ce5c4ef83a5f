"""Files in 7z archives, decompressed while they are read, with checks against archives that do
harm."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import py7zr
from py7zr.io import Py7zIO, WriterFactory

from worldpm.errors import DataError

MAX_ENTRIES = 1_000
"""Most entries of an archive."""
MAX_BYTES = 1 << 40
"""Most bytes that an archive may unpack to."""
MAX_RATIO = 100
"""Largest ratio of an archive's unpacked size to its packed size."""


@contextmanager
def open_member(path: Path, member: str) -> Iterator[IO[bytes]]:
    """A file of an archive as a stream.

    Raises:
        DataError: If the archive has no such file, is damaged, or could do harm. The error of a
            damaged archive replaces the errors that its bytes cause.
    """
    # py7zr writes the decompressed bytes and the caller reads them, so a pipe connects them.
    size = size_of(path, member)
    reading, writing = os.pipe()
    failure: list[Exception] = []
    arguments = (path, member, writing, size, failure)
    worker = threading.Thread(target=_unpack, args=arguments, daemon=True)
    worker.start()

    try:
        with os.fdopen(reading, "rb") as pipe:
            try:
                yield pipe
            except DataError:
                # A damaged archive also gives bad content, and the archive's error is the better
                # message. Close the pipe first, because the thread would wait for a reader.
                pipe.close()
                worker.join()
                if failure:
                    raise failure[0] from None
                raise
    finally:
        worker.join()

    if failure:
        raise failure[0]


def members(path: Path) -> list[str]:
    """The names of an archive's files.

    Raises:
        DataError: If the archive is damaged.
    """
    return [str(entry.filename) for entry in _entries(path)]


def size_of(path: Path, member: str) -> int:
    """Bytes of a file of an archive, after a check that the list of entries is harmless."""
    entries = _entries(path)
    if len(entries) > MAX_ENTRIES:
        raise DataError(
            path,
            f"lists {len(entries)} entries, but a data dump has at most {MAX_ENTRIES}. Get the dump"
            " again.",
        )

    for entry in entries:
        # Paths of Windows have backslashes and drive letters.
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise DataError(
                path,
                f"contains an entry outside its folder ({entry.filename!r}). Get the dump again.",
            )

    # Checking the announced sizes is enough: `_PipeEnd` stops an archive that unpacks to more.
    total, packed = sum(entry.uncompressed for entry in entries), path.stat().st_size
    if total > MAX_BYTES or total > MAX_RATIO * packed:
        raise DataError(
            path,
            f"would unpack to {total} bytes from {packed}, more than {MAX_RATIO}:1 or 1 TiB. Get"
            " the dump again.",
        )

    sizes = [entry.uncompressed for entry in entries if entry.filename == member]
    if not sizes:
        names = ", ".join(sorted(entry.filename for entry in entries)[:5]) or "nothing"
        raise DataError(
            path, f"has no {member} (it contains {names}). Get the archive with this file."
        )
    return int(sizes[0])


def _entries(path: Path) -> list[Any]:
    """The list of an archive's entries."""
    try:
        with py7zr.SevenZipFile(path) as archive:
            if archive.needs_password():
                raise DataError(path, "is encrypted, but data dumps are not. Get the dump again.")
            return list(archive.list())
    except (
        py7zr.exceptions.ArchiveError,
        EOFError,
        OSError,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ) as error:
        # The decompressors raise OSError without a number; an error with a number is the disk's.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        path,
        f"the archive is damaged or truncated ({type(error).__name__}: {error}). Get it again.",
    )


def _unpack(path: Path, member: str, writing: int, size: int, failure: list[Exception]) -> None:
    """Decompress a file into the pipe; an error is added to `failure`, and the reader raises it."""
    try:
        with os.fdopen(writing, "wb") as pipe, py7zr.SevenZipFile(path) as archive:
            archive.extract(targets=[member], factory=_ToPipe(path, pipe, size))
    except BrokenPipeError:
        pass  # the reader stopped early and raises its own error
    except DataError as error:
        failure.append(error)
    except Exception as error:  # the decompressors raise errors of many kinds for damaged data
        failure.append(_damaged(path, error))


class _ToPipe(WriterFactory):
    """Factory that makes py7zr write to a pipe instead of a file."""

    def __init__(self, path: Path, pipe: IO[bytes], size: int) -> None:
        self._path, self._pipe, self._size = path, pipe, size

    def create(self, filename: str) -> Py7zIO:
        return _PipeEnd(self._path, self._pipe, self._size)


class _PipeEnd(Py7zIO):
    """Writer to a pipe of at most the bytes that the archive's list announced."""

    def __init__(self, path: Path, pipe: IO[bytes], size: int) -> None:
        self._path, self._pipe, self._remaining, self._size = path, pipe, size, size

    def write(self, s: bytes | bytearray) -> int:
        self._remaining -= len(s)
        if self._remaining < 0:
            raise DataError(
                self._path,
                f"unpacks to more than the {self._size} bytes that it announces. Get the dump"
                " again.",
            )
        return self._pipe.write(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def flush(self) -> None:
        self._pipe.flush()

    def size(self) -> int:
        return self._size - self._remaining
