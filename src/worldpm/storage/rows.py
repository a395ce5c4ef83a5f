"""Rows of other people's tables: Parquet, CSV, JSON and JSON lines, the last two also gzipped.

A file of JSON lines holds one row a line:

    {"prompt": "How?", "chosen": "So.", "rejected": "No."}
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from worldpm.errors import DataError
from worldpm.storage import parquet

Row = Mapping[str, object]
"""An object in a file of others: its values must be checked before they are used."""

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")


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
    if path.suffix == ".parquet":
        yield from parquet.read_rows(path)
    elif path.suffix == ".csv":
        yield from _rows_of_csv(path)
    else:
        yield from _rows_of_json(path, nan)


def _rows_of_csv(path: Path) -> Iterator[dict[str, str | None]]:
    try:
        # utf-8-sig: spreadsheets begin their files with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, strict=True)

            for row in lines:
                # DictReader puts extra cells under None, and None into missing ones.
                if None in row or None in row.values():
                    raise DataError(
                        path,
                        f"has more or fewer cells than the {len(lines.fieldnames or ())} names of"
                        " the first",
                        line=lines.line_num,
                    )
                yield {name: value.strip() or None for name, value in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, f"not readable as CSV ({error})") from error


def _rows_of_json(path: Path, nan: bool) -> Iterator[Any]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            if ".jsonl" not in path.suffixes:
                yield from _rows_of_text(file.read(), path, nan)
                return

            for number, line in enumerate(cast(Iterable[bytes], file), start=1):
                if line.strip():
                    yield _parse(line, path, number, nan)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"not readable ({error})") from error


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


def _parse(text: bytes, path: Path, line: int | None, nan: bool) -> Any:
    try:
        content = json.loads(text, parse_constant=float if nan else _refuse)

        # An unpaired surrogate comes from a `\u` escape or from the byte ED, which `json` lets
        # pass; other texts are spared the encoding, which takes as long as the parsing.
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
