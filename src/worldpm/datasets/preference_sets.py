"""Preference groups from plain preference sets, in the forms that are common on the hub.

Consecutive rows with the same prompt become one group, so that the prompt is computed once.
`storage/dialogues` has the forms of rows, for example:

    {"prompt": "How?", "chosen": "So.", "rejected": "No."}
"""

import logging
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, permutations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from worldpm.errors import ConfigError
from worldpm.records import Preference, PreferenceGroup, Response
from worldpm.storage import dialogues, parquet, rows
from worldpm.storage.dialogues import Messages, RatedRow

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
Columns = Mapping[str, str]
"""Names of columns in the files, by our names for them."""
NO_COLUMNS: Columns = {}
"""All columns have the names that we know."""

KINDS = ((".parquet", *rows.LINES), rows.TABLES, rows.LISTS)
"""Suffixes of the files of a set, by kind. Files of a later kind are read only if there are none of
an earlier kind, because tables and lists beside the rows often describe them."""
SUFFIXES = tuple(suffix for kind in KINDS for suffix in kind)
NOT_ROWS = ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json")
"""Files that describe a set. Source: FILES_TO_IGNORE of the library `datasets`."""
VALIDATION_SHARE = 0.05
"""Share of prompts, chosen by hash, that are held out if a set has no validation file."""


class NumberedRow(NamedTuple):
    """A row that has a prompt and responses."""

    number: int
    """Number of its line, or of the row in a format without lines, from 1."""
    row: RatedRow

    @property
    def key(self) -> tuple[Messages, bool]:
        """The key of the row's group: consecutive rows with the same key make one group."""
        return self.row.prompt, bool(self.row.ratings)


class _Comparison(NamedTuple):
    """The responses to a prompt, and the preferences among them."""

    responses: tuple[str, ...]
    preferences: tuple[Preference, ...]


@dataclass
class _EarlierRows:
    """Hashes of the rows of earlier files, 8 bytes each, because some sets have the same split
    under several names."""

    earlier: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    """Sorted."""
    current: "array[int]" = field(default_factory=lambda: array("Q"))
    """Hashes of the current file."""

    def has(self, row: RatedRow) -> bool:
        """Record the row, and return whether an earlier file has it."""
        turns = [(turn.role, turn.content, turn.more) for turn in row.prompt]
        digest = xxhash.xxh3_64_intdigest(repr((turns, row.responses, row.ratings)).encode())
        self.current.append(digest)

        index = int(np.searchsorted(self.earlier, np.uint64(digest)))
        return index < len(self.earlier) and int(self.earlier[index]) == digest

    def end_file(self) -> None:
        """Add the rows of the current file to the earlier rows."""
        self.earlier = np.union1d(self.earlier, np.array(self.current, dtype=np.uint64))
        self.current = array("Q")


def is_plain(path: Path) -> bool:
    """Whether a file is a plain set, not a table of groups, which is Parquet with a `preferences`
    column."""
    return path.suffix != ".parquet" or "preferences" not in parquet.columns_of(path)


