"""The folder of a model, here or on the hub: found and described without loading the model."""

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
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """The folder of a model: the user's, or a downloaded repository of the hub."""

    folder: Path
    """Or a GGUF file, which holds all of a model."""
    remote_code: bool = False
    """Run the folder's own Python; only for a pinned commit."""
    chat_template: str | None = None
    """A file, or a name of `chat.TEMPLATES`; the tokenizer's own unless given."""
    template_name: str | None = None
    """Which of the tokenizer's templates, if it has several; `default` unless given."""
    base: "Source | None" = None
    """The model that the adapter in the folder was trained on; None for a whole model."""

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file, and not a folder."""
        return self.folder.suffix == gguf_files.SUFFIX and self.folder.is_file()

    @property
    def with_tokenizer(self) -> Self:
        """The folder of tokenizer and `worldpm.json`: that of the base model for an adapter without
        a tokenizer."""
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
    """The folder of a model, a GGUF file, or the folder of a hub id's files that match `files`,
    downloaded once; with the base model if the folder has an adapter.

    Raises:
        ConfigError: If it is none of them, is not finished, was made by another step than `train`,
            or remote code was asked for without a pinned commit.
        CheckpointError: If the hub has no such repository, or does not answer, or the base model of
            an adapter is not here.
    """
    if remote_code and not COMMIT.fullmatch(revision or ""):
        raise ConfigError(
            "--remote-code: it runs the Python of the model's repository. Read a commit of it, and"
            " name that with --revision, all 40 digits."
        )

    if (folder := Path(model)).exists():
        if revision is not None and not remote_code:
            raise ConfigError(
                f"--revision {revision}: {model} is a folder or file, which has none. Leave it out,"
                " or name a hub id."
            )
        if folder.is_file():
            return _file(folder, chat_template, template_name)
        source = _finished(Source(folder, remote_code, chat_template, template_name))
        # nothing is downloaded unless the user names a hub id
        return _with_base(source, files, here=True)

    if not _is_hub_id(str(model)):
        raise ConfigError(
            f"{model}: no such folder, and no hub id (OWNER/NAME); `worldpm train` makes one"
        )
    patterns = [*files, "*.py"] if remote_code else list(files)
    folder = _download(str(model), revision, patterns)
    return _with_base(Source(folder, remote_code, chat_template, template_name), files, here=False)


def _file(path: Path, chat_template: str | None, template_name: str | None) -> Source:
    """A model that is one file.

    Raises:
        ConfigError: If it is of another form than GGUF, or the package that reads it is absent.
        CheckpointError: If it is damaged.
    """
    if path.suffix != gguf_files.SUFFIX:
        raise ConfigError(
            f"{path}: a file, and only those of GGUF are models. Name the folder that it is in."
        )
    gguf_files.check(path)
    return Source(path, chat_template=chat_template, template_name=template_name)


def _with_base(source: Source, files: Sequence[str], *, here: bool) -> Source:
    """The source with the base model, if its folder has an adapter; `here` looks in folders and in
    the hub's cache only.

    Raises:
        CheckpointError: If the base model is not there, or is an adapter, too.
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
            f"{source.folder}: its base model {name} is an adapter, too. Merge that into its own"
            " base model first, with PEFT's merge_and_unload."
        )
    return replace(source, base=base)


def _base(adapter: Adapter, files: Sequence[str], *, here: bool) -> Source | None:
    """The base model of an adapter; None if it is not there."""
    name = adapter.config.base_model_name_or_path
    # PEFT looks in the working directory; a folder may have been moved with its adapter
    for place in (Path(name), adapter.folder / name):
        if place.is_file():
            return _file(place, None, None)
        # another folder of that name may be in the working directory by chance
        if any((place / file).is_file() for file in ("config.json", adapter_folders.CONFIG)):
            return _finished(Source(place))

    if not _is_hub_id(name):
        return None
    try:
        return Source(_download(name, adapter.config.revision, list(files), here=here))
    except CheckpointError:
        if here:
            return None
        raise


def _finished(source: Source) -> Source:
    """A source of this project must be finished; folders of other programs have no manifest to
    check."""
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
    """The model as an input of a manifest: a folder by its own manifest, or else by the contents of
    its files; an adapter with its base model."""
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
