"""RewardMATH: one right solution and nine wrong ones to each of 483 problems.

Source: Kim et al. 2024, arXiv 2410.01729; https://github.com/kimsh0507/RewardMATH_official, commit
cde06ab, `src/evaluation/eval.py`.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from worldpm.benchmarks.items import Item, Judged, better_first, files, unique
from worldpm.benchmarks.metrics import best_wins
from worldpm.errors import DataError
from worldpm.storage import rows

HOME = "https://huggingface.co/datasets/RewardMATH/RewardMATH"
SIZES = {"math": 483}
DOMAIN = "objective"

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 483 problems, named by their `problem_id`; a row is one solution, whose steps are joined
    by line breaks.

    Raises:
        ConfigError: If a file is absent.
        DataError: If a file is not as the data set has it.
    """
    paths = [path for path in files(folder, "*", home=HOME) if path.name.endswith(rows.SUFFIXES)]
    return unique(
        (
            item
            for path in paths or files(folder, "*.parquet", home=HOME)
            for item in _problems(path)
        ),
        folder,
    )


def _problems(path: Path) -> Iterator[Item]:
    try:
        for problem, members in groupby(rows.read(path), key=lambda row: row["problem_id"]):
            solutions = list(members)
            texts = {
                kind: [
                    "\n".join(s["eval_solution"]) for s in solutions if s["solution_type"] == kind
                ]
                for kind in ("chosen", "rejected")
            }
            yield better_first(
                "math", str(problem), solutions[0]["problem"], texts["chosen"], texts["rejected"]
            )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            path, f"not of the format of {HOME} ({type(error).__name__}: {error}); download it anew"
        ) from error


def native(judged: Judged) -> Json:
    """Accuracy (the right solution beats all, a tie being wrong), the same with ties right, mean
    reciprocal rank, and over pairs."""
    sides = list(judged.sides())
    ranks = [1 + sum(reward >= min(better) for reward in worse) for better, worse in sides]
    return {
        "accuracy": best_wins(judged),
        "accuracy with ties": fmean(min(better) >= max(worse) for better, worse in sides),
        "mean reciprocal rank": fmean(1 / rank for rank in ranks),
        "pairwise": fmean(
            fmean(min(better) > reward for reward in worse) for better, worse in sides
        ),
    }
