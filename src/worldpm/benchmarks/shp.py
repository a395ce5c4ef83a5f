"""SHP's test split: two comments on a Reddit post. The later comment has more votes.

A row of `SUBREDDIT/test.json`. The label is 1 if comment A has more votes, and 0 if comment B has:

    {"post_id": "p", "domain": "askbaking_test", "history": "Q?", "c_root_id_A": "a",
     "c_root_id_B": "b", "human_ref_A": "A.", "human_ref_B": "B.", "labels": 1, "score_A": 9,
     "score_B": 2}

Source: Ethayarajh et al. 2022, arXiv 2110.08420; https://huggingface.co/datasets/stanfordnlp/SHP.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy, strict_by_subset
from worldpm.records import Preference

HOME = "https://huggingface.co/datasets/stanfordnlp/SHP (`SUBREDDIT/test.json`)"


class _Row(msgspec.Struct, frozen=True):
    """Two comments on a post."""

    post_id: str
    domain: str
    history: str
    id_a: str = msgspec.field(name="c_root_id_A")
    id_b: str = msgspec.field(name="c_root_id_B")
    comment_a: str = msgspec.field(name="human_ref_A")
    comment_b: str = msgspec.field(name="human_ref_B")
    labels: int
    score_a: int = msgspec.field(name="score_A")
    score_b: int = msgspec.field(name="score_B")


def read(folder: Path) -> list[Item]:
    """The pairs, named `POST:A:B` by their comments. Subsets are subreddits, and the difference of
    votes is the strength.

    Raises:
        ConfigError: If the file is missing.
        DataError: If a file does not have the data set's format.
    """
    return parse(files(folder, "test.json", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    if row.labels not in (0, 1):
        raise ValueError(f"label {row.labels} is not 0 or 1")

    subset = row.domain.removesuffix("_test")
    name = f"{row.post_id}:{row.id_a}:{row.id_b}"
    better = 1 - row.labels  # the index of the better comment, A or B
    item = two(subset, name, row.history, row.comment_a, row.comment_b, better)

    # a strength must be above 0, even if both comments have the same number of votes
    strength = float(abs(row.score_a - row.score_b)) or 1.0
    yield replace(item, preferences=(Preference(0, 1, strength),))


def native(judged: Judged) -> dict[str, float]:
    """Accuracy by subreddit and over all pairs; a tie is wrong."""
    by_subreddit = strict_by_subset(judged)
    return {**by_subreddit, "overall": strict_accuracy(judged)}


SHP = Benchmark(name="shp", home=HOME, read=read, native=native, domains={"subjective": ()})
