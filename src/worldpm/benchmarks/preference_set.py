"""A plain preference set as a benchmark: its test files, or all files if none is named a test file;
subsets by file.

`storage/dialogues` has the forms of rows, for example:

    {"prompt": "Hi!", "chosen": "Hello!", "rejected": "No."}
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, prompt_id, unique
from worldpm.benchmarks.metrics import strict_by_subset
from worldpm.datasets import preference_sets

logger = logging.getLogger(__name__)


def read(path: Path) -> list[Item]:
    """The items of a file or of a folder of files; rows without a preference, or that an earlier
    file has too, are left out, and logged with their reasons.

    Raises:
        ConfigError: If no file is there.
        DataError: If a row has none of the known forms.
    """
    paths = [path] if path.is_file() else preference_sets.files_in(path)
    # models may be trained on the other files of a set that has test files
    test_paths = [file for file in paths if preference_sets.split_of(file) == "test"]

    drops: Counter[str] = Counter()
    items = unique(_items(test_paths or paths, drops), path)
    if drops:
        reasons = "; ".join(f"{reason}: {number:,}" for reason, number in drops.most_common())
        logger.info("%s: left out %s", path, reasons)
    return items


def _items(paths: list[Path], drops: Counter[str]) -> Iterator[Item]:
    for group in preference_sets.groups_of_files(paths, drops):
        yield Item(
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
