"""What every benchmark is made of: items with preferences, read from the files of its repository.

A benchmark is a module with
- `HOME`, where its files come from, and `SIZES`, the items of each subset in the release that was
  read for this code;
- `DOMAINS`, its subsets by domain, or `DOMAIN` where all are of one;
- `read(folder) -> list[Item]`;
- `native(judged) -> dict`, its own aggregates under their own names, with its own rule for ties.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from worldpm.errors import ConfigError, DataError
from worldpm.records import Message, Preference, Response
from worldpm.storage import rows

Json = dict[str, Any]


class Item(NamedTuple):
    """One prompt with its responses, and which of them are better."""

    subset: str
    item: str
    """Its name, not shared by another item of the benchmark."""
    prompt_id: str
    """Items that share a prompt share it: the cluster of the intervals."""
    prompt: Sequence[Message]
    """Empty where only raw rewards are known."""
    responses: Sequence[Response]
    preferences: Sequence[Preference]
    shown: Sequence[int] | None = None
    """Where each response stands in the source's own order, where that says nothing of which is
    better."""
    qualities: Sequence[float] | None = None
    """What each response is worth, where a set says more than better and worse."""

    @property
    def texts(self) -> list[str]:
        """The messages of the prompt and the responses."""
        return [
            *(message.content for message in self.prompt),
            *(response.content for response in self.responses),
        ]

    @property
    def preferred(self) -> list[bool]:
        """Whether each response is in the better set: of the highest quality, or preferred to some
        other and none to it."""
        if self.qualities is not None:
            return [
                quality == max(self.qualities) > min(self.qualities) for quality in self.qualities
            ]
        better = {p.chosen for p in self.preferences} - {p.rejected for p in self.preferences}
        return [place in better for place in range(len(self.responses))]


class Judged(NamedTuple):
    """Items with the rewards of their responses, in the same order."""

    items: Sequence[Item]
    rewards: Sequence[Sequence[float]]
    length_tokens: Sequence[Sequence[int]] | None = None
    truncated: Sequence[Sequence[bool]] | None = None
    """Whether each response, or its prompt, was cut."""

    def only(self, keep: Callable[[Item], bool]) -> Self:
        """The items that are wanted."""
        return self.at([place for place, item in enumerate(self.items) if keep(item)])

    def at(self, places: Sequence[int]) -> Self:
        """The items at some places, in that order."""
        lengths = (
            None if self.length_tokens is None else [self.length_tokens[place] for place in places]
        )
        cut = None if self.truncated is None else [self.truncated[place] for place in places]
        return type(self)(
            [self.items[place] for place in places],
            [self.rewards[place] for place in places],
            lengths,
            cut,
        )

    def of(self, *subsets: str) -> Self:
        """The items of some subsets."""
        return self.only(lambda item: item.subset in subsets)

    def sides(self) -> Iterator[tuple[list[float], list[float]]]:
        """The rewards of the better and of the other responses of each item."""
        for item, rewards in zip(self.items, self.rewards, strict=True):
            preferred = item.preferred
            yield (
                [r for r, good in zip(rewards, preferred, strict=True) if good],
                [r for r, good in zip(rewards, preferred, strict=True) if not good],
            )


def prompt_id(prompt: Sequence[Message]) -> str:
    """The same for the same prompt, 16 hex digits."""
    text = "\x1e".join(f"{message.role}\x1f{message.content}" for message in prompt)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def better_first(
    subset: str,
    item: str,
    prompt: str | Sequence[Message],
    better: Sequence[str],
    worse: Sequence[str],
    *,
    shown: Sequence[int] | None = None,
) -> Item:
    """An item in which every better response is preferred to every worse one; its pairs weigh 1
    together.

    Raises:
        TypeError: If a text is none.
        ValueError: If there is no pair.
    """
    messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    texts = [message.content for message in messages] + [*better, *worse]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("something else than text")
    if not (messages and better and worse):
        raise ValueError(
            f"{len(messages)} messages, {len(better)} better and {len(worse)} worse responses; one"
            " of each is needed"
        )
    return Item(
        subset,
        item,
        prompt_id(messages),
        messages,
        tuple(map(Response, (*better, *worse))),
        pairs_of(len(better), len(worse)),
        shown,
    )


def pairs_of(better: int, worse: int) -> tuple[Preference, ...]:
    """Every better response before every worse one, weighing 1 together."""
    return tuple(
        Preference(i, better + j, 1.0, weight=1 / (better * worse))
        for i in range(better)
        for j in range(worse)
    )


def two(
    subset: str, item: str, prompt: str | Sequence[Message], first: str, second: str, better: int
) -> Item:
    """An item of two responses of which the first (`better` 0) or the second (1) is better, in the
    order that its set shows them."""
    texts = (first, second) if better == 0 else (second, first)
    return better_first(
        subset, item, prompt, texts[:1], texts[1:], shown=(0, 1) if better == 0 else (1, 0)
    )


def files(folder: Path, *patterns: str, home: str) -> list[Path]:
    """The files of a benchmark, wherever in its folder they lie, gzipped or not, sorted; each
    pattern finds one at least.

    Raises:
        ConfigError: If the folder or a file is absent; the message says what to download and where
            it goes.
    """
    found: list[Path] = []
    for pattern in patterns:
        matches = (
            sorted({*folder.rglob(pattern), *folder.rglob(f"{pattern}.gz")})
            if folder.is_dir()
            else []
        )
        if not matches:
            raise ConfigError(
                f"{folder}: `{pattern}` is not there; download {home} and copy it to that folder"
            )
        if twice := [path for path in matches if path.with_name(f"{path.name}.gz") in matches]:
            raise ConfigError(f"{twice[0]}: stands beside its own .gz; keep one of the two")
        found += matches
    return found


def unique(items: Iterable[Item], folder: Path) -> list[Item]:
    """The items, none of whose names stands twice.

    Raises:
        DataError: If one does: a file may be there twice.
    """
    found: dict[str, Item] = {}
    for item in items:
        if item.item in found:
            raise DataError(folder, f"two items are named {item.item!r}; is a file there twice?")
        found[item.item] = item
    return list(found.values())


def parse(
    paths: Iterable[Path], items_of: Callable[[int, Any], Iterable[Item]], *, home: str
) -> list[Item]:
    """The items of all rows of the files; `items_of` gets a row's number, from 0 through all files,
    and the row.

    Raises:
        DataError: If a row is not as the benchmark has it, or two items have one name.
    """
    found: dict[str, Item] = {}
    number = 0
    for path in paths:
        for row in rows.read(path):
            try:
                made = list(items_of(number, row))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise DataError(
                    path,
                    f"row {number + 1} is not of the format of {home} ({type(error).__name__}:"
                    f" {error}); download it anew",
                ) from error
            for item in made:
                if item.item in found:
                    raise DataError(
                        path,
                        f"row {number + 1}: a second item named {item.item!r}; download {home}"
                        " anew",
                    )
                found[item.item] = item
            number += 1
    return list(found.values())
