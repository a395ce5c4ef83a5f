"""RMB: helpfulness and harmlessness in 49 scenarios, as pairs, and as lists with one best answer.

A row of `Pairwise_set`, and a row of `BoN_set`:

    {"pair_uid": "1", "category_path": "Pairwise_set/Harmlessness/S1", "conversation_input":
     [{"role": "user", "content": "Q?"}], "chosen": {"answer": "A"}, "reject": {"answer": "B"}}
    {"bon_uid": "1", "category_path": "BoN_set/Helpfulness/Chat", "conversation_input":
     [{"role": "user", "content": "Q?"}], "bon_best": {"answer": "A"},
     "loser_list": [{"answer": "B"}, {"answer": "C"}]}

Source: Zhou et al. 2025, arXiv 2410.09893; https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark,
commit 2be3180.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, Turn, better_first, files, messages_of, parse
from worldpm.benchmarks.metrics import best_wins

HOME = "https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark (`RMB_dataset/`)"
SETS = {"Pairwise_set": "pairwise", "BoN_set": "best of n"}
SUBSETS = (
    "pairwise Helpfulness",
    "pairwise Harmlessness",
    "best of n Helpfulness",
    "best of n Harmlessness",
)


class _Answer(msgspec.Struct, frozen=True):
    """A response to a conversation."""

    answer: str


class _Row(msgspec.Struct, frozen=True):
    """The columns that both sets have."""

    category_path: str
    conversation_input: list[Turn]


class _Pair(_Row, frozen=True):
    """A row of `Pairwise_set`."""

    pair_uid: int | str
    chosen: _Answer
    reject: _Answer


class _List(_Row, frozen=True):
    """A row of `BoN_set`."""

    bon_uid: int | str
    bon_best: _Answer
    loser_list: list[_Answer]


def read(folder: Path) -> list[Item]:
    """The pairs and the lists, named `pair:UID` and `bon:UID`.

    Raises:
        ConfigError: If the files are absent.
        DataError: If a file does not have the repository's format.
    """
    pairs = files(folder, "Pairwise_set/*/**/*.json", home=HOME)
    lists = files(folder, "BoN_set/*/**/*.json", home=HOME)
    return parse(pairs, _Pair, _of_pair, home=HOME) + parse(lists, _List, _of_list, home=HOME)


def _of_pair(number: int, row: _Pair) -> Iterator[Item]:
    yield _item(row, f"pair:{row.pair_uid}", row.chosen, [row.reject])


def _of_list(number: int, row: _List) -> Iterator[Item]:
    yield _item(row, f"bon:{row.bon_uid}", row.bon_best, row.loser_list)


def _item(row: _Row, name: str, best: _Answer, worse: list[_Answer]) -> Item:
    # a path such as `Pairwise_set/Harmlessness/S1`
    kind, side = row.category_path.split("/")[:2]
    subset = f"{SETS[kind]} {side}"
    if subset not in SUBSETS:
        raise ValueError(f"unknown category {row.category_path!r}")

    prompt, texts = messages_of(row.conversation_input), [response.answer for response in worse]
    return better_first(subset, name, prompt, [best.answer], texts)


def native(judged: Judged) -> dict[str, float]:
    """The four sections and their plain mean. A tie is wrong, and a list is right only if its best
    answer beats every other."""
    present = judged.subsets
    sections = {name: best_wins(judged.of(name)) for name in SUBSETS if name in present}
    return {**sections, "average": fmean(sections.values())}


RMB = Benchmark(
    name="rmb",
    home=HOME,
    read=read,
    native=native,
    domains={
        "subjective": ("pairwise Helpfulness", "best of n Helpfulness"),
        "safety": ("pairwise Harmlessness", "best of n Harmlessness"),
    },
    sizes={
        "pairwise Helpfulness": 8456,
        "pairwise Harmlessness": 6087,
        "best of n Helpfulness": 2109,
        "best of n Harmlessness": 1677,
    },
)
