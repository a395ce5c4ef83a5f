"""RM-Bench: right and subtly wrong answers, each in three styles, to expose models that judge by
style.

A row of `chat_filtered.json`. The styles are concise, detailed, and detailed with Markdown. A row
of `total_dataset.json` also has a `domain`:

    {"id": 7, "prompt": "2 + 2?", "chosen": ["4", "It is 4.", "**4**"],
     "rejected": ["5", "It is 5.", "**5**"]}

Source: Liu et al. 2025, arXiv 2410.16184; https://github.com/THU-KEG/RM-Bench, commit 73c52d7,
`scripts/utils.py`.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.errors import DataError
from worldpm.storage.json_files import Plain

HOME = "https://github.com/THU-KEG/RM-Bench (`data/*.json`)"
SIZES = {"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157}
STYLES = ("concise", "detailed", "markdown")
POOLS = {
    "chat": ("chat",),
    "math": ("math",),
    "code": ("code",),
    "safety": ("safety-refuse", "safety-response"),
}
"""Subsets of RM-Bench's four domains. The items of the two safety subsets are pooled."""


class _Row(msgspec.Struct, frozen=True):
    """A prompt with right and wrong answers, both in the order of STYLES."""

    id: int | str
    prompt: str
    chosen: list[str]
    rejected: list[str]


class _RowOfAll(_Row, frozen=True):
    """A row of the file that has all domains."""

    domain: str


def read(folder: Path) -> list[Item]:
    """The 1,327 items of three right and three wrong answers, from `total_dataset.json` or from one
    file for each of five domains.

    Raises:
        ConfigError: If a file is absent.
        DataError: If a file does not have the repository's format.
    """
    if folder.is_dir() and any(folder.rglob("total_dataset.json*")):
        # in this file, each row has a column `domain`
        paths = files(folder, "total_dataset.json", home=HOME)
        return parse(
            paths, _RowOfAll, lambda number, row: _items(row.domain, number, row), home=HOME
        )

    items: list[Item] = []
    for domain in SIZES:
        paths = files(folder, f"{domain}_filtered.json", home=HOME)
        items += parse(paths, _Row, partial(_items, domain), home=HOME)
    return items


def _items(domain: str, number: int, row: _Row) -> Iterator[Item]:
    if domain not in SIZES:
        raise ValueError(f"unknown domain {domain!r}")
    if len(row.chosen) != len(STYLES) or len(row.rejected) != len(STYLES):
        raise ValueError(
            f"{len(row.chosen)} chosen and {len(row.rejected)} rejected answers instead of"
            f" {len(STYLES)} of each"
        )
    yield better_first(domain, f"{domain}:{row.id}", row.prompt, row.chosen, row.rejected)


def native(judged: Judged) -> Plain:
    """Accuracy by domain and difficulty (a tie is wrong), and the 3 x 3 matrix of styles, with the
    chosen answer's style in rows.

    A pair is hard if the chosen answer has the plainer style, easy if it has the richer style, and
    normal if both have the same. A domain's accuracy is the mean of the three difficulties, and the
    average is the mean over domains with items.
    """
    matrices: dict[str, list[list[float]]] = {}
    for name, subsets in POOLS.items():
        pool = judged.of(*subsets)
        if pool.items:
            matrices[name] = matrix(pool)

    by_domain = {name: _difficulties(cells) for name, cells in matrices.items()}
    domains = {name: fmean(level.values()) for name, level in by_domain.items()}
    levels = by_domain.values()
    return {
        "domains": domains,
        "difficulties": {
            "easy": fmean(level["easy"] for level in levels),
            "normal": fmean(level["normal"] for level in levels),
            "hard": fmean(level["hard"] for level in levels),
        },
        "average": fmean(domains.values()),
        "by domain": by_domain,
        "matrix": matrices,
    }


def matrix(judged: Judged) -> list[list[float]]:
    """The share of items in which the right answer of style i (row) beats the wrong answer of style
    j (column).

    Raises:
        DataError: If an item does not have three right and three wrong answers.
    """
    sides = list(judged.sides())
    for item, (better, worse) in zip(judged.items, sides, strict=True):
        if len(better) != len(STYLES) or len(worse) != len(STYLES):
            raise DataError(
                "rm-bench",
                f"item {item.item!r} has {len(better)} right and {len(worse)} wrong answers. It"
                " needs 3 of each.",
            )

    cells: list[list[float]] = []
    for right in range(len(STYLES)):
        cells.append([_share_won(sides, right, wrong) for wrong in range(len(STYLES))])
    return cells


def _share_won(sides: list[tuple[list[float], list[float]]], right: int, wrong: int) -> float:
    """The share of items in which the right answer of one style beats the wrong answer of
    another."""
    return fmean(better[right] > worse[wrong] for better, worse in sides)


def _difficulties(cells: list[list[float]]) -> dict[str, float]:
    # styles are ordered by richness: above the diagonal, the wrong answer has the richer style
    indices = [(i, j) for i in range(len(STYLES)) for j in range(len(STYLES))]
    return {
        "easy": fmean(cells[i][j] for i, j in indices if i > j),
        "normal": fmean(cells[i][j] for i, j in indices if i == j),
        "hard": fmean(cells[i][j] for i, j in indices if i < j),
    }


RM_BENCH = Benchmark(
    name="rm-bench",
    home=HOME,
    read=read,
    native=native,
    domains={
        "adversarial": ("chat",),
        "objective": ("code", "math"),
        "safety": ("safety-refuse", "safety-response"),
    },
    sizes=SIZES,
)
