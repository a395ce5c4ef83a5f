"""Code RewardBench: better and worse code by five aspects of quality, in eight languages.

A row of the split `Full`:

    {"id": "x1", "prompt": "Sort a list.", "chosen": "sorted(a)", "rejected": "a", "aspect":
     "Functional_Correctness", "language": "Python", "subset": "MDEVAL"}

Source: https://huggingface.co/datasets/iNeil77/code-reward-bench, and the authors' runbook (8,866
pairs in 19 subsets). The tests have rows of this form, not the files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.benchmarks.metrics import strict_accuracy, strict_by_subset
from worldpm.storage.json_files import Plain

HOME = "https://huggingface.co/datasets/iNeil77/code-reward-bench (`Full*.parquet`)"
ASPECTS = (
    "Functional_Correctness",
    "Memory_Efficiency",
    "Readability_Maintainability",
    "Runtime_Efficiency",
    "Security_Hardness",
)
SIZES = {
    "RUNBUGRUN": 2430,
    "COMMITPREFS_READABILITY": 1371,
    "COMMITPREFS_FUNCTIONAL": 825,
    "COMMITPREFS_SECURITY": 769,
    "DEBUG_EVAL": 724,
    "HUMANEVAL_PACK": 628,
    "PIE_PERF": 460,
    "ECCO": 399,
    "COMMITPREFS_MEMORY": 252,
    "COMMITPREFS_RUNTIME": 238,
    "EVALPERF": 212,
    "CODEPREFBENCH_SECURITY": 173,
    "MDEVAL": 134,
    "NOFUNEVAL_MAINTAIN": 128,
    "MBPP_PLUS_FIX_HARD": 37,
    "NOFUNEVAL_MEMORY": 37,
    "NOFUNEVAL_SECURITY": 27,
    "SECBENCH": 14,
    "VUL4J": 8,
}


class _Row(msgspec.Struct, frozen=True):
    """A task with better and worse code."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    aspect: str
    language: str
    subset: str


def read(folder: Path) -> list[Item]:
    """The pairs, named by aspect, language and id.

    Raises:
        ConfigError: If a file is absent.
        DataError: If a file does not have the data set's format.
    """
    return parse(files(folder, "Full*.parquet", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    if row.subset not in SIZES:
        raise ValueError(f"unknown subset {row.subset!r}")
    if row.aspect not in ASPECTS:
        raise ValueError(f"unknown aspect {row.aspect!r}")
    name = f"{row.aspect}:{row.language}:{row.id}"
    yield better_first(row.subset, name, row.prompt, [row.chosen], [row.rejected])


def native(judged: Judged) -> Plain:
    """The share of pairs whose better code has the higher reward (a tie is wrong): of all, and by
    aspect, language and subset."""
    return {
        "accuracy": strict_accuracy(judged),
        "aspects": _by_part(judged, 0),
        "languages": _by_part(judged, 1),
        "subsets": strict_by_subset(judged),
    }


def _by_part(judged: Judged, part: int) -> dict[str, float]:
    """The accuracy by a part of the items' names."""
    names: Sequence[str] = sorted({item.item.split(":")[part] for item in judged.items})

    return {
        name: strict_accuracy(judged.only(lambda item, n=name: item.item.split(":")[part] == n))  # type: ignore[misc]
        for name in names
    }


CODEREWARDBENCH = Benchmark(
    name="coderewardbench",
    home=HOME,
    read=read,
    native=native,
    domains={"objective": ()},
    sizes=SIZES,
)
