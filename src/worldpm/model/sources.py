"""The folder of a model, here or on the hub: found and described without loading the model."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worldpm.errors import CheckpointError, ConfigError, first_line
from worldpm.model.description import (
    DESCRIPTION,
    Description,
    TrainingRecord,
    input_to_json,
    read_description,
)
from worldpm.storage.manifest import MANIFEST, Input, is_ours, read_manifest
from worldpm.storage.manifest import describe as describe_input

HUB_FILES = ("*.json", "*.jsonl", "*.jinja", "*.safetensors", "*.model", "merges.txt", "vocab.txt")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """The folder of a model: the user's, or a downloaded repository of the hub."""

    folder: Path
    remote_code: bool = False
    """Run the folder's own Python; only for a pinned commit."""


def find(
    model: str | Path,
    *,
    revision: str | None = None,
    remote_code: bool = False,
    files: Sequence[str] = HUB_FILES,
) -> Source:
    """The folder of a model, or of a hub id's files that match `files`, downloaded once.

    Raises:
        ConfigError: If it is neither, is not finished, was made by another step than `train`, or
            remote code was asked for without a pinned commit.
        CheckpointError: If the hub has no such repository, or does not answer.
    """
    if remote_code and not COMMIT.fullmatch(revision or ""):
        raise ConfigError(
            "--remote-code: it runs the Python of the model's repository. Read a commit of it, and"
            " name that with --revision, all 40 digits."
        )

    if (folder := Path(model)).is_dir():
        if revision is not None and not remote_code:
            raise ConfigError(
                f"--revision {revision}: {model} is a folder, which has none. Leave it out, or name"
                " a hub id."
            )
        # folders of other programs have no manifest to check
        if is_ours(folder) or (folder / DESCRIPTION).exists():
            read_manifest(folder, made_by="train|export")
        return Source(folder, remote_code)

    if not HUB_ID.fullmatch(str(model)) or str(model).startswith("."):
        raise ConfigError(
            f"{model}: no such folder, and no hub id (OWNER/NAME); `worldpm train` makes one"
        )
    patterns = [*files, "*.py"] if remote_code else list(files)
    return Source(_download(str(model), revision, patterns), remote_code)


def _download(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    # the hub's errors, the network's and the disk's share no class
    except Exception as error:
        raise CheckpointError(
            f"{hub_id}: no such folder, and the hub did not give it ({first_line(error)}). Check"
            " the name and the network."
        ) from error


def temperature_of(source: Source) -> float | None:
    """The divisor that turns margins into log odds, fitted on validation preferences; None if
    unknown."""
    description = _description_if_any(source)
    return description.temperature if description else None


def training_of(source: Source) -> TrainingRecord | None:
    """The run, size, data and operations of a checkpoint; None if unknown."""
    description = _description_if_any(source)
    return description.training if description else None


def _description_if_any(source: Source) -> Description | None:
    if not (source.folder / DESCRIPTION).is_file():
        return None
    return read_description(source.folder)


def fingerprint(source: Source) -> Input:
    """The folder as an input of a manifest: by its own manifest, or else by the contents of its
    files."""
    if (source.folder / MANIFEST).is_file():
        return describe_input(source.folder)

    paths = [path for path in sorted(source.folder.iterdir()) if path.is_file()]
    files = [describe_input(path) for path in paths]
    contents = json.dumps([input_to_json(file) for file in files])
    return Input(
        name=source.folder.resolve().name,
        bytes=sum(file.bytes or 0 for file in files),
        sha256=hashlib.sha256(contents.encode()).hexdigest(),
    )
