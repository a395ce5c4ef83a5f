"""JudgeBench: hard questions of knowledge, reasoning, mathematics and code, each with a right and a
wrong answer of one model.

A row of `data/*.jsonl`:

    {"pair_id": "d3f5", "source": "mmlu-pro-law", "question": "Q?", "response_model":
     "gpt-4o-2024-05-13", "response_A": "B", "response_B": "C", "label": "B>A"}

Source: Tan et al. 2025, arXiv 2410.12784; https://github.com/ScalerLab/JudgeBench, commit e2c52c2,
`utils/metrics.py`.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy

HOME = "https://github.com/ScalerLab/JudgeBench (`data/*.jsonl`)"
SOURCES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
"""Kind of question, by the prefix of its source."""
WRITERS = {"gpt-4o-2024-05-13": "gpt-4o", "claude-3-5-sonnet-20240620": "claude-3.5"}
BETTER_INDEX = {"A>B": 0, "B>A": 1}
SIZES = {
    "gpt-4o knowledge": 154,
    "gpt-4o reasoning": 98,
    "gpt-4o math": 56,
    "gpt-4o coding": 42,
    "claude-3.5 knowledge": 154,
    "claude-3.5 reasoning": 51,
    "claude-3.5 math": 34,
    "claude-3.5 coding": 31,
}


class _Row(msgspec.Struct, frozen=True):
    """Two answers of one model to a question."""

    pair_id: str
    source: str
    question: str
    response_model: str
    response_a: str = msgspec.field(name="response_A")
    response_b: str = msgspec.field(name="response_B")
    label: str


def read(folder: Path) -> list[Item]:
    """The 350 pairs of GPT-4o and the 270 of Claude 3.5, named by their `pair_id`.

    Raises:
        ConfigError: If the files are absent.
        DataError: If a file does not have the repository's format.
    """
    return parse(files(folder, "dataset=judgebench*.jsonl", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    # a source continues after the prefix, as in `mmlu-pro-law`
    kinds = [kind for prefix, kind in SOURCES.items() if row.source.startswith(prefix)]
    if not kinds or row.label not in BETTER_INDEX:
        raise ValueError(f"unknown source {row.source!r} or label {row.label!r}")

    yield two(
        f"{WRITERS[row.response_model]} {kinds[0]}",
        row.pair_id,
        row.question,
        row.response_a,
        row.response_b,
        BETTER_INDEX[row.label],
    )


def native(judged: Judged) -> dict[str, dict[str, float]]:
    """Accuracy by source and over all pairs, for each writer. JudgeBench judges both orders, so a
    tie is never right."""
    present = judged.subsets
    by_writer: dict[str, dict[str, float]] = {}
    for writer in WRITERS.values():
        names = [name for name in SIZES if name.startswith(writer) and name in present]
        if names:
            accuracies = {
                name.removeprefix(f"{writer} "): strict_accuracy(judged.of(name)) for name in names
            }
            by_writer[writer] = {**accuracies, "overall": strict_accuracy(judged.of(*names))}

    return by_writer


JUDGEBENCH = Benchmark(
    name="judgebench",
    home=HOME,
    read=read,
    native=native,
    domains={"objective": ()},
    sizes=SIZES,
)
