"""Data to train a model on: tables of preference groups, and plain preference sets, on the disk or
on the hub."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of columns in the plain sets, by our names for them."""
    validation: Self | None = None
    """The files of an explicit validation set; None if the validation split comes from the other
    files."""

    @classmethod
    def find(
        cls,
        names: Sequence[str],
        *,
        validation: Sequence[str] = (),
        columns: Mapping[str, str] = preference_sets.NO_COLUMNS,
    ) -> Self:
        """Find the files of names, which are folders of groups, files, folders of files, or hub
        ids.

        Files of the validation set are not trained on, even if a folder of `names` has them.

        Raises:
            ConfigError: If a name does not exist, is unfinished, or has no readable files, or if
                there are columns but no plain sets.
        """
        data = cls._sorted(names)
        if validation:
            validating = cls._to_validate_on(validation)
            plain = _without(data.plain, validating.plain)
            if not plain and not data.tables:
                raise ConfigError(
                    f"--validation {validation[0]}: contains all training files. Name other files."
                )
            data = replace(
                data,
                inputs=(*data.inputs, *validating.inputs),
                plain=plain,
                validation=replace(validating, columns=columns),
            )

        if columns and not (data.plain or (data.validation and data.validation.plain)):
            raise ConfigError(
                f"--columns: applies only to plain preference sets, and {names[0]} is not one."
                " Leave it out."
            )
        return replace(data, columns=columns)

    @classmethod
    def _to_validate_on(cls, names: Sequence[str]) -> Self:
        """The files to validate on: of each folder of plain sets, those for validation, or else
        for testing, or else all."""
        sets = [cls._sorted([name]) for name in names]
        plain = [
            path
            for name, data in zip(names, sets, strict=True)
            for path in (data.plain if Path(name).is_file() else _held_out(data.plain))
        ]
        return cls(
            inputs=tuple(path for data in sets for path in data.inputs),
            tables=tuple(path for data in sets for path in data.tables),
            plain=tuple(plain),
        )

    @classmethod
    def _sorted(cls, names: Sequence[str]) -> Self:
        """The files of the names, sorted by kind."""
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
                # A table of groups directly in a folder that the user named lacks the manifest of
                # its step, and this call reports it. Downloads never have a manifest.
                if file.parent == Path(name):
                    read_manifest(path, made_by="group")
                tables.append(file)

        return cls(tuple(inputs), tuple(tables), tuple(plain))

    def groups(
        self, split: Literal["train", "validation"], drops: Counter[str]
    ) -> Iterator[PreferenceGroup]:
        """The groups of a split, in order; dropped rows of plain sets are counted by reason."""
        if split == "validation" and self.validation is not None:
            yield from self.validation._validating(drops)
            return

        for path in self.tables:
            yield from schema.read_groups(path, split=split)

        lends = self.validation is None
        yield from preference_sets.read(self.plain, split, drops, columns=self.columns, lends=lends)

    def _validating(self, drops: Counter[str]) -> Iterator[PreferenceGroup]:
        """The validation split of the tables, and all groups of the plain sets."""
        for path in self.tables:
            yield from schema.read_groups(path, split="validation")

        for group in preference_sets.groups_of_files(self.plain, drops, self.columns):
            yield replace(group, split="validation")

    def with_column(self, name: str) -> list[Path]:
        """The plain sets whose first row has the column, under our name for it."""
        return [
            path for path in self.plain if name in preference_sets.column_names(path, self.columns)
        ]


def _held_out(files: Sequence[Path]) -> list[Path]:
    """The files for validation by their names, or else those for testing, or else all."""
    splits = [preference_sets.split_of(path) for path in files]
    split = next((name for name in ("validation", "test") if name in splits), "train")
    return [path for path, of_file in zip(files, splits, strict=True) if of_file == split]


def _without(files: Sequence[Path], others: Sequence[Path]) -> tuple[Path, ...]:
    """The files that are not among the others, compared by their resolved paths."""
    resolved = {path.resolve() for path in others}
    return tuple(path for path in files if path.resolve() not in resolved)


def _local(name: str) -> Path:
    """A file or folder, or the downloaded data files of a hub id."""
    if Path(name).exists():
        return Path(name)

    if not hub.ID.fullmatch(name):
        raise ConfigError(f"{name}: no such file or folder; `worldpm group` makes one")
    return hub.dataset(name, preference_sets.SUFFIXES)
