"""The weights of a folder: the file of each weight, and its name in the model.

Weights are one safetensors file, or shards with an index. A line of an index:
`"score.weight": "model-00002-of-00002.safetensors"`. As in transformers, a single file takes
precedence over an index.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Self

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from worldpm.errors import CheckpointError
from worldpm.storage.json_files import read_json

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DISTRIBUTED = "shard-*-model-*-of-*.safetensors"
"""Shards of a distributed training, which transformers prefers to all other files."""

INNER_WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
"""Names that torch.compile, FSDP and activation checkpointing give to the module inside them."""
LEADING = re.compile(rf"^(?:(?:module|{INNER_WRAPPERS})\.)+")
"""Wrappers at the start of a name, which may include that of DDP."""
INNER = re.compile(rf"\.(?:(?:{INNER_WRAPPERS})\.)+")


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a folder."""

    folder: Path
    files: Mapping[str, Path]
    """The file of each weight, by the weight's name in the file."""

    @classmethod
    def find(cls, folder: Path, config: PreTrainedConfig) -> Self:
        """The files that transformers reads for a folder and its config.

        Raises:
            CheckpointError: If the folder has no safetensors file, or a shard is missing,
                damaged, or outside the folder.
        """
        if next(folder.glob(DISTRIBUTED), None):
            raise CheckpointError(
                f"{folder}: its weights are shards of a distributed training. Save the model with"
                " `save_pretrained` in one process."
            )

        # a config may name the file
        named = str(getattr(config, "transformers_weights", None) or "")
        _check_inside(folder / CONFIG, named)
        present = [name for name in (named, WEIGHTS, INDEX) if name and (folder / name).is_file()]
        path = folder / (named or next(iter(present), WEIGHTS))
        if not path.is_file():
            _refuse_pickle(folder)
            raise CheckpointError(f"{folder}: it has no {path.name}. Get the folder again.")

        if path.name.endswith(".index.json"):
            return cls(folder, _shard_files(path))
        return cls(folder, dict.fromkeys(names_in(path), path))

    @cached_property
    def names(self) -> dict[str, str]:
        """The name of each weight in its file, by its name in the model.

        Raises:
            CheckpointError: If two weights have the same name in the model.
        """
        names: dict[str, str] = {}
        for stored in self.files:
            name = unwrapped(stored)
            if name in names:
                raise CheckpointError(
                    f"{self.folder}: {stored} and {names[name]} are the same weight. Leave one out."
                )
            names[name] = stored
        return names

    @property
    def renamings(self) -> dict[str, str]:
        """Patterns that match the wrappers in the names in the files, and their replacements, in
        the form of transformers' `key_mapping`."""
        patterns = {LEADING.pattern: ""} if any(map(LEADING.match, self.files)) else {}
        most = max((len(INNER.findall(LEADING.sub("", name))) for name in self.files), default=0)
        # A pattern replaces one match, so there is one pattern for each match in a name. Empty
        # groups make the patterns distinct keys.
        return patterns | {INNER.pattern + "(?:)" * number: "." for number in range(most)}

    def read(self, prefix: str) -> dict[str, Tensor]:
        """The weights whose names begin with `prefix`, by the rest of their names, in float32."""
        return {
            name.removeprefix(prefix): self.tensor(name).float()
            for name in self.names
            if name.startswith(prefix)
        }

    def tensor(self, name: str) -> Tensor:
        """A weight in its stored type."""
        stored = self.names[name]
        return read_tensor(self.files[stored], stored)


def unwrapped(name: str) -> str:
    """A weight's name without the wrappers of compilers and engines."""
    return INNER.sub(".", LEADING.sub("", name))


def names_in(path: Path) -> list[str]:
    """The names of the weights in a safetensors file.

    Raises:
        CheckpointError: If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); get the folder again") from error


def read_tensor(path: Path, name: str) -> Tensor:
    """One weight of a safetensors file, in its stored type.

    Raises:
        CheckpointError: If the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); get the folder again") from error
    return tensor


def _shard_files(index: Path) -> dict[str, Path]:
    """The shard of each weight, from an index."""
    folder = index.parent
    shards = read_json(index).get("weight_map")
    if not shards or not isinstance(shards, dict):
        raise CheckpointError(f"{index}: it has no weight_map. Get the folder again.")

    for name in sorted(set(map(str, shards.values()))):
        _check_inside(index, name)
    paths = {name: folder / str(file) for name, file in shards.items()}
    if absent := sorted({path.name for path in paths.values() if not path.is_file()}):
        raise CheckpointError(
            f"{folder}: {len(absent)} shards are missing ({', '.join(absent[:3])}). Get the"
            " folder again."
        )
    return paths


def _check_inside(path: Path, name: str) -> None:
    """Reject a file name in `path` that leads outside the folder. Links are not resolved, because
    in the hub's cache the files of a folder are links to other folders."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise CheckpointError(
            f"{path}: names {name}, which is outside the folder. Put the file into the folder, and"
            " correct its name."
        )


def _refuse_pickle(folder: Path) -> None:
    """Raise an error about the pickled weights of a folder, if it has any."""
    pickled = [*sorted(folder.glob("*.bin")), *sorted(folder.glob("*.pt*"))]
    if pickled:
        raise CheckpointError(
            f"{folder}: its weights are pickle ({pickled[0].name}), which can run code. Convert"
            " them to safetensors, for instance with"
            " https://huggingface.co/spaces/safetensors/convert"
        )
