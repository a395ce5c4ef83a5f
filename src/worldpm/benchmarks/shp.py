"""SHP's test split: two comments on a Reddit post, of which the later one has more votes.

Source: Ethayarajh et al. 2022, arXiv 2110.08420; https://huggingface.co/datasets/stanfordnlp/SHP.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.records import Preference

HOME = "https://huggingface.co/datasets/stanfordnlp/SHP (`SUBREDDIT/test.json`)"
DOMAIN = "subjective"

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The pairs, named `POST:A:B` by their comments, by subreddit; the difference of votes is the
    strength.

    Raises:
        ConfigError: If no file is there.
        DataError: If a file is not as the data set has it.
    """
    return parse(files(folder, "test.json", home=HOME), _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    if row["labels"] not in (0, 1):
        raise ValueError(f"label {row['labels']!r}, not 0 or 1")
    name = f"{row['post_id']}:{row['c_root_id_A']}:{row['c_root_id_B']}"
    item = two(
        row["domain"].removesuffix("_test"),
        name,
        row["history"],
        row["human_ref_A"],
        row["human_ref_B"],
        1 - row["labels"],
    )
    yield item._replace(
        preferences=(Preference(0, 1, float(abs(row["score_A"] - row["score_B"])) or 1.0),)
    )


def native(judged: Judged) -> Json:
    """Accuracy by subreddit and over all pairs; a tie is wrong."""
    found = {
        name: strict_accuracy(judged.of(name))
        for name in dict.fromkeys(item.subset for item in judged.items)
    }
    return {**found, "overall": strict_accuracy(judged)}
