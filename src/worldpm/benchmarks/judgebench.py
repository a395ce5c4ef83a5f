"""JudgeBench: a right and a wrong answer of one model to hard questions of knowledge, reasoning,
mathematics and code.

Source: Tan et al. 2025, arXiv 2410.12784; https://github.com/ScalerLab/JudgeBench, commit e2c52c2,
`utils/metrics.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy

HOME = "https://github.com/ScalerLab/JudgeBench (`data/*.jsonl`)"
SOURCES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
WRITERS = {"gpt-4o-2024-05-13": "gpt-4o", "claude-3-5-sonnet-20240620": "claude-3.5"}
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
DOMAIN = "objective"

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 350 pairs of GPT-4o and the 270 of Claude 3.5, named by their `pair_id`.

    Raises:
        ConfigError: If the files are absent.
        DataError: If a file is not as the repository has it.
    """
    return parse(files(folder, "dataset=judgebench*.jsonl", home=HOME), _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    kind = next(
        (name for prefix, name in SOURCES.items() if row["source"].startswith(prefix)), None
    )
    if kind is None or row["label"] not in ("A>B", "B>A"):
        raise ValueError(f"source {row['source']!r}, label {row['label']!r}")
    subset = f"{WRITERS[row['response_model']]} {kind}"
    yield two(
        subset,
        row["pair_id"],
        row["question"],
        row["response_A"],
        row["response_B"],
        0 if row["label"] == "A>B" else 1,
    )


def native(judged: Judged) -> Json:
    """Accuracy by source and over all pairs of each writer; it judges both orders, in which a tie
    is never right."""
    found: Json = {}
    for writer in WRITERS.values():
        names = [
            name
            for name in SIZES
            if name.startswith(writer) and any(item.subset == name for item in judged.items)
        ]
        if names:
            found[writer] = {
                name.removeprefix(f"{writer} "): strict_accuracy(judged.of(name)) for name in names
            }
            found[writer]["overall"] = strict_accuracy(judged.of(*names))
    return found
