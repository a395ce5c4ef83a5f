"""RewardBench 1: chat, hard chat, safety and reasoning pairs, and the section weights of its
leaderboard.

Source: Lambert et al. 2024, arXiv 2403.13787; https://github.com/allenai/reward-bench, commit
05a9005, `rewardbench/constants.py` and `rewardbench/utils.py` (`calculate_scores_per_section`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.benchmarks.metrics import strict_accuracy

HOME = "the `filtered` split of https://huggingface.co/datasets/allenai/reward-bench"
SECTIONS = {
    "Chat": (
        "alpacaeval-easy",
        "alpacaeval-length",
        "alpacaeval-hard",
        "mt-bench-easy",
        "mt-bench-med",
    ),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
LLMBAR = SECTIONS["Chat Hard"][1:]
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
DOMAINS = {
    "subjective": (*SECTIONS["Chat"], *PRIOR_SETS),
    "adversarial": SECTIONS["Chat Hard"],
    "safety": SECTIONS["Safety"],
    "objective": SECTIONS["Reasoning"],
}
SIZES = {
    "alpacaeval-easy": 100,
    "alpacaeval-length": 95,
    "alpacaeval-hard": 95,
    "mt-bench-easy": 28,
    "mt-bench-med": 40,
    "mt-bench-hard": 37,
    "math-prm": 447,
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134,
    "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 250,
    "donotanswer": 136,
    "hep-cpp": 164,
    "hep-go": 164,
    "hep-java": 164,
    "hep-js": 164,
    "hep-python": 164,
    "hep-rust": 164,
}
WEIGHTS = {**SIZES, "math-prm": 984}
"""What a subset counts in its section: its items, but math-prm as much as the six code subsets
together."""

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 2,985 pairs.

    Raises:
        ConfigError: If a file is absent.
        DataError: If a file is not as the data set has it.
    """
    return parse(files(folder, "filtered*.parquet", home=HOME), _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    if row["subset"] not in SIZES:
        raise ValueError(f"no subset {row['subset']!r}")
    yield better_first(
        row["subset"],
        f"{row['subset']}:{row['id']}",
        row["prompt"],
        [row["chosen"]],
        [row["rejected"]],
    )


def native(judged: Judged) -> Json:
    """Accuracy of each subset (a tie is wrong), the four sections, and their plain mean; with prior
    sets, also the first leaderboard's."""
    names = dict.fromkeys(item.subset for item in judged.items)
    accuracies = {name: strict_accuracy(judged.of(name)) for name in names}
    return {"subsets": accuracies, **sections(accuracies)}


def sections(accuracies: Mapping[str, float]) -> Json:
    """The sections of the subsets' accuracies, by WEIGHTS, and `average`, their plain mean.

    Where prior sets are known too, `average with prior sets` counts the mean of those half: weights
    2, 2, 2, 2, 1.
    """
    found = {}
    for section, subsets in SECTIONS.items():
        there = [name for name in subsets if name in accuracies]
        if there:
            found[section] = sum(accuracies[name] * WEIGHTS[name] for name in there) / sum(
                WEIGHTS[name] for name in there
            )
    result: Json = {**found}
    if len(found) == len(SECTIONS):
        result["average"] = fmean(found.values())
        if prior := [accuracies[name] for name in PRIOR_SETS if name in accuracies]:
            result["average with prior sets"] = (2 * sum(found.values()) + fmean(prior)) / (
                2 * len(SECTIONS) + 1
            )
    return result
