"""HelpSteer3's validation rows: two responses to a conversation and how much people prefer one, -3
to 3.

Source: Wang et al. 2025, arXiv 2505.11475; https://huggingface.co/datasets/nvidia/HelpSteer3,
`preference/`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.records import Message, Preference

HOME = "https://huggingface.co/datasets/nvidia/HelpSteer3 (`preference/validation.jsonl.gz`)"
SUBSETS = ("general", "stem", "code", "multilingual")
DOMAIN = "subjective"

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The pairs that are no tie, named by their row, with the preference's size as strength.

    Raises:
        ConfigError: If the file is absent.
        DataError: If it is not as the data set has it.
    """
    found = files(folder, "validation*.jsonl", home=HOME)
    own = [
        path for path in found if path.parent.name == "preference"
    ]  # the others hold feedback and edits
    return parse(own or found, _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    gap = row["overall_preference"]
    if gap not in range(-3, 4) or row["domain"] not in SUBSETS:
        raise ValueError(f"domain {row['domain']!r}, preference {gap!r}")
    if gap:
        prompt = [Message(str(message["role"]), message["content"]) for message in row["context"]]
        item = two(
            row["domain"],
            str(number),
            prompt,
            row["response1"],
            row["response2"],
            0 if gap < 0 else 1,
        )
        yield item._replace(preferences=(Preference(0, 1, float(abs(gap))),))


def native(judged: Judged) -> Json:
    """Accuracy by domain of the prompts, and over all pairs; a tie is wrong."""
    found = {
        name: strict_accuracy(judged.of(name))
        for name in SUBSETS
        if any(item.subset == name for item in judged.items)
    }
    return {**found, "overall": strict_accuracy(judged)}
