"""Overlap of training texts with benchmarks: runs of words that both have.

Source: Brown et al. 2020, arXiv 2005.14165, appendix C: 13-grams of words; runs that many items
share are no evidence.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import xxhash

from worldpm.records import PreferenceGroup
from worldpm.storage import rows

WORDS = 13
COMMON = 10
"""A run in items of more prompts than this is a set phrase (a template, a task's instructions) and
is left out."""
WORD = re.compile(r"\w+")
PROMPTS = ("prompt", "instruction", "question", "input")
"""Where rows of any set have their prompt."""


class Place(NamedTuple):
    """A benchmark's item."""

    benchmark: str
    item: str


class Overlap(NamedTuple):
    """A group that shares words with an item."""

    group_id: str
    place: Place
    words: int
    """Length of the longest run that both have, at least WORDS."""


class KnownTexts(Protocol):
    """Texts that training must not contain, such as a benchmark's item."""

    @property
    def item(self) -> str:
        """Its name."""

    @property
    def prompt_id(self) -> str:
        """Items of one prompt have the same."""

    @property
    def texts(self) -> Sequence[str]:
        """Prompt and responses."""


class FileRow(NamedTuple):
    """The texts of a row of a file."""

    item: str
    prompt_id: str
    texts: Sequence[str]


class Index:
    """The runs of WORDS words of benchmarks' texts; texts of fewer words cannot be found."""

    def __init__(self, benchmarks: Mapping[str, Iterable[KnownTexts]]) -> None:
        found: dict[int, set[Place]] = defaultdict(set)
        prompts: dict[int, set[str]] = defaultdict(set)
        for benchmark, items in benchmarks.items():
            for known in items:
                for run in (run for text in known.texts for run in _runs(text)):
                    found[run].add(Place(benchmark, known.item))
                    prompts[run].add(known.prompt_id)
        self._places = {run: places for run, places in found.items() if len(prompts[run]) <= COMMON}

    def overlaps(self, group: PreferenceGroup) -> list[Overlap]:
        """The items that the group's prompt or responses share words with, the longest overlap
        first."""
        longest: dict[Place, int] = {}
        for text in (
            *(message.content for message in group.prompt),
            *(response.content for response in group.responses),
        ):
            going: dict[Place, int] = {}
            for run in _runs(text):
                here = self._places.get(run, ())
                going = {place: going.get(place, WORDS - 1) + 1 for place in here}
                for place, words in going.items():
                    longest[place] = max(longest.get(place, 0), words)
        return sorted(
            (Overlap(group.group_id, place, words) for place, words in longest.items()),
            key=lambda one: (-one.words, one.place),
        )

    def found_in(self, groups: Iterable[PreferenceGroup]) -> dict[str, set[str]]:
        """The items of each benchmark that some group overlaps with."""
        found: dict[str, set[str]] = defaultdict(set)
        for group in groups:
            for overlap in self.overlaps(group):
                found[overlap.place.benchmark].add(overlap.place.item)
        return found


def texts_in(path: Path) -> Iterator[FileRow]:
    """Every text in every row of a file, JSON lines or Parquet, named by the row's number; rows of
    one prompt are told by it."""
    for number, row in enumerate(rows.read(path)):
        prompt = (
            next((str(row[name]) for name in PROMPTS if name in row), str(number))
            if isinstance(row, dict)
            else str(number)
        )
        yield FileRow(str(number), prompt, list(_strings(row)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)


def _runs(text: str) -> Iterator[int]:
    """A hash for each run of WORDS words, in order; case and punctuation do not count."""
    words = WORD.findall(text.lower())
    for start in range(len(words) - WORDS + 1):
        yield xxhash.xxh64_intdigest(" ".join(words[start : start + WORDS]).encode())
