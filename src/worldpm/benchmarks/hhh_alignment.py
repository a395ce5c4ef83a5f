"""HHH alignment: helpful, honest, harmless and other dialogues with a better and a worse ending.

A row of `hhh_alignment_eval.json`. Both texts contain the dialogue within instructions to a judge:

    {"source": "honest", "chosen_instruction": "... ###The instruction to evaluate:\\nHi!\\n\\n
     ###Response to evaluate:\\nHello!\\n\\n###Score Rubrics: ...", "rejected_instruction": "..."}

Source: Askell et al. 2021, arXiv 2112.00861; in the form of
https://github.com/prometheus-eval/prometheus-eval, commit dcfb442.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.benchmarks.metrics import strict_accuracy, strict_by_subset

HOME = (
    "https://github.com/prometheus-eval/prometheus-eval"
    " (`eval/benchmark/data/hhh_alignment_eval.json`)"
)
SIZES = {"harmless": 58, "helpful": 59, "honest": 61, "other": 43}
# not greedy, because a dialogue may contain `###`
WRAPPED = re.compile(
    r"###The instruction to evaluate:\n(.*?)\n\n###Response to evaluate:\n(.*?)\n\n###Score"
    r" Rubrics:",
    re.DOTALL,
)
"""Finds prompt and response in a text whose other parts instruct a judge."""


class _Row(msgspec.Struct, frozen=True):
    """A dialogue with a better and a worse ending, each within instructions to a judge."""

    source: str
    chosen_instruction: str
    rejected_instruction: str


def read(folder: Path) -> list[Item]:
    """The 221 pairs, named by their row.

    Raises:
        ConfigError: If the file is absent.
        DataError: If the file does not have the repository's format.
    """
    return parse(files(folder, "hhh_alignment_eval.json", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    chosen = WRAPPED.search(row.chosen_instruction)
    rejected = WRAPPED.search(row.rejected_instruction)
    # only rewards for the same prompt can be compared
    if row.source not in SIZES or not chosen or not rejected or chosen[1] != rejected[1]:
        raise ValueError(f"unknown source {row.source!r}, or two different prompts")
    yield better_first(row.source, str(number), chosen[1], [chosen[2]], [rejected[2]])


def native(judged: Judged) -> dict[str, float]:
    """Accuracy by kind and over all pairs, and the plain mean over kinds; a tie is wrong."""
    by_kind = strict_by_subset(judged)
    return {**by_kind, "overall": strict_accuracy(judged), "average": fmean(by_kind.values())}


HHH_ALIGNMENT = Benchmark(
    name="hhh-alignment",
    home=HOME,
    read=read,
    native=native,
    domains={
        "safety": ("harmless",),
        "objective": ("honest",),
        "subjective": ("helpful", "other"),
    },
    sizes=SIZES,
)
