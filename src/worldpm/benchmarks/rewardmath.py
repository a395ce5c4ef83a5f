"""RewardMATH: 483 problems, each with one right solution and nine wrong ones.

A row is one solution as a list of steps. The rows of a problem follow each other:

    {"problem_id": 3, "problem": "2 + 2?", "eval_solution": ["2 + 2 is 4.", "So 4."],
     "solution_type": "chosen"}

Source: Kim et al. 2024, arXiv 2410.01729; https://github.com/kimsh0507/RewardMATH_official, commit
cde06ab, `src/evaluation/eval.py`.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from statistics import fmean

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, better_first, files, unique
from worldpm.benchmarks.metrics import best_wins
from worldpm.errors import DataError
from worldpm.storage import rows

HOME = "https://huggingface.co/datasets/RewardMATH/RewardMATH"


class _Row(msgspec.Struct, frozen=True):
    """One solution of a problem, as a list of steps."""

    problem_id: int | str
    problem: str
    eval_solution: list[str]
    solution_type: str


def read(folder: Path) -> list[Item]:
    """The 483 problems, named by their `problem_id`. The steps of a solution are joined by line
    breaks.

    Raises:
        ConfigError: If a file is absent.
        DataError: If a file does not have the data set's format.
    """
    paths = [path for path in files(folder, "*", home=HOME) if path.name.endswith(rows.SUFFIXES)]

    # without files, the second search raises an error that names the data set's file
    items: list[Item] = []
    for path in paths or files(folder, "*.parquet", home=HOME):
        items += _problems(path)

    return unique(items, folder)


def _problems(path: Path) -> Iterator[Item]:
    try:
        solutions = (msgspec.convert(row, _Row) for row in rows.read(path))
        for problem_id, members in groupby(solutions, key=lambda row: row.problem_id):
            yield _item(str(problem_id), list(members))
    except (ValueError, msgspec.ValidationError) as error:
        raise DataError(
            path,
            f"does not have the format of {HOME} ({type(error).__name__}: {error}). Download it"
            " again.",
        ) from error


def _item(name: str, solutions: list[_Row]) -> Item:
    texts: dict[str, list[str]] = {"chosen": [], "rejected": []}
    for solution in solutions:
        # solutions of other types are left out
        if solution.solution_type in texts:
            texts[solution.solution_type].append("\n".join(solution.eval_solution))
    return better_first("math", name, solutions[0].problem, texts["chosen"], texts["rejected"])


def native(judged: Judged) -> dict[str, float]:
    """Accuracy (the right solution beats all others; a tie is wrong), accuracy with ties counted as
    right, mean reciprocal rank, and accuracy over pairs."""
    with_ties: list[bool] = []
    reciprocal_ranks: list[float] = []
    pairwise: list[float] = []
    for better, worse in judged.sides():
        right = min(better)
        with_ties.append(right >= max(worse))
        # the right solution ranks after the wrong ones that tie with it
        reciprocal_ranks.append(1 / (1 + sum(reward >= right for reward in worse)))
        pairwise.append(fmean(right > reward for reward in worse))

    return {
        "accuracy": best_wins(judged),
        "accuracy with ties": fmean(with_ties),
        "mean reciprocal rank": fmean(reciprocal_ranks),
        "pairwise": fmean(pairwise),
    }


REWARDMATH = Benchmark(
    name="rewardmath",
    home=HOME,
    read=read,
    native=native,
    domains={"objective": ()},
    sizes={"math": 483},
)
