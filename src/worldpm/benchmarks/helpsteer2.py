"""HelpSteer2's validation rows: two responses to a prompt, rated 0 to 4 on five attributes.

A row of `validation.jsonl.gz` is one response. The other response to the prompt is another row:

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
"""A rating, 0 to 4."""


class _Row(msgspec.Struct, frozen=True):
    """One response to a prompt, with its ratings."""

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
    """Number of the row, from 0."""
    response: str
    ratings: dict[str, float]
    """Ratings by attribute, 0 to 4."""


def read(folder: Path) -> list[Item]:
    """A pair for each attribute in which the two responses to a prompt differ. Pairs are named
    `ATTRIBUTE:ROW`, with the first response's row.

    Raises:
        ConfigError: If the file is absent.
        DataError: If the file does not have the data set's format.
    """
    items: list[Item] = []
    for path in files(folder, "validation*.jsonl", home=HOME):
        items += _items_of_file(path)

    return unique(items, folder)


def _items_of_file(path: Path) -> Iterator[Item]:
    """The pairs of a file.

    Raises:
        DataError: If a row does not have the data set's format.
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
            f"does not have the format of {HOME} ({type(error).__name__}: {error}). Download it"
            " again.",
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
            f"the prompt of row {rated[0].number + 1} has {len(rated)} responses instead of two"
        )

    # a prompt can occur several times, each time with two responses
    messages = dialogues.asked(prompt)
    for first, second in zip(rated[::2], rated[1::2], strict=True):
        for attribute in ATTRIBUTES:
            gap = first.ratings[attribute] - second.ratings[attribute]
            if gap:
                yield _item(attribute, messages, first, second, gap)


def _item(
    attribute: str, messages: tuple[Message, ...], first: _Rated, second: _Rated, gap: float
) -> Item:
    """The pair of two rated responses. The first is better if the gap of ratings is above 0."""
    better = 0 if gap > 0 else 1
    name = f"{attribute}:{first.number}"
    # the name begins with the attribute, because a prompt has up to five items
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
    # The paper shows all attributes, but counts only helpfulness. Complexity and verbosity measure
    # length rather than quality.
    domains={"subjective": ATTRIBUTES[:1], "attributes": ATTRIBUTES[1:]},
)
