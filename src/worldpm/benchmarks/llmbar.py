"""LLMBar: can a judge recognize the output that follows the instruction? One natural and four
adversarial subsets.

A row of a subset's `dataset.json`. The label, 1 or 2, is the number of the better output:

    {"input": "Say yes.", "output_1": "No.", "output_2": "Yes.", "label": 2}

Source: Zeng et al. 2024, arXiv 2310.07641; https://github.com/princeton-nlp/LLMBar, commit 900616b.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import accuracy

HOME = "https://github.com/princeton-nlp/LLMBar (`Dataset/LLMBar`)"
PLACES = {
    "Natural": "Natural",
    "Neighbor": "Adversarial/Neighbor",
    "GPTInst": "Adversarial/GPTInst",
    "GPTOut": "Adversarial/GPTOut",
    "Manual": "Adversarial/Manual",
}
"""Folder of each subset."""
ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SIZES = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}


class _Row(msgspec.Struct, frozen=True):
    """Two outputs for an instruction."""

    input: str
    output_1: str
    output_2: str
    label: int


def read(folder: Path) -> list[Item]:
    """The 419 main items, named `SUBSET:ROW`.

    Raises:
        ConfigError: If a file is absent.
        DataError: If a file does not have the repository's format.
    """
    items: list[Item] = []
    # the repository's other folders hold converted items of other benchmarks
    for subset, subfolder in PLACES.items():
        paths = files(folder, f"LLMBar/{subfolder}/dataset.json", home=HOME)
        items += parse(paths, _Row, partial(_items, subset), home=HOME)

    return items


def _items(subset: str, number: int, row: _Row) -> Iterator[Item]:
    if row.label not in (1, 2):
        raise ValueError(f"label {row.label} is not 1 or 2")
    name, better = f"{subset}:{number}", row.label - 1
    yield two(subset, name, row.input, row.output_1, row.output_2, better)


def native(judged: Judged) -> dict[str, float]:
    """Accuracy of each subset, and the plain mean over the four adversarial ones. LLMBar judges
    both orders, so a tie counts half."""
    present = judged.subsets
    by_subset = {name: accuracy(judged.of(name)) for name in SIZES if name in present}
    adversarial = [by_subset[name] for name in ADVERSARIAL if name in by_subset]
    if not adversarial:
        return by_subset  # raw rewards may cover only the natural subset
    return {**by_subset, "adversarial average": fmean(adversarial)}


LLMBAR = Benchmark(
    name="llmbar",
    home=HOME,
    read=read,
    native=native,
    # in the natural subset, people judged which output is better overall
    domains={"adversarial": ADVERSARIAL, "subjective": ("Natural",)},
    sizes=SIZES,
)
