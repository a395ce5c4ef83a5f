"""OffsetBias: off-topic or wrong answers that look good, against plain right answers.

A row of `train.jsonl`. The label, 1 or 2, is the number of the right output:

    {"instruction": "2 + 2?", "output_1": "5, for ...", "output_2": "4", "label": 2}

Source: Park et al. 2024, arXiv 2407.06551; https://huggingface.co/datasets/NCSOFT/offsetbias. The
WorldPM paper evaluates on this set.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy

HOME = "https://huggingface.co/datasets/NCSOFT/offsetbias (`train.jsonl`)"


class _Row(msgspec.Struct, frozen=True):
    """Two outputs for an instruction."""

    instruction: str
    output_1: str
    output_2: str
    label: int


def read(folder: Path) -> list[Item]:
    """The pairs, named by their row.

    Raises:
        ConfigError: If the file is absent.
        DataError: If the file does not have the data set's format.
    """
    return parse(files(folder, "train*.jsonl", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    if row.label not in (1, 2):
        raise ValueError(f"label {row.label} is not 1 or 2")
    better = row.label - 1
    yield two("offsetbias", str(number), row.instruction, row.output_1, row.output_2, better)


def native(judged: Judged) -> dict[str, float]:
    """The share of pairs in which the right answer has the higher reward; a tie is wrong."""
    return {"accuracy": strict_accuracy(judged)}


OFFSETBIAS = Benchmark(
    name="offsetbias", home=HOME, read=read, native=native, domains={"adversarial": ()}
)