def files_in(folder: Path) -> list[Path]:
    """The files of a set, sorted. A hub repository has them at its top or under `data/`, and other
    sets in other folders.

    Raises:
        ConfigError: If there is none.
    """
    entries = sorted(
        path
        for path in (*folder.glob("*"), *folder.glob("data/*"))
        if path.name.endswith(SUFFIXES) and path.name not in NOT_ROWS and path.is_file()
    )
    for kind in KINDS:
        files = [path for path in entries if path.name.endswith(kind)]
        if files:
            _log_unread(folder, files, [path for path in entries if path not in files])
            return files

    folders = [path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    hint = f" Name one of its folders ({', '.join(sorted(folders)[:5])})." if folders else ""
    raise ConfigError(
        f"{folder}: neither groups (`worldpm group` makes them) nor a preference set: no"
        f" {', '.join(SUFFIXES)}.{hint}"
    )


def _log_unread(folder: Path, files: Sequence[Path], others: Sequence[Path]) -> None:
    if others:
        logger.info(
            "%s: %s not read, because the folder also has %s. Name them to read them.",
            folder,
            ", ".join(path.name for path in others[:5]),
            files[0].name,
        )


def read(
    paths: Sequence[Path],
    split: Split,
    drops: Counter[str],
    *,
    columns: Columns = NO_COLUMNS,
    lends: bool = True,
) -> Iterator[PreferenceGroup]:
    """The groups of a split, in order. Rows without a preference, and rows that an earlier file of
    the split has too, are dropped and counted in `drops` by reason.

    The name of a file gives its split (`validation`, `dev`, `test`); other files are for training.
    If no file is for validation and `lends` is set, VALIDATION_SHARE of the training prompts are
    held out for validation.

    Raises:
        DataError: If a row has none of the known forms, or lacks one of the columns.
    """
    splits = {path: split_of(path) for path in paths}
    lends = lends and "validation" not in splits.values()
    if split != "train":
        of_split = [path for path in paths if splits[path] == split]
        for group in groups_of_files(of_split, drops, columns):
            yield replace(group, split=split)

    if split == "train" or (split == "validation" and lends):
        train = [path for path in paths if splits[path] == "train"]
        for group in groups_of_files(train, drops, columns):
            # The hash of the prompt decides: a prompt in two rows must not be in two splits.
            lent = lends and _share(group.prompt) < VALIDATION_SHARE
            if split == ("validation" if lent else "train"):
                yield replace(group, split=split)


def split_of(path: Path) -> Split:
    """The split in a file's name; training if the name has none."""
    tokens = set(re.split(r"[^a-z]+", path.name.lower()))
    if tokens & {"validation", "valid", "val", "dev", "eval"}:
        return "validation"
    return "test" if "test" in tokens else "train"


def _share(prompt: Messages) -> float:
    """A number from 0 to 1 that depends on the prompt alone."""
    text = "\n".join(message.content for message in prompt)
    return float(xxhash.xxh64_intdigest(text.encode()) / 2**64)


def groups_of_files(
    paths: Sequence[Path], drops: Counter[str], columns: Columns = NO_COLUMNS
) -> Iterator[PreferenceGroup]:
    """All groups of some files, of any split; rows that an earlier file has too are dropped. Errors
    and counts are those of `read`."""
    earlier = _EarlierRows() if len(paths) > 1 else None
    for path in paths:
        yield from groups_of(path, drops, columns, earlier)
        if earlier is not None:
            earlier.end_file()


def groups_of(
    path: Path,
    drops: Counter[str],
    columns: Columns = NO_COLUMNS,
    earlier: _EarlierRows | None = None,
) -> Iterator[PreferenceGroup]:
    """All groups of a file, of any split, without the rows of earlier files. Errors and counts are
    those of `read`."""
    name = re.sub(r"\W+", "-", path.name.split(".")[0])
    rated = _rated_rows(path, drops, columns, earlier)

    # Rows are not sorted by prompt: a set may be larger than memory.
    for (prompt, _), members in groupby(rated, key=lambda row: row.key):
        numbered = list(members)
        group_id = f"{name}/{numbered[0].number}"
        group = _group(group_id, prompt, [member.row for member in numbered], drops)
        if group is not None:
            yield group


def _rated_rows(
    path: Path, drops: Counter[str], columns: Columns, earlier: _EarlierRows | None
) -> Iterator[NumberedRow]:
    """The rows of a file that have a prompt and responses, and are in no earlier file."""
    for number, row in rows.numbered(path, as_written=True):
        rated = dialogues.rated_row(rows.renamed(row, columns, path, number), path, number)
        if isinstance(rated, str):
            drops[rated] += 1
        elif earlier is not None and earlier.has(rated):
            drops["row that an earlier file has too"] += 1
        else:
            yield NumberedRow(number, rated)


def column_names(path: Path, columns: Columns = NO_COLUMNS) -> set[str]:
    """Names of the columns of the first row of a file; renamed columns have our names.

    Raises:
        DataError: As `read`.
    """
    number, row = next(rows.numbered(path, as_written=True), (0, {}))
    return set(rows.renamed(row, columns, path, number))


def _group(
    group_id: str, prompt: Messages, members: Sequence[RatedRow], drops: Counter[str]
) -> PreferenceGroup | None:
    """Rows of one prompt as a group; None if they have no preference, which is counted."""
    if not any(message.content.strip() for message in prompt):
        drops["prompt without text"] += len(members)
        return None

    compare = _compare_ratings if members[0].ratings else _compare_pairs
    comparison = compare(members, drops)
    if not comparison.preferences:
        return None

    return PreferenceGroup(
        group_id=group_id,
        source="preferences",
        site=group_id.split("/")[0],
        split="train",
        prompt=prompt,
        responses=tuple(map(Response, comparison.responses)),
        preferences=comparison.preferences,
    )


def _compare_pairs(members: Sequence[RatedRow], drops: Counter[str]) -> _Comparison:
    """Pairs of one prompt, each with a weight of 1; equal texts become one response."""
    # A dict keeps the order of the texts.
    indices: dict[str, int] = {}
    for row in members:
        for text in row.responses:
            indices.setdefault(text, len(indices))

    preferences = []
    for row in members:
        if _are_equal(*row.responses):
            drops["pair of equal responses"] += 1
        else:
            chosen, rejected = (indices[text] for text in row.responses)
            preferences.append(Preference(chosen, rejected, row.strength))
    return _Comparison(tuple(indices), tuple(preferences))


def _compare_ratings(members: Sequence[RatedRow], drops: Counter[str]) -> _Comparison:
    """All pairs of rated responses to one prompt, with weights that add up to 1."""
    texts: list[str] = []
    ratings: list[float] = []
    for row in members:
        texts += row.responses
        ratings += row.ratings

    ranked = [
        (chosen, rejected)
        for chosen, rejected in permutations(range(len(ratings)), 2)
        if ratings[chosen] > ratings[rejected]
    ]
    if not ranked:
        drops["prompt whose responses have equal ratings"] += 1

    pairs = [pair for pair in ranked if not _are_equal(*(texts[index] for index in pair))]
    drops["pair of equal responses"] += len(ranked) - len(pairs)
    preferences = [
        Preference(chosen, rejected, ratings[chosen] - ratings[rejected], weight=1 / len(pairs))
        for chosen, rejected in pairs
    ]
    return _Comparison(tuple(texts), tuple(preferences))


def _are_equal(first: str, second: str) -> bool:
    return dialogues.single_spaced(first) == dialogues.single_spaced(second)
