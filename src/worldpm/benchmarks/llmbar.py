"""LLMBar: does a judge see which output follows the instruction? Natural and four adversarial
subsets.

Source: Zeng et al. 2024, arXiv 2310.07641; https://github.com/princeton-nlp/LLMBar, commit 900616b.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

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
ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
SIZES = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
DOMAINS = {"adversarial": ADVERSARIAL, "subjective": ("Natural",)}
"""The natural subset's labels are human judgement of which output is better overall."""

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 419 main items, named `SUBSET:ROW`.

    Raises:
        ConfigError: If a file is absent.
        DataError: If a file is not as the repository has it.
    """
    return [
        item
        for subset, place in PLACES.items()
        for item in parse(
            files(folder, f"LLMBar/{place}/dataset.json", home=HOME),
            partial(_items, subset),
            home=HOME,
        )
    ]


def _items(subset: str, number: int, row: Json) -> Iterator[Item]:
    if row["label"] not in (1, 2):
        raise ValueError(f"label {row['label']!r}, not 1 or 2")
    yield two(
        subset,
        f"{subset}:{number}",
        row["input"],
        row["output_1"],
        row["output_2"],
        row["label"] - 1,
    )


def native(judged: Judged) -> Json:
    """Each subset's accuracy, and the plain mean of the adversarial four; it judges both orders, so
    a tie counts half."""
    found = {
        name: accuracy(*judged.of(name)[:2])
        for name in SIZES
        if any(item.subset == name for item in judged.items)
    }
    adversarial = [found[name] for name in ADVERSARIAL if name in found]
    return {**found, **({"adversarial average": fmean(adversarial)} if adversarial else {})}
