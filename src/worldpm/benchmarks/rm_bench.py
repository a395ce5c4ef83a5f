"""RM-Bench: right and subtly wrong answers, each in three styles, so that a judge of style is found
out.

Source: Liu et al. 2025, arXiv 2410.16184; https://github.com/THU-KEG/RM-Bench, commit 73c52d7,
`scripts/utils.py`.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.errors import DataError

HOME = "https://github.com/THU-KEG/RM-Bench (`data/*.json`)"
SIZES = {"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157}
DOMAINS = {
    "adversarial": ("chat",),
    "objective": ("code", "math"),
    "safety": ("safety-refuse", "safety-response"),
}
STYLES = ("concise", "detailed", "markdown")
POOLS = {
    "chat": ("chat",),
    "math": ("math",),
    "code": ("code",),
    "safety": ("safety-refuse", "safety-response"),
}
"""Its four domains; the two kinds of safety are pooled by item, not averaged."""

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 1,327 items of three right and three wrong answers, from `total_dataset.json` or the five
    files by domain.

    Raises:
        ConfigError: If a file is absent.
        DataError: If a file is not as the repository has it.
    """
    if folder.is_dir() and any(folder.rglob("total_dataset.json*")):
        return parse(
            files(folder, "total_dataset.json", home=HOME),
            lambda number, row: _items(row["domain"], number, row),
            home=HOME,
        )
    return [
        item
        for domain in SIZES
        for item in parse(
            files(folder, f"{domain}_filtered.json", home=HOME), partial(_items, domain), home=HOME
        )
    ]


def _items(domain: str, number: int, row: Json) -> Iterator[Item]:
    if domain not in SIZES:
        raise ValueError(f"no domain {domain!r}")
    if len(row["chosen"]) != len(STYLES) or len(row["rejected"]) != len(STYLES):
        raise ValueError(
            f"{len(row['chosen'])} chosen and {len(row['rejected'])} rejected answers;"
            f" {len(STYLES)} of each are needed"
        )
    yield better_first(
        domain, f"{domain}:{row['id']}", row["prompt"], row["chosen"], row["rejected"]
    )


def native(judged: Judged) -> Json:
    """Its domains' and difficulties' accuracies, a tie being wrong, and the 3 x 3 of styles (chosen
    in rows).

    Hard: the chosen answer has the plainer style; easy: the richer; normal: the same. A domain is
    the mean of the three, the whole the mean of the domains that are there.
    """
    found: Json = {}
    matrices: dict[str, list[list[float]]] = {}
    for name, subsets in POOLS.items():
        pool = judged.of(*subsets)
        if pool.items:
            matrices[name] = matrix(pool)
            found[name] = _difficulties(matrices[name])
    means = {
        level: fmean(one[level] for one in found.values()) for level in ("easy", "normal", "hard")
    }
    domains = {name: fmean(levels.values()) for name, levels in found.items()}
    return {
        "domains": domains,
        "difficulties": means,
        "average": fmean(domains.values()),
        "by domain": found,
        "matrix": matrices,
    }


def matrix(judged: Judged) -> list[list[float]]:
    """The share of items in which the right answer of style i (row) beats the wrong one of style j
    (column).

    Raises:
        DataError: If an item has not three rewards of each.
    """
    sides = list(judged.sides())
    for item, (better, worse) in zip(judged.items, sides, strict=True):
        if len(better) != len(STYLES) or len(worse) != len(STYLES):
            raise DataError(
                "rm-bench",
                f"item {item.item!r} has {len(better)} right and {len(worse)} wrong answers; 3 of"
                " each are needed",
            )
    return [
        [fmean(better[i] > worse[j] for better, worse in sides) for j in range(len(STYLES))]
        for i in range(len(STYLES))
    ]


def _difficulties(cells: list[list[float]]) -> dict[str, float]:
    places = [(i, j) for i in range(len(STYLES)) for j in range(len(STYLES))]
    return {
        "easy": fmean(cells[i][j] for i, j in places if i > j),
        "normal": fmean(cells[i][j] for i, j in places if i == j),
        "hard": fmean(cells[i][j] for i, j in places if i < j),
    }
