"""Items, which every benchmark consists of, and the reading of them from its authors' files."""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from worldpm.errors import ConfigError, DataError
from worldpm.records import Message, Preference, Response
from worldpm.storage import rows

Row = TypeVar("Row")


# Manifests hash the `repr` of items: renaming a field, or a tuple for a list, changes every hash.
@dataclass(frozen=True, slots=True)
class Item:
    """One prompt with its responses, and the preferences between them."""

    subset: str
    """The part of the benchmark that it belongs to."""
    item: str
    """Its name; no other item of the benchmark has it."""
    prompt_id: str
    """The cluster of the intervals: equal for items of one prompt."""
    prompt: Sequence[Message]
    """Empty if only raw rewards are known."""
    responses: Sequence[Response]
    """In the order that rewards and preferences refer to."""
    preferences: Sequence[Preference]
    """By indices into the responses."""
    shown: Sequence[int] | None = None
    """Index of each response in the source's order; None if that order gives the better one away,
    or is unknown."""
    qualities: Sequence[float] | None = None
    """Quality of each response; None if the set only tells better from worse."""

    @property
    def texts(self) -> list[str]:
        """The messages of the prompt and the responses."""
        prompt = [message.content for message in self.prompt]
        return prompt + [response.content for response in self.responses]

    @property
    def preferred(self) -> list[bool]:
        """Whether each response is in the better set: of the highest quality, or preferred to
        another response and no other preferred to it."""
        if self.qualities is not None:
            highest, lowest = max(self.qualities), min(self.qualities)
            return [quality == highest > lowest for quality in self.qualities]

        # in a chain a > b > c only a is never rejected
        chosen = {preference.chosen for preference in self.preferences}
        rejected = {preference.rejected for preference in self.preferences}
        better = chosen - rejected
        return [index in better for index in range(len(self.responses))]


@dataclass(frozen=True)
class Judged:
    """Items with the rewards of their responses; all lists are in the order of the items."""

    items: Sequence[Item]
    """The items that have rewards."""
    rewards: Sequence[Sequence[float]]
    """Reward of each response of each item, in logits."""
    length_tokens: Sequence[Sequence[int]] | None = None
    """Tokens of each response before any cut; None if unknown."""
    truncated: Sequence[Sequence[bool]] | None = None
    """Whether each response, or its prompt, was cut; None if unknown."""

    @property
    def subsets(self) -> list[str]:
        """Names of the items' subsets, in the order of the items."""
        return list(dict.fromkeys(item.subset for item in self.items))

    def only(self, keep: Callable[[Item], bool]) -> "Judged":
        """The items that meet a condition."""
        return self.at([index for index, item in enumerate(self.items) if keep(item)])

    def at(self, indices: Sequence[int]) -> "Judged":
        """The items at some indices, in the order of these."""
        lengths, truncated = self.length_tokens, self.truncated
        return Judged(
            [self.items[index] for index in indices],
            [self.rewards[index] for index in indices],
            None if lengths is None else [lengths[index] for index in indices],
            None if truncated is None else [truncated[index] for index in indices],
        )

    def named(self, names: Container[str]) -> "Judged":
        """The items of some names."""
        return self.only(lambda item: item.item in names)

    def of(self, *subsets: str) -> "Judged":
        """The items of some subsets."""
        return self.only(lambda item: item.subset in subsets)

    def sides(self) -> Iterator[tuple[list[float], list[float]]]:
        """The rewards of the better and of the worse responses of each item."""
        for item, rewards in zip(self.items, self.rewards, strict=True):
            better: list[float] = []
            worse: list[float] = []
            for reward, preferred in zip(rewards, item.preferred, strict=True):
                (better if preferred else worse).append(reward)
            yield better, worse


class Turn(msgspec.Struct, frozen=True):
    """A message of a conversation in a row of a file."""

    role: str
    content: str


