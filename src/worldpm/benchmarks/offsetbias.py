"""OffsetBias: off-topic or wrong answers that look good, against plain right ones.

Source: Park et al. 2024, arXiv 2407.06551; https://huggingface.co/datasets/NCSOFT/offsetbias. The
paper on WorldPM judges on it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy

HOME = "https://huggingface.co/datasets/NCSOFT/offsetbias (`train.jsonl`)"
DOMAIN = "adversarial"

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The pairs, named by their row.

    Raises:
        ConfigError: If the file is absent.
        DataError: If it is not as the data set has it.
    """
    return parse(files(folder, "train*.jsonl", home=HOME), _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    if row["label"] not in (1, 2):
        raise ValueError(f"label {row['label']!r}, not 1 or 2")
    yield two(
        "offsetbias",
        str(number),
        row["instruction"],
        row["output_1"],
        row["output_2"],
        row["label"] - 1,
    )


def native(judged: Judged) -> Json:
    """The share of pairs in which the right answer has the higher reward; a tie is wrong."""
    return {"accuracy": strict_accuracy(judged)}
