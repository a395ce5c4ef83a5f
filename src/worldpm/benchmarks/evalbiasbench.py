"""EvalBiasBench: 80 pairs in which a known bias of judges prefers the wrong answer.

A row of a bias's list in `biasbench.json`. The label, 1 or 2, is the number of the right response:

    {"bias": "length bias", "instruction": "2 + 2?", "response1": "4", "response2": "5, for ...",
     "label": 1}

Source: Park et al. 2024, arXiv 2407.06551; https://github.com/ncsoft/offsetbias, commit 0bd16e4,
`run_bench.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.benchmarks.metrics import strict_by_subset

HOME = "https://github.com/ncsoft/offsetbias (`data/evalbiasbench/biasbench.json`)"
SIZES = {
    "length bias": 17,
    "concreteness": 14,
    "empty reference": 13,
    "content_continuation": 12,
    "nested_instruction": 12,
    "familiar knowledge preference bias": 12,
}


class _Row(msgspec.Struct, frozen=True):
    """A right and a wrong response to an instruction."""

    bias: str
    instruction: str
    response1: str
    response2: str
    label: int | str


def read(folder: Path) -> list[Item]:
    """The 80 pairs, named by their row. The first response of each is the right one.

    Raises:
        ConfigError: If the file is absent.
        DataError: If the file does not have the repository's format.
    """
    return parse(files(folder, "biasbench.json", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    if str(row.label) not in ("1", "2") or row.bias not in SIZES:
        raise ValueError(f"unknown bias {row.bias!r} or label {row.label!r}")
    # remove the right response, which leaves the wrong one
    texts = [row.response1, row.response2]
    better = texts.pop(int(row.label) - 1)
    yield better_first(row.bias, str(number), row.instruction, [better], texts)


def native(judged: Judged) -> dict[str, float]:
    """Accuracy by bias, and the plain mean of the accuracies. Both orders must be right, so a tie
    is wrong."""
    by_bias = strict_by_subset(judged)
    return {**by_bias, "average": fmean(by_bias.values())}


EVALBIASBENCH = Benchmark(
    name="evalbiasbench",
    home=HOME,
    read=read,
    native=native,
    domains={"adversarial": ()},
    sizes=SIZES,
)
