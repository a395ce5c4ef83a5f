"""HelpSteer2's validation rows: two responses to a prompt, rated 0 to 4 on five attributes.

A row of `validation.jsonl.gz` is one response; the other response to the prompt is another row:

    {"prompt": "Hi!", "response": "Hello!", "helpfulness": 4, "correctness": 4, "coherence": 4,
     "complexity": 1, "verbosity": 1}

Source: Wang et al. 2024, arXiv 2406.08673; https://huggingface.co/datasets/nvidia/HelpSteer2.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, files, two, unique
from worldpm.benchmarks.metrics import strict_by_subset
from worldpm.errors import DataError
from worldpm.records import Message, Preference
from worldpm.storage import dialogues, rows

HOME = "https://huggingface.co/datasets/nvidia/HelpSteer2 (`validation.jsonl.gz`)"
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
LARGEST_RATING = 4
Rating = Annotated[float, msgspec.Meta(ge=0, le=LARGEST_RATING)]
"""From 0."""


class _Row(msgspec.Struct, frozen=True):
    """One response to a prompt with its ratings."""

    prompt: str
    response: str
    helpfulness: Rating
    correctness: Rating
    coherence: Rating
    complexity: Rating
    verbosity: Rating


@dataclass(frozen=True)
class _Rated:
    """One row of the file."""

    number: int
    """From 0."""
    response: str
    ratings: dict[str, float]
    """0 to 4, by attribute."""


def read(folder: Path) -> list[Item]:
    """A pair for each attribute in which the two responses to a prompt differ, named
    `ATTRIBUTE:ROW` by the first's row.

    Raises:
        ConfigError: If the file is absent.
        DataError: If it is not of the data set's format.
    """
    items: list[Item] = []
    for path in files(folder, "validation*.jsonl", home=HOME):
        items += _items_of_file(path)

    return unique(items, folder)


def _items_of_file(path: Path) -> Iterator[Item]:
    """The pairs of a file, whose rows are not known to be of the format before they are read.

    Raises:
        DataError: If they are not.
    """
    try:
        by_prompt: dict[str, list[_Rated]] = {}
        for number, content in enumerate(rows.read(path)):
            row = msgspec.convert(content, _Row)
            by_prompt.setdefault(row.prompt, []).append(_rated(number, row))

        for prompt, rated in by_prompt.items():
            yield from _items_of_prompt(prompt, rated)
    except (ValueError, msgspec.ValidationError) as error:
        raise DataError(
            path,
            f"not of the format of {HOME} ({type(error).__name__}: {error}); download it again",
        ) from error


def _rated(number: int, row: _Row) -> _Rated:
    ratings = {
        "helpfulness": row.helpfulness,
        "correctness": row.correctness,
        "coherence": row.coherence,
        "complexity": row.complexity,
        "verbosity": row.verbosity,
    }
    return _Rated(number, row.response, ratings)


def _items_of_prompt(prompt: str, rated: list[_Rated]) -> Iterator[Item]:
    if len(rated) % 2:
        raise ValueError(
            f"{len(rated)} responses to the prompt of row {rated[0].number + 1}, not two"
        )

    # a prompt that occurs several times has two responses each time
    messages = dialogues.asked(prompt)
    for first, second in zip(rated[::2], rated[1::2], strict=True):
        for attribute in ATTRIBUTES:
            gap = first.ratings[attribute] - second.ratings[attribute]
            if gap:
                yield _item(attribute, messages, first, second, gap)


def _item(
    attribute: str, messages: tuple[Message, ...], first: _Rated, second: _Rated, gap: float
) -> Item:
    """The pair of two rated responses; the first is better if the gap of ratings is above 0."""
    better = 0 if gap > 0 else 1
    name = f"{attribute}:{first.number}"
    # a prompt has up to five items, so the name begins with the attribute
    item = two(attribute, name, messages, first.response, second.response, better)
    return replace(item, preferences=(Preference(0, 1, abs(gap)),))


def native(judged: Judged) -> dict[str, float]:
    """Accuracy by attribute; a tie is wrong."""
    return strict_by_subset(judged)


HELPSTEER2 = Benchmark(
    name="helpsteer2",
    home=HOME,
    read=read,
    native=native,
    # Complexity and verbosity go with length, not with quality: the paper shows all attributes, and
    # counts helpfulness.
    domains={"subjective": ATTRIBUTES[:1], "attributes": ATTRIBUTES[1:]},
)
