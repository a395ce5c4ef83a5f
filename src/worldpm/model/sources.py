"""Where a model comes from, found and told apart without loading it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldpm.errors import CheckpointError, ConfigError, first_line
from worldpm.storage import folders

DESCRIPTION = "worldpm.json"
HUB_FILES = ("*.json", "*.jsonl", "*.jinja", "*.safetensors", "*.model", "merges.txt", "vocab.txt")
Json = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a folder here, or a repository of the hub at a revision."""

    folder: Path
    remote_code: bool = False
    """Run the folder's own Python; only for a pinned commit."""


def find(
    place: str | Path,
    *,
    revision: str | None = None,
    remote_code: bool = False,
    files: Sequence[str] = HUB_FILES,
) -> Source:
    """The folder of a model, or of a hub id's files that match, downloaded once.

    Raises:
        ConfigError: If it is neither, is not finished, was made by another step than `train`, or
            remote code was asked for without a pinned commit.
        CheckpointError: If the hub has no such repository, or does not answer.
    """
    if remote_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ConfigError(
            "--remote-code runs a stranger's Python: name the commit that you read, all 40 digits,"
            " with --revision"
        )
    if (folder := Path(place)).is_dir():
        if revision is not None and not remote_code:
            raise ConfigError(
                f"--revision {revision}: {place} is a folder, which has none; leave it out, or name"
                " a hub id"
            )
        if folders.is_ours(folder) or (folder / DESCRIPTION).exists():
            folders.manifest(folder, made_by="train|export")
        return Source(folder, remote_code)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(place)) or str(place).startswith("."):
        raise ConfigError(
            f"{place}: no such folder, and no hub id (OWNER/NAME); `worldpm train` makes one"
        )
    from huggingface_hub import snapshot_download

    patterns = [*files, *(["*.py"] if remote_code else [])]
    try:
        return Source(
            Path(snapshot_download(str(place), revision=revision, allow_patterns=patterns)),
            remote_code,
        )
    except Exception as error:  # the hub's errors have many classes; none of them is ours
        raise CheckpointError(
            f"{place}: no folder here, and the hub did not give it ({first_line(error)})"
        ) from error


def temperature_of(source: Source) -> float | None:
    """What margins are to be divided by to become log odds, as fitted on validation preferences;
    None where that is not known."""
    return (
        describe(source.folder).get("temperature")
        if (source.folder / DESCRIPTION).is_file()
        else None
    )


def training_of(source: Source) -> Json | None:
    """Of which run a checkpoint is, its size, and the data and operations it took until then; None
    where that is not known."""
    return (
        describe(source.folder).get("training") if (source.folder / DESCRIPTION).is_file() else None
    )


def fingerprint(source: Source) -> Json:
    """The folder as an input of a manifest: by its own manifest, or else by the contents of its
    files."""
    if (source.folder / folders.MANIFEST).is_file():
        return folders.describe(source.folder)
    files = [folders.describe(path) for path in sorted(source.folder.iterdir()) if path.is_file()]
    digest = hashlib.sha256(json.dumps(files).encode())
    return {
        "name": source.folder.resolve().name,
        "bytes": sum(file["bytes"] for file in files),
        "sha256": digest.hexdigest(),
    }


def describe(folder: Path) -> Json:
    """The contents of a checkpoint's `worldpm.json`.

    Raises:
        CheckpointError: If it cannot be read or lacks something.
    """
    path = folder / DESCRIPTION
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable ({error})") from error
    needed = ("template_hash", "end_token", "empty_system", "max_length", "prompt_length")
    if missing := [key for key in needed if key not in content]:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}")
    return content
