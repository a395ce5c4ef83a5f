"""A plain preference set as a benchmark. It consists of the test files, or of all files if no name
marks a test file. Subsets are files.

`storage/dialogues` describes the forms of rows, for example:

    {"prompt": "Hi!", "chosen": "Hello!", "rejected": "No."}
"""

import logging
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, prompt_id, unique
from worldpm.benchmarks.metrics import strict_by_subset
from worldpm.datasets import preference_sets
from worldpm.datasets.preference_sets import NO_COLUMNS, Columns
from worldpm.records import PreferenceGroup

logger = logging.getLogger(__name__)


def with_columns(columns: Columns) -> Benchmark:
    """The benchmark for sets whose columns have other names."""
    return replace(PREFERENCE_SET, read=partial(read, columns=columns))


def read(path: Path, *, columns: Columns = NO_COLUMNS) -> list[Item]:
    """The items of a file or of a folder of files. Rows without a preference, and rows that an
    earlier file also has, are left out, and their reasons are logged.

    Raises:
        ConfigError: If the file is missing.
        DataError: If a row has none of the known forms.
    """
    paths = [path] if path.is_file() else preference_sets.files_in(path)
    # if a set has test files, models may be trained on its other files
    test_paths = [file for file in paths if preference_sets.split_of(file) == "test"]

    drops: Counter[str] = Counter()
    groups = preference_sets.groups_of_files(test_paths or paths, drops, columns)
    items = unique(map(_item, groups), path)
    if drops:
        reasons = "; ".join(f"{reason}: {number:,}" for reason, number in drops.most_common())
        logger.info("%s: left out %s", path, reasons)
    return items


def _item(group: PreferenceGroup) -> Item:
    return Item(
        group.site,
        group.group_id,
        prompt_id(group.prompt),
        group.prompt,
        group.responses,
        group.preferences,
    )


def native(judged: Judged) -> dict[str, float]:
    """Accuracy by file; a tie is wrong."""
    return strict_by_subset(judged)


PREFERENCE_SET = Benchmark(
    name="preference-set",
    home="a file or folder of pairs, or a data set of the hub",
    read=read,
    native=native,
    domains={"preferences": ()},
)
