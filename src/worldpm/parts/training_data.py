"""What a model is trained on: tables of preference groups, and plain preference sets, here or on the hub."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from worldpm.field.errors import ConfigError
from worldpm.field.records import PreferenceGroup
from worldpm.formats import folders, schema, tables
from worldpm.parts import hub, preference_sets


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
            if place.is_dir() and not preference_sets.is_set(place):
                folders.manifest(place, made_by="group")
                inputs.append(place)
                found[False] += tables.paths_of(place)
                continue
            files = [place] if place.is_file() else sorted(p for p in _own_files(place) if p.name.endswith(preference_sets.SUFFIXES))
            if not files:
                inner = ", ".join(sorted(entry.name for entry in place.iterdir() if entry.is_dir())[:5])
                raise ConfigError(
                    f"{name}: neither groups (`worldpm group` makes them) nor a preference set: no {', '.join(preference_sets.SUFFIXES)}"
                    + (f"; name one of its folders ({inner})" if inner else "")
                )
            inputs += files
            for path in files:
                found[preference_sets.is_plain(path)].append(path)
        return cls(tuple(inputs), tuple(found[False]), tuple(found[True]))

    def groups(self, split: Literal["train", "validation"], drops: Counter[str]) -> Iterator[PreferenceGroup]:
        """The groups of a split, in order; what rows of plain sets were dropped for is counted."""
        for path in self.tables:
            for row in tables.read_rows(path, schema.GROUPS):
                if row["split"] == split:
                    yield schema.group_from_row(row, path)
        yield from preference_sets.read(self.plain, split, drops)


def _own_files(folder: Path) -> Iterator[Path]:
    """The files of a set; a hub repository keeps them at its top or under `data/`, and other sets in other folders."""
    yield from folder.glob("*")
    yield from folder.glob("data/*")


def _here(name: str) -> Path:
    """A file or folder, or the data files of a hub id, downloaded once."""
    if Path(name).exists():
        return Path(name)
    if not hub.ID.fullmatch(name):
        raise ConfigError(f"{name}: no such file or folder; `worldpm group` makes one")
    return hub.dataset(name, preference_sets.SUFFIXES)
