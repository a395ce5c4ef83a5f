"""Find and describe the folder of a model, local or on the hub, without loading the model."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from worldpm.errors import CheckpointError, ConfigError, first_line
from worldpm.model import adapter_folders, gguf_files
from worldpm.model.adapter_folders import Adapter
from worldpm.model.description import (
    DESCRIPTION,
    Description,
    TrainingRecord,
    input_to_json,
    read_description,
)
from worldpm.options.shared import SourceOptions
from worldpm.storage.manifest import MANIFEST, Input, is_ours, read_manifest
from worldpm.storage.manifest import describe as describe_input

HUB_FILES = ("*.json", "*.jsonl", "*.jinja", "*.safetensors", "*.model", "merges.txt", "vocab.txt")
COMMIT = re.compile(r"[0-9a-f]{40}")
TOKENIZER_CONFIG = "tokenizer_config.json"
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
PACKAGED = {"worldpm/tiny-forum": "tiny-forum"}
"""Folders of the checkpoints in the package, by name; a folder of the user goes before them."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """The folder of a model: the user's, or a downloaded repository of the hub."""

    folder: Path
    """The folder, or a GGUF file, which contains a whole model."""
    remote_code: bool = False
    """Run Python code in the folder; only for a pinned commit."""
    chat_template: str | None = None
    """A file, or a name in `chat.TEMPLATES`; the tokenizer's template unless given."""
    template_name: str | None = None
    """Name of a template of a tokenizer that has several; `default` unless given."""
    base: "Source | None" = None
    """The model that the adapter in the folder was trained on; None for a whole model."""

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file, and not a folder."""
        return self.folder.suffix == gguf_files.SUFFIX and self.folder.is_file()

    @property
    def with_tokenizer(self) -> Self:
        """The folder of tokenizer and `worldpm.json`: for an adapter without a tokenizer, the
        folder of the base model."""
        if self.base is None or (self.folder / TOKENIZER_CONFIG).is_file():
            return self
        return replace(self, folder=self.base.folder, base=None)


def find(
    model: str | Path,
    *,
    revision: str | None = None,
    remote_code: bool = False,
    chat_template: str | None = None,
    template_name: str | None = None,
    files: Sequence[str] = HUB_FILES,
) -> Source:
    """Find a folder of a model, a GGUF file, a checkpoint of the package (`worldpm/tiny-forum`), or
    a hub id, whose files that match `files` are downloaded once. An adapter is found with its base
    model.

    Raises:
        ConfigError: If it is none of them, is not finished, was made by another step than `train`,
            or remote code was requested without a pinned commit.
        CheckpointError: If the hub has no such repository, or does not answer, or the base model of
            an adapter is missing.
    """
    if remote_code and not COMMIT.fullmatch(revision or ""):
        raise ConfigError(
            "--remote-code: runs Python code of the model's repository. Read the code at a commit,"
            " and name this commit with --revision, with all 40 digits."
        )

    if (folder := Path(model)).exists():
        if revision is not None and not remote_code:
            raise ConfigError(
                f"--revision {revision}: {model} is a folder or file, which has no revisions. Leave"
                " it out, or name a hub id."
            )
        if folder.is_file():
            return _file(folder, chat_template, template_name)
        source = _finished(Source(folder, remote_code, chat_template, template_name))
        # nothing is downloaded unless the user names a hub id
        return _with_base(source, files, here=True)

    if str(model) in PACKAGED:
        packaged = CHECKPOINTS / PACKAGED[str(model)]
        return find(
            packaged, revision=revision, chat_template=chat_template, template_name=template_name
        )
    if not _is_hub_id(str(model)):
        raise ConfigError(
            f"{model}: no such folder, and not a hub id (OWNER/NAME). `worldpm train` makes a"
            " folder."
        )
    patterns = [*files, "*.py"] if remote_code else list(files)
    folder = _download(str(model), revision, patterns)
    return _with_base(Source(folder, remote_code, chat_template, template_name), files, here=False)


def _file(path: Path, chat_template: str | None, template_name: str | None) -> Source:
    """A model that is one file.

    Raises:
        ConfigError: If it is not a GGUF file, or the package that reads GGUF is not installed.
        CheckpointError: If it is damaged.
    """
    if path.suffix != gguf_files.SUFFIX:
        raise ConfigError(f"{path}: is a file, but not a GGUF file. Name the folder of the model.")
    gguf_files.check(path)
    return Source(path, chat_template=chat_template, template_name=template_name)


def _with_base(source: Source, files: Sequence[str], *, here: bool) -> Source:
    """The source with the base model, if its folder has an adapter; `here` looks only in folders
    and in the hub's cache.

    Raises:
        CheckpointError: If the base model is missing, or is also an adapter.
    """
    if not (source.folder / adapter_folders.CONFIG).is_file():
        return source

    adapter = Adapter.read(source.folder)
    name = adapter.config.base_model_name_or_path
    base = _base(adapter, files, here=here)
    if base is None:
        download = f"Download it (`hf download {name}`), or name" if _is_hub_id(name) else "Name"
        raise CheckpointError(
            f"{source.folder}: an adapter of the base model {name}, which is neither a folder nor"
            f" in the hub's cache. {download} its folder as base_model_name_or_path in"
            f" {adapter_folders.CONFIG}."
        )
    if (base.folder / adapter_folders.CONFIG).is_file():
        raise CheckpointError(
            f"{source.folder}: its base model {name} is also an adapter. First merge that adapter"
            " into its base model, with PEFT's merge_and_unload."
        )
    return replace(source, base=base)


def _base(adapter: Adapter, files: Sequence[str], *, here: bool) -> Source | None:
    """The base model of an adapter; None if it is missing."""
    name = adapter.config.base_model_name_or_path
    # PEFT looks in the working directory; a folder may have been moved with its adapter
    for path in (Path(name), adapter.folder / name):
        if path.is_file():
            return _file(path, None, None)
        # the working directory may contain an unrelated folder of that name
        if any((path / file).is_file() for file in ("config.json", adapter_folders.CONFIG)):
            return _finished(Source(path))

    if not _is_hub_id(name):
        return None
    try:
        return Source(_download(name, adapter.config.revision, list(files), here=here))
    except CheckpointError:
        if here:
            return None
        raise


def _finished(source: Source) -> Source:
    """Check that a folder of this project is finished, and return the source; folders of other
    programs have no manifest to check."""
    if is_ours(source.folder) or (source.folder / DESCRIPTION).exists():
        read_manifest(source.folder, made_by="train|export")
    return source


def _is_hub_id(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not name.startswith(".")


def of(model: str | Path, options: SourceOptions) -> Source:
    """The folder of a model, by the options of a verb; raises as `find` does."""
    return find(
        model,
        revision=options.revision,
        remote_code=options.remote_code,
        chat_template=options.chat_template,
        template_name=options.template_name,
    )


def _download(
    hub_id: str, revision: str | None, patterns: list[str], *, here: bool = False
) -> Path:
    """The folder of a repository in the hub's cache; `here` downloads nothing."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=patterns, local_files_only=here
        )
        return Path(folder)
    # errors of the hub, the network and the disk share no class
    except Exception as error:
        raise CheckpointError(
            f"{hub_id}: no such folder, and the hub did not deliver it ({first_line(error)}). Check"
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
    """The model as an input of a manifest: a folder by its manifest, or else by the contents of its
    files; an adapter with its base model."""
    if source.base is not None:
        parts = [fingerprint(replace(source, base=None)), fingerprint(source.base)]
        return _together(parts, name=source.folder.resolve().name)
    if source.is_gguf or (source.folder / MANIFEST).is_file():
        return describe_input(source.folder)

    paths = [path for path in sorted(source.folder.iterdir()) if path.is_file()]
    files = [describe_input(path) for path in paths]
    return _together(files, name=source.folder.resolve().name)


def _together(parts: Sequence[Input], *, name: str) -> Input:
    """Several inputs as one."""
    contents = json.dumps([input_to_json(part) for part in parts])
    return Input(
        name=name,
        bytes=sum(part.bytes or 0 for part in parts),
        sha256=hashlib.sha256(contents.encode()).hexdigest(),
    )
