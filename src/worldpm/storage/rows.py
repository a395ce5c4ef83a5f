"""Rows of tables from other sources: Parquet, CSV, JSON and JSON lines; all but Parquet may be
compressed (`.gz`, `.zst`).

A file of JSON lines has one row per line:

    {"prompt": "How?", "chosen": "So.", "rejected": "No."}
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from worldpm.errors import DataError
from worldpm.storage import parquet

Row = Mapping[str, object]
"""A row from another source: its values must be checked before they are used."""
Numbered = tuple[int, Any]
"""A row with the number of its line, or of the row in a format without lines, from 1."""

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
TABLES = (".csv", ".csv.gz", ".csv.zst")
LISTS = (".json", ".json.gz", ".json.zst")
SUFFIXES = (".parquet", *LINES, *LISTS)
COMPRESSED = (".gz", ".zst")
LARGEST_CELL = 1 << 26
"""Most characters in a cell of a CSV file; the library's default is too small for long texts."""


def read(path: Path, *, nan: bool = False) -> Iterator[Any]:
    """The rows of a Parquet file, of JSON lines, or of a JSON list; a JSON object of lists gives
    their entries in turn.

    A CSV file gives rows of text, by the names of its first line; an empty cell is None.

    JSON lines and Parquet are streamed. Only strings are checked: unpaired surrogates are rejected,
    because they cannot be encoded. `nan` allows NaN and infinity, which standard JSON forbids and
    some files use for missing values.

    Raises:
        DataError: If it cannot be read; a bad line is named.
    """
    return (row for _, row in numbered(path, nan=nan))


def numbered(path: Path, *, nan: bool = False, as_written: bool = False) -> Iterator[Numbered]:
    """The rows as `read` gives them, with their numbers; `as_written` leaves the cells of a CSV
    file as they are.

    Raises:
        DataError: If it cannot be read; a bad line is named.
    """
    kind = _kind(path)
    if kind == ".parquet":
        yield from enumerate(parquet.read_rows(path), start=1)
    elif kind == ".csv":
        yield from _rows_of_csv(path, as_written)
    else:
        yield from _rows_of_json(path, nan)


def count(path: Path) -> int:
    """The number of rows, from the footer of a Parquet file or by reading another file once.

    Raises:
        DataError: If it cannot be read.
    """
    if _kind(path) == ".parquet":
        return parquet.count_rows(path)
    if not _is_lines(path):
        return sum(1 for _ in numbered(path))

    # lines are counted without parsing, which takes ten times as long
    with _opened(path) as file:
        return sum(1 for line in file if line.strip())


def numbered_lines(
    source: Iterable[bytes], name: Path | str, *, nan: bool = False
) -> Iterator[Numbered]:
    """The rows of JSON lines; empty lines are left out.

    Raises:
        DataError: If a line is not JSON; it is named.
    """
    for number, line in enumerate(source, start=1):
        if line.strip():
            yield number, _parse(line, name, number, nan)


def renamed(row: Any, columns: Mapping[str, str], path: Path | str, number: int) -> Any:
    """A row with other names of columns replaced by ours; `columns` maps our names to them.

    Raises:
        DataError: If the row lacks one of them.
    """
    if not columns or not isinstance(row, dict):
        return row

    if missing := [name for name in columns.values() if name not in row]:
        raise DataError(
            path,
            f"lacks the column {missing[0]!r}, which --columns names for all files; it has"
            f" {', '.join(map(str, row))[:80]}",
            line=number,
        )
    # A name may be both theirs and ours for different columns, so remove all before adding any.
    others = {name: value for name, value in row.items() if name not in columns.values()}
    return {**others, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _kind(path: Path) -> str:
    """The suffix of a file's name, without a suffix for compression."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _is_lines(path: Path) -> bool:
    return ".jsonl" in path.suffixes


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, decompressed.

    Raises:
        DataError: If it is damaged or truncated.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as unzipped:
                yield cast(IO[bytes], unzipped)
        elif path.suffix == ".zst":
            # Arrow detects a truncated file, unlike the Zstandard library
            with (
                pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream,
                io.BufferedReader(stream) as buffered,
            ):
                yield buffered
        else:
            with path.open("rb") as file:
                yield file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"not readable ({error})") from error


def _rows_of_csv(path: Path, as_written: bool) -> Iterator[Numbered]:
    csv.field_size_limit(LARGEST_CELL)
    try:
        # utf-8-sig: spreadsheets begin their files with a byte order mark.
        with (
            _opened(path) as file,
            io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
        ):
            lines = csv.DictReader(text, strict=True)

            for row in lines:
                # DictReader puts extra cells under None, and None into missing ones.
                if None in row or None in row.values():
                    raise DataError(
                        path,
                        f"has more or fewer cells than the {len(lines.fieldnames or ())} names of"
                        " the first line",
                        line=lines.line_num,
                    )
                if not as_written:
                    row = {name: value.strip() or None for name, value in row.items()}
                yield lines.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"not readable as CSV ({error})") from error


def _rows_of_json(path: Path, nan: bool) -> Iterator[Numbered]:
    with _opened(path) as file:
        if _is_lines(path):
            yield from numbered_lines(file, path, nan=nan)
        else:
            yield from enumerate(_rows_of_text(file.read(), path, nan), start=1)


def _rows_of_text(text: bytes, path: Path, nan: bool) -> Iterator[Any]:
    """The rows of a `.json` file; some hold JSON lines in spite of their name."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(map(_is_object, lines)):
        for number, line in enumerate(lines, start=1):
            yield _parse(line, path, number, nan)
        return

    content = _parse(text, path, None, nan)
    if isinstance(content, list):
        yield from content
    elif isinstance(content, dict) and all(isinstance(rows, list) for rows in content.values()):
        for rows in content.values():
            yield from rows
    else:
        raise DataError(path, f"a {type(content).__name__}, not a list of rows")


def _is_object(line: bytes) -> bool:
    return line[:1] == b"{" and line.rstrip()[-1:] == b"}"


def _parse(text: bytes, path: Path | str, line: int | None, nan: bool) -> Any:
    try:
        content = json.loads(text, parse_constant=float if nan else _refuse)

        # An unpaired surrogate comes from a `\u` escape or from the byte ED, which `json` accepts.
        # Other texts need no check, which takes as long as the parsing.
        if b"\\u" in text or b"\xed" in text:
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except UnicodeEncodeError as error:
        raise DataError(
            path, "contains an unpaired surrogate. Fix the file's encoding.", line=line
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"not JSON ({error})", line=line) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")
