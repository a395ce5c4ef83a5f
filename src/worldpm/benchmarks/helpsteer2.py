"""HelpSteer2's validation rows: two responses to a prompt, rated 0 to 4 on five attributes.

Source: Wang et al. 2024, arXiv 2406.08673; https://huggingface.co/datasets/nvidia/HelpSteer2.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldpm.benchmarks.items import Item, Judged, better_first, files, unique
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.datasets import preference_sets
from worldpm.errors import DataError
from worldpm.records import Preference
from worldpm.storage import rows

HOME = "https://huggingface.co/datasets/nvidia/HelpSteer2 (`validation.jsonl.gz`)"
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
DOMAINS = {"subjective": ATTRIBUTES[:1], "attributes": ATTRIBUTES[1:]}
"""Complexity and verbosity go with length, not with worth: the paper shows all five, and counts
helpfulness."""

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """A pair for each attribute in which the two responses to a prompt differ, named
    `ATTRIBUTE:ROW` by the first's row.

    Raises:
        ConfigError: If the file is absent.
        DataError: If it is not as the data set has it.
    """
    return unique(
        (item for path in files(folder, "validation*.jsonl", home=HOME) for item in _items(path)),
        folder,
    )


def _items(path: Path) -> Iterator[Item]:
    try:
        of_prompt: dict[str, list[tuple[int, Json]]] = {}
        for number, row in enumerate(rows.read(path)):
            of_prompt.setdefault(row["prompt"], []).append((number, row))
        for members in of_prompt.values():
            if len(members) % 2:
                raise ValueError(
                    f"{len(members)} responses to the prompt of row {members[0][0] + 1}, not two"
                )
            for (number, first), (_, second) in zip(members[::2], members[1::2], strict=True):
                for attribute in ATTRIBUTES:
                    gap = _rating(first[attribute]) - _rating(second[attribute])
                    if gap:
                        better, worse = (first, second) if gap > 0 else (second, first)
                        prompt = preference_sets.asked(first["prompt"])
                        item = better_first(
                            attribute,
                            f"{attribute}:{number}",
                            prompt,
                            [better["response"]],
                            [worse["response"]],
                        )
                        shown = (0, 1) if gap > 0 else (1, 0)
                        yield item._replace(preferences=(Preference(0, 1, abs(gap)),), shown=shown)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            path, f"not of the format of {HOME} ({type(error).__name__}: {error}); download it anew"
        ) from error


def _rating(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 4:
        raise ValueError(f"a rating of {value!r}, not of 0 to 4")
    return float(value)


def native(judged: Judged) -> Json:
    """Accuracy by attribute; a tie is wrong."""
    return {
        name: strict_accuracy(judged.of(name))
        for name in dict.fromkeys(item.subset for item in judged.items)
    }
