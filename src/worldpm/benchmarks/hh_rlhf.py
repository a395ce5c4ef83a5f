"""hh-rlhf's test splits: two continuations of a dialogue, one chosen by people for being helpful or
harmless.

Source: Bai et al. 2022, arXiv 2204.05862; https://github.com/anthropics/hh-rlhf, commit 354e5c3.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from worldpm.benchmarks.items import Item, Judged, better_first, files, parse, unique
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.datasets import preference_sets

HOME = "https://github.com/anthropics/hh-rlhf (`SUBSET/test.jsonl.gz`)"
SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
DOMAINS = {"safety": SUBSETS[:1], "subjective": SUBSETS[1:]}

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The pairs whose dialogues are the same up to the last turn, named `SUBSET:ROW`; of
    harmless-base's 2,312 these are 2,307.

    Raises:
        ConfigError: If no file is there.
        DataError: If a file is not as the repository has it.
    """
    found = files(folder, "*test.jsonl", home=HOME)
    named = [
        (name, path)
        for path in found
        for name in SUBSETS
        if name == path.parent.name or path.name.startswith(name)
    ]
    if not named:
        files(folder, f"{SUBSETS[0]}_test.jsonl", home=HOME)
    return unique(
        (item for name, path in named for item in parse([path], partial(_items, name), home=HOME)),
        folder,
    )


def _items(subset: str, number: int, row: Json) -> Iterator[Item]:
    pair = preference_sets.pair(row)
    if not isinstance(pair, str):
        yield better_first(
            subset, f"{subset}:{number}", pair.prompt, pair.responses[:1], pair.responses[1:]
        )


def native(judged: Judged) -> Json:
    """Accuracy by subset; a tie is wrong."""
    return {
        name: strict_accuracy(judged.of(name))
        for name in dict.fromkeys(item.subset for item in judged.items)
    }
