"""Data to train a model on: tables of preference groups, and plain preference sets, on the disk or
on the hub."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from worldpm.datasets import hub, preference_sets
from worldpm.errors import ConfigError
from worldpm.records import PreferenceGroup
from worldpm.storage import parquet, schema
from worldpm.storage.manifest import is_ours, read_manifest


@dataclass(frozen=True)
class TrainingData:
    """The files of a run, sorted by kind."""

    inputs: tuple[Path, ...]
    """Finished folders and files, as the manifest names them."""
    tables: tuple[Path, ...]
    """Tables of preference groups."""
    plain: tuple[Path, ...]
    """Files of plain preference sets."""

    @classmethod
    def find(cls, names: Sequence[str]) -> Self:
        """The files of folders of groups, of files, of folders of files, and of hub ids.

        Raises:
            ConfigError: If a name is absent, unfinished, or has no files that could be read.
        """
        inputs: list[Path] = []
        tables: list[Path] = []
        plain: list[Path] = []

        for name in names:
            path = _local(name)
            if path.is_dir() and is_ours(path):
                read_manifest(path, made_by="group")
                inputs.append(path)
                tables += parquet.paths_of(path)
                continue

            files = [path] if path.is_file() else preference_sets.files_in(path)
            inputs += files
            for file in files:
                if preference_sets.is_plain(file):
                    plain.append(file)
                    continue
                # A table of groups directly in a folder that the user named comes from a step
                # whose manifest is absent, which this reports. Downloads never have one.
                if file.parent == Path(name):
                    read_manifest(path, made_by="group")
                tables.append(file)

        return cls(tuple(inputs), tuple(tables), tuple(plain))

    def groups(
        self, split: Literal["train", "validation"], drops: Counter[str]
    ) -> Iterator[PreferenceGroup]:
        """The groups of a split, in order; dropped rows of plain sets are counted by reason."""
        for path in self.tables:
            yield from schema.read_groups(path, split=split)

        yield from preference_sets.read(self.plain, split, drops)


def _local(name: str) -> Path:
    """A file or folder, or the downloaded data files of a hub id."""
    if Path(name).exists():
        return Path(name)

    if not hub.ID.fullmatch(name):
        raise ConfigError(f"{name}: no such file or folder; `worldpm group` makes one")
    return hub.dataset(name, preference_sets.SUFFIXES)
