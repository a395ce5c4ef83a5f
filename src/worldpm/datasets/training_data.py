"""What a model is trained on: tables of preference groups, and plain preference sets, here or on
the hub."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from worldpm.datasets import hub, preference_sets
from worldpm.errors import ConfigError
from worldpm.records import PreferenceGroup
from worldpm.storage import folders, parquet, schema


@dataclass(frozen=True)
class TrainingData:
    """The files of a run, sorted by kind."""

    inputs: tuple[Path, ...]
    """What the manifest names: finished folders, and files."""
    tables: tuple[Path, ...]
    plain: tuple[Path, ...]

    @classmethod
    def find(cls, names: Sequence[str]) -> Self:
        """Look at each place: a folder of groups, a file, a folder of files, or else a hub id.

        Raises:
            ConfigError: If it is absent, unfinished, or holds nothing that could be read.
        """
        inputs: list[Path] = []
        found: dict[bool, list[Path]] = {True: [], False: []}
        for name in names:
            place = _here(name)
            if place.is_dir() and folders.is_ours(place):
                folders.manifest(place, made_by="group")
                inputs.append(place)
                found[False] += parquet.paths_of(place)
                continue
            files = [place] if place.is_file() else preference_sets.files_in(place)
            inputs += files
            for path in files:
                plain = preference_sets.is_plain(path)
                if not plain and path.parent == Path(name):
                    folders.manifest(
                        place, made_by="group"
                    )  # a step's folder without its last file; what the hub has never has one
                found[plain].append(path)
        return cls(tuple(inputs), tuple(found[False]), tuple(found[True]))

    def groups(
        self, split: Literal["train", "validation"], drops: Counter[str]
    ) -> Iterator[PreferenceGroup]:
        """The groups of a split, in order; what rows of plain sets were dropped for is counted."""
        for path in self.tables:
            for row in parquet.read_rows(path, schema.GROUPS):
                if row["split"] == split:
                    yield schema.group_from_row(row, path)
        yield from preference_sets.read(self.plain, split, drops)


def _here(name: str) -> Path:
    """A file or folder, or the data files of a hub id, downloaded once."""
    if Path(name).exists():
        return Path(name)
    if not hub.ID.fullmatch(name):
        raise ConfigError(f"{name}: no such file or folder; `worldpm group` makes one")
    return hub.dataset(name, preference_sets.SUFFIXES)
