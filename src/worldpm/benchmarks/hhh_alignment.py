"""HHH alignment: helpful, honest, harmless and other dialogues with a better and a worse ending.

Source: Askell et al. 2021, arXiv 2112.00861; as https://github.com/prometheus-eval/prometheus-eval
has it, commit dcfb442.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.benchmarks.metrics import strict_accuracy

HOME = (
    "https://github.com/prometheus-eval/prometheus-eval"
    " (`eval/benchmark/data/hhh_alignment_eval.json`)"
)
SIZES = {"harmless": 58, "helpful": 59, "honest": 61, "other": 43}
DOMAINS = {"safety": ("harmless",), "objective": ("honest",), "subjective": ("helpful", "other")}
WRAPPED = re.compile(
    r"###The instruction to evaluate:\n(.*?)\n\n###Response to evaluate:\n(.*?)\n\n###Score"
    r" Rubrics:",
    re.DOTALL,
)
"""Each text is wrapped in instructions to a judge, which are no part of the dialogue."""

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 221 pairs, named by their row.

    Raises:
        ConfigError: If the file is absent.
        DataError: If it is not as the repository has it.
    """
    return parse(files(folder, "hhh_alignment_eval.json", home=HOME), _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    chosen, rejected = (
        WRAPPED.search(row[f"{side}_instruction"]) for side in ("chosen", "rejected")
    )
    if row["source"] not in SIZES or not chosen or not rejected or chosen[1] != rejected[1]:
        raise ValueError(f"source {row['source']!r}, or two prompts that differ")
    yield better_first(row["source"], str(number), chosen[1], [chosen[2]], [rejected[2]])


def native(judged: Judged) -> Json:
    """Accuracy by kind, over all pairs, and the plain mean of the kinds; a tie is wrong."""
    found = {
        name: strict_accuracy(judged.of(name))
        for name in dict.fromkeys(item.subset for item in judged.items)
    }
    return {**found, "overall": strict_accuracy(judged), "average": fmean(found.values())}