def messages_of(prompt: str | Sequence[Turn]) -> tuple[Message, ...]:
    """The messages of a prompt that is a text of the user or a conversation."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(Message(turn.role, turn.content) for turn in prompt)


def prompt_id(prompt: Sequence[Message]) -> str:
    """An identifier of 16 hex digits, equal for equal prompts."""
    # control characters as separators: "ab", "c" and "a", "bc" must not be equal
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
        ValueError: If there is no pair.
    """
    messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    if not (messages and better and worse):
        raise ValueError(
            f"{len(messages)} messages, {len(better)} better and {len(worse)} worse responses; one"
            " of each is needed"
        )

    responses = tuple(map(Response, (*better, *worse)))
    preferences = every_pair(len(better), len(worse))
    return Item(subset, item, prompt_id(messages), messages, responses, preferences, shown)


def every_pair(better: int, worse: int) -> tuple[Preference, ...]:
    """Every better response preferred to every worse one; the pairs weigh 1 together.

    The better responses have the indices 0 to `better` - 1, and the worse ones follow.
    """
    return tuple(
        Preference(i, better + j, 1.0, weight=1 / (better * worse))
        for i in range(better)
        for j in range(worse)
    )


def two(
    subset: str, item: str, prompt: str | Sequence[Message], first: str, second: str, better: int
) -> Item:
    """An item of two responses in the order that its set shows them; `better` is 0 if the first is
    better, 1 if the second is."""
    if better == 0:
        return better_first(subset, item, prompt, [first], [second], shown=(0, 1))
    return better_first(subset, item, prompt, [second], [first], shown=(1, 0))


def files(folder: Path, *patterns: str, home: str) -> list[Path]:
    """The files of a benchmark, at any depth of its folder, gzipped or not, sorted by pattern.

    Raises:
        ConfigError: If the folder or a file is absent; the message says what to download and where
            it goes.
    """
    paths: list[Path] = []
    for pattern in patterns:
        matches: list[Path] = []
        if folder.is_dir():
            # at any depth: some copy a whole repository, others only its data
            matches = sorted({*folder.rglob(pattern), *folder.rglob(f"{pattern}.gz")})
        if not matches:
            raise ConfigError(
                f"{folder}: `{pattern}` is not there; download {home} and copy it to that folder"
            )

        # both would give every item twice
        if doubled := [path for path in matches if path.with_name(f"{path.name}.gz") in matches]:
            raise ConfigError(
                f"{doubled[0]}: its .gz is in the same folder. Remove one of the two."
            )
        paths += matches
    return paths


def unique(items: Iterable[Item], folder: Path) -> list[Item]:
    """The items, after a check that each name occurs once.

    Raises:
        DataError: If one occurs twice: a file may be there twice.
    """
    by_name: dict[str, Item] = {}
    for item in items:
        if item.item in by_name:
            raise DataError(folder, f"two items are named {item.item!r}; is a file there twice?")
        by_name[item.item] = item

    return list(by_name.values())


def parse(
    paths: Iterable[Path],
    row_type: type[Row],
    items_of: Callable[[int, Row], Iterable[Item]],
    *,
    home: str,
) -> list[Item]:
    """The items of all rows of the files; `items_of` gets a row's number, from 0 through all files,
    and the row as the type that has its columns.

    Raises:
        DataError: If a row is not of the benchmark's format, or two items have one name.
    """
    by_name: dict[str, Item] = {}
    number = 0
    for path in paths:
        for row in rows.read(path):
            # readers of sets take rows as documented: any of these errors means another format
            try:
                items = list(items_of(number, msgspec.convert(row, row_type)))
            except (LookupError, TypeError, ValueError, msgspec.ValidationError) as error:
                raise DataError(
                    path,
                    f"row {number + 1} is not of the format of {home} ({type(error).__name__}:"
                    f" {error}); download it again",
                ) from error

            for item in items:
                if item.item in by_name:
                    raise DataError(
                        path,
                        f"row {number + 1}: a second item named {item.item!r}; download {home}"
                        " again",
                    )
                by_name[item.item] = item
            number += 1
    return list(by_name.values())
