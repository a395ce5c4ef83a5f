"""JSON files: dataclasses are written atomically and read back."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from worldpm.errors import DataError

Json = dict[str, Any]
"""A JSON object whose keys others define: a row of their file, a body, settings by name."""

Plain = Mapping[str, object]
"""Values to write as JSON or Parquet; they are never read by key."""

Record = TypeVar("Record")


def to_json(value: object) -> bytes:
    """Readable JSON of a dataclass or plain values, with a final newline.

    Raises:
        ValueError: If a number is NaN or infinite, which JSON cannot hold.
    """
    plain = msgspec.to_builtins(value, str_keys=True)
    return (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Json:
    """Read a JSON object; the caller checks its keys.

    Raises:
        DataError: If it is not JSON.
    """
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"not JSON ({error}); make the folder again") from error
    return content


def read_record(path: Path, record: type[Record]) -> Record:
    """Read a JSON file as the dataclass that `to_json` wrote.

    Raises:
        DataError: If it is not JSON, lacks a field, or has a value of another type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=record)
    except msgspec.ValidationError as error:
        raise DataError(
            path, f"lacks a value or has a wrong one ({error}). Make it again."
        ) from error
    except msgspec.DecodeError as error:
        raise DataError(path, f"not JSON ({error}). Make it again.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file, sync and rename it: a crash leaves the old or the new content."""
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

    os.replace(aside, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk, so that a rename survives a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
