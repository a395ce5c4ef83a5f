"""JSON on disk: dataclasses out and in, whole files or nothing."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from worldpm.errors import DataError

Json = dict[str, Any]
"""An object of JSON whose keys are not ours: a row of a foreign file, a body, settings by name."""

Plain = Mapping[str, object]
"""Values on their way to JSON or Parquet: written, and never read by key."""

Record = TypeVar("Record")


def to_json(value: object) -> bytes:
    """Readable JSON of a dataclass or plain values, with a final newline.

    Raises:
        ValueError: If a number is NaN or infinite, which JSON cannot hold.
    """
    plain = msgspec.to_builtins(value, str_keys=True)
    return (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Json:
    """A JSON object of keys that the caller knows.

    Raises:
        DataError: If it is not JSON.
    """
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"not JSON ({error}); make the folder again") from error
    return content


def read_record(path: Path, record: type[Record]) -> Record:
    """A JSON file as the dataclass that `to_json` wrote.

    Raises:
        DataError: If it is not JSON, lacks a field, or has a value of another type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=record)
    except msgspec.ValidationError as error:
        raise DataError(path, f"lacks what it should hold ({error}). Make it again.") from error
    except msgspec.DecodeError as error:
        raise DataError(path, f"not JSON ({error}). Make it again.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, sync, rename: after a crash the file is the old or the new one, never half."""
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

    os.replace(aside, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk, so that a rename outlives a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
