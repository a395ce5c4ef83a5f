"""Overlap of training texts with benchmarks: runs of words that both contain.

Source: Brown et al. 2020, arXiv 2005.14165, appendix C: 13-grams of words. Runs shared by many
items are not evidence.

A file of texts to search for may have any columns; every text in a row counts:

    {"prompt": "How?", "chosen": "So.", "rejected": "No."}
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import xxhash

from worldpm.preferences.word_breaks import spaced
from worldpm.records import PreferenceGroup
from worldpm.storage import rows

RUN_WORDS = 13
"""Words of a run."""
MOST_PROMPTS = 10
"""A run in items of more prompts than this is a common phrase (a template, a task's instructions)
and is ignored."""
WORD = re.compile(r"\w+")
PROMPTS = ("prompt", "instruction", "question", "input")
"""Names of the prompt in rows of files; the first that a row has counts."""


class BenchmarkItem(NamedTuple):
    """The names of an item and its benchmark."""

    benchmark: str
    item: str


class Overlap(NamedTuple):
    """A group that shares words with an item."""

    group_id: str
    item: BenchmarkItem
    length_words: int
    """Length of the longest run that both contain, at least RUN_WORDS."""


class KnownTexts(Protocol):
    """Texts that training must not contain, such as a benchmark's item."""

    @property
    def item(self) -> str:
        """Its name."""

    @property
    def prompt_id(self) -> str:
        """Id of the prompt, which all items of the prompt share."""

    @property
    def texts(self) -> Sequence[str]:
        """Prompt and responses."""


class FileRow(NamedTuple):
    """The texts of a row of a file."""

    item: str
    """Number of the row, from 0."""
    prompt_id: str
    """The row's prompt; its number if it has none."""
    texts: Sequence[str]
    """Every text in the row."""


class Index:
    """The runs of RUN_WORDS words in benchmarks' texts; shorter texts cannot be found."""

    def __init__(self, benchmarks: Mapping[str, Iterable[KnownTexts]]) -> None:
        items: dict[int, set[BenchmarkItem]] = defaultdict(set)
        prompts: dict[int, set[str]] = defaultdict(set)

        for benchmark, texts in benchmarks.items():
            for entry in texts:
                item = BenchmarkItem(benchmark, entry.item)
                for run in _runs_of_all(entry.texts):
                    items[run].add(item)
                    prompts[run].add(entry.prompt_id)

        # Prompts are counted, not items: many items of one prompt share its words, and such a run
        # is still evidence.
        evidence = [run for run in items if len(prompts[run]) <= MOST_PROMPTS]
        self._items = {run: items[run] for run in evidence}

    def overlaps(self, group: PreferenceGroup) -> list[Overlap]:
        """The items that the group's prompt or responses share words with, the longest overlap
        first."""
        longest: dict[BenchmarkItem, int] = {}
        texts = [message.content for message in group.prompt]
        texts += [response.content for response in group.responses]

        for text in texts:
            # Consecutive runs of an item form a longer run: each adds a word to it.
            current: dict[BenchmarkItem, int] = {}
            for run in _runs(text):
                items = self._items.get(run, ())
                current = {item: current.get(item, RUN_WORDS - 1) + 1 for item in items}
                for item, length in current.items():
                    longest[item] = max(longest.get(item, 0), length)

        overlaps = [Overlap(group.group_id, item, length) for item, length in longest.items()]
        return sorted(overlaps, key=lambda overlap: (-overlap.length_words, overlap.item))

    def found_in(self, groups: Iterable[PreferenceGroup]) -> dict[str, set[str]]:
        """The items of each benchmark that overlap with some group."""
        items: dict[str, set[str]] = defaultdict(set)
        for group in groups:
            for overlap in self.overlaps(group):
                items[overlap.item.benchmark].add(overlap.item.item)
        return items


def texts_in(path: Path) -> Iterator[FileRow]:
    """Every text in every row of a file, JSON lines or Parquet. The name of a row is its number,
    and its `prompt_id` is its prompt."""
    for number, row in enumerate(rows.read(path)):
        names = [name for name in PROMPTS if name in row] if isinstance(row, dict) else []
        prompt = str(row[names[0]]) if names else str(number)
        yield FileRow(str(number), prompt, list(_strings(row)))


def _strings(value: object) -> Iterator[str]:
    """All texts in a value of JSON, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)


def _runs_of_all(texts: Iterable[str]) -> Iterator[int]:
    for text in texts:
        yield from _runs(text)


def _runs(text: str) -> Iterator[int]:
    """A hash for each run of RUN_WORDS words, in order; case and punctuation do not count. A letter
    of a script without spaces counts as a word."""
    tokens = WORD.findall(spaced(text.lower()))
    for start in range(len(tokens) - RUN_WORDS + 1):
        yield xxhash.xxh64_intdigest(" ".join(tokens[start : start + RUN_WORDS]).encode())
