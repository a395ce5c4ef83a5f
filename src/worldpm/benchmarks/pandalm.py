"""PandaLM's test set: answers of two small models to everyday tasks, judged by three people.

A row of `testset-v1.json`. Each annotator gives 0 for a tie, 1 for the first response, and 2 for
the second:

    {"idx": 7, "instruction": "Rewrite.", "input": "", "response1": "A.", "response2": "B.",
     "annotator1": 2, "annotator2": 2, "annotator3": 1}

Source: Wang et al. 2023, arXiv 2306.05087; https://github.com/WeOpenML/PandaLM, commit 3871806,
`data/testset-v1.json`.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy

HOME = "https://github.com/WeOpenML/PandaLM (`data/testset-v1.json`)"


class _Row(msgspec.Struct, frozen=True):
    """Two answers to a task, with the labels of three people."""

    idx: int
    instruction: str
    input: str
    response1: bool | str
    response2: bool | str
    annotator1: int
    annotator2: int
    annotator3: int


def read(folder: Path) -> list[Item]:
    """The 894 pairs with a majority for one response, named by their `idx`. The other 105 of the
    999 rows are ties.

    In six rows a response is the JSON value `true`; it is read as the text `True`.

    Raises:
        ConfigError: If the file is absent.
        DataError: If the file does not have the repository's format.
    """
    return parse(files(folder, "testset-v1.json", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    labels = [row.annotator1, row.annotator2, row.annotator3]
    if not set(labels) <= {0, 1, 2}:
        raise ValueError(f"labels {labels} are not all 0, 1 or 2")

    # the JSON value `true` becomes the text "True"
    first, second = str(row.response1), str(row.response2)
    # no pair if three labels differ, or if the majority is for a tie
    label, votes = Counter(labels).most_common(1)[0]
    if label and votes > 1:
        prompt = "\n\n".join(text for text in (row.instruction, row.input) if text)
        yield two("pandalm", str(row.idx), prompt, first, second, label - 1)


def native(judged: Judged) -> dict[str, float]:
    """The share of pairs in which the majority's choice has the higher reward; equal rewards are
    wrong. Pairs with tied labels are left out."""
    return {"accuracy without ties": strict_accuracy(judged)}


PANDALM = Benchmark(
    name="pandalm",
    home=HOME,
    read=read,
    native=native,
    domains={"subjective": ()},
    sizes={"pandalm": 894},
)
