"""Rows of tables that others wrote: Parquet, CSV, JSON and JSON lines, the latter gzipped or
not."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from worldpm.errors import DataError
from worldpm.storage import parquet

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")


def read(path: Path, *, nan: bool = False) -> Iterator[Any]:
    """The rows of a Parquet file, of JSON lines, or of a JSON list; a JSON object of lists gives
    their entries in turn.

    A CSV file gives rows of text, by the names of its first line; an empty cell is None.

    JSON lines and Parquet are streamed. Of what stands in a row only texts are looked at: half of a
    surrogate pair, which JSON can write, is no character, and no tokenizer or file could take it.
    NaN and infinity, which are no JSON, are read if `nan`, as some write them for what is missing.

    Raises:
        DataError: If it cannot be read; a bad line is named.
    """
    if path.suffix == ".parquet":
        yield from parquet.read_rows(path)
        return
    if path.suffix == ".csv":
        yield from _of_csv(path)
        return
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            if ".jsonl" in path.suffixes:
                for number, line in enumerate(cast(Iterable[bytes], file), start=1):
                    if line.strip():
                        yield _parse(line, path, number, nan)
            else:
                yield from _whole(file.read(), path, nan)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"not readable ({error})") from error


def _of_csv(path: Path) -> Iterator[dict[str, str | None]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in (lines := csv.DictReader(file, strict=True)):
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


def _whole(text: bytes, path: Path, nan: bool) -> Iterator[Any]:
    """The rows of a `.json` file; some hold JSON lines in spite of their name."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line[:1] == b"{" and line.rstrip()[-1:] == b"}" for line in lines):
        yield from (_parse(line, path, number, nan) for number, line in enumerate(lines, start=1))
        return
    content = _parse(text, path, None, nan)
    if isinstance(content, list):
        yield from content
    elif isinstance(content, dict) and all(
        isinstance(entries, list) for entries in content.values()
    ):
        for entries in content.values():
            yield from entries
    else:
        raise DataError(path, f"a {type(content).__name__}, not a list of rows")


def _parse(text: bytes, path: Path, line: int | None, nan: bool) -> Any:
    try:
        found = json.loads(text, parse_constant=float if nan else _refuse)
        if (
            b"\\u" in text or b"\xed" in text
        ):  # JSON's way to write one, and the bytes that json takes for one
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeEncodeError as error:
        raise DataError(
            path, "holds half of a surrogate pair, which is no character; mend it", line=line
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"not JSON ({error})", line=line) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
