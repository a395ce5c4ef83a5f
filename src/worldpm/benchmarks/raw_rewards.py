"""Raw rewards of any model as tables, one row a response.

A row of the JSON lines or Parquet file of `--rewards`, with the columns that it must have:

    {"benchmark": "llmbar", "subset": "Natural", "item": "Natural:0", "response": 0,
     "preferred": true, "reward": 1.5}

`checkpoint`, `prompt_id`, `quality` and `length_tokens` are read if they are there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, every_pair
from worldpm.errors import DataError
from worldpm.records import Response
from worldpm.storage import rows
from worldpm.storage.json_files import Plain

LARGEST_REWARD = 1e9
"""In logits, either sign. Models give no larger ones, so that these, and NaN, are errors."""


class _Row(msgspec.Struct, frozen=True):
    """A row of the file; columns without a default must be there."""

    benchmark: str
    subset: str
    item: str
    response: int
    preferred: bool
    reward: float
    checkpoint: float | int | str | None = None
    prompt_id: float | int | str | None = None
    quality: float | bool | str | None = None
    """Some tables have numbers as text."""
    length_tokens: object = None
    """Unknown unless it is an integer: some tables have NaN for unknown ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardRow:
    """The reward of one response."""

    subset: str
    """Of the benchmark."""
    item: str
    """Name of the item, unique in its subset."""
    response: int
    """Index of the response among the item's."""
    preferred: bool
    """Whether it is in the better set."""
    reward: float
    """In logits, of a size up to LARGEST_REWARD."""
    prompt_id: str | None = None
    """The cluster of intervals; None leaves it to the benchmark."""
    quality: float | None = None
    """None if the set only tells better from worse."""
    length_tokens: int | None = None
    """Tokens of the response before any cut; None if not known."""


Responses = dict[int, RewardRow]
"""Rows of one item by the index of the response."""
ItemKey = tuple[str, str]
"""Subset and name of an item."""


def read(path: Path) -> dict[str, dict[str, list[RewardRow]]]:
    """The rows by checkpoint and benchmark; if the file names no checkpoint, its own name is taken.

    Raises:
        DataError: If a row lacks a column, or a value is not of its column's type or NaN; the
            message has the row's number.
    """
    tables: dict[str, dict[str, list[RewardRow]]] = {}
    for number, content in enumerate(rows.read(path), start=1):
        row = _checked(content, number, path)
        # tables of several checkpoints name them, as `rewards.parquet` does
        checkpoint = str(row.checkpoint or path.name.split(".")[0])
        by_benchmark = tables.setdefault(checkpoint, {})
        by_benchmark.setdefault(row.benchmark, []).append(_reward_row(row, number, path))

    if not tables:
        raise DataError(path, "holds no row")
    return tables


def _checked(content: object, number: int, path: Path) -> _Row:
    """A row of the file with the right types.

    Raises:
        DataError: If a value is not of the type that it must have, or the reward is too large.
    """
    try:
        row = msgspec.convert(content, _Row)
    except msgspec.ValidationError as error:
        raise DataError(path, f"row {number}: {_wrong_column(content)}") from error

    # "not at most" instead of "above", so that NaN is refused too
    if not abs(row.reward) <= LARGEST_REWARD:
        raise DataError(
            path,
            f"row {number}: the reward of item {row.item!r} is {row.reward!r:.40}; score it again",
        )
    return row


def _wrong_column(content: object) -> str:
    """The first column of another type, with its value, and the columns that a row needs."""
    values = content if isinstance(content, dict) else {}
    columns = msgspec.structs.fields(_Row)
    needed = ", ".join(column.name for column in columns if column.required)
    for column in columns:
        value = values.get(column.name)
        try:
            msgspec.convert(value, column.type)
        except msgspec.ValidationError as error:
            return f"{column.name} is {value!r:.40} ({error}); each row needs {needed}"
    raise AssertionError("every column is of its type")


def _reward_row(row: _Row, number: int, path: Path) -> RewardRow:
    return RewardRow(
        subset=row.subset,
        item=row.item,
        response=row.response,
        preferred=row.preferred,
        reward=row.reward,
        prompt_id=str(row.prompt_id) if row.prompt_id else None,
        quality=_quality(row, number, path),
        length_tokens=row.length_tokens if isinstance(row.length_tokens, int) else None,
    )


def _quality(row: _Row, number: int, path: Path) -> float | None:
    try:
        return None if row.quality is None else float(row.quality)
    except ValueError as error:
        raise DataError(
            path, f"row {number}: quality is {row.quality!r:.40}. Give a number or null."
        ) from error


def judged_of(
    table: Sequence[RewardRow], path: Path, benchmark: Benchmark, items: Sequence[Item] | None
) -> Judged:
    """The items of one benchmark with their rewards; without its files (`items` is None), items of
    which only the rewards are known.

    Raises:
        DataError: If an item's responses have gaps or double, do not have both better and worse, or
            are not those of the benchmark.
    """
    by_item = _by_item(table, path, benchmark)
    if items is None:
        return _without_texts(by_item, path, benchmark)

    by_key = {(item.subset, item.item): item for item in items}
    # both directions: a judged subset of the items would not be comparable with other models'
    if unknown := [key for key in by_item if key not in by_key]:
        raise DataError(
            path,
            f"{len(unknown)} items are not the benchmark's, first {unknown[0]}; score the same"
            " release of it",
        )
    if absent := [key for key in by_key if key not in by_item]:
        raise DataError(
            path, f"lacks {len(absent)} of the benchmark's {len(by_key)} items, first {absent[0]}"
        )

    ordered = [by_item[item.subset, item.item] for item in items]
    rewards = [_rewards(of_item, item, path) for of_item, item in zip(ordered, items, strict=True)]
    return Judged(items, rewards, _lengths(ordered))


def _by_item(
    table: Sequence[RewardRow], path: Path, benchmark: Benchmark
) -> dict[ItemKey, Responses]:
    """The rows by item.

    Raises:
        DataError: If an item's responses have gaps or double, or the benchmark has no such subset.
    """
    subsets = benchmark.named_subsets
    # files of a benchmark with a single subset may call it anything
    only_subset = min(subsets) if len(subsets) == 1 else None
    by_item: dict[ItemKey, Responses] = {}
    for row in table:
        responses = by_item.setdefault((only_subset or row.subset, row.item), {})
        if row.response in responses:
            raise DataError(path, f"item {row.item!r} has two rewards for response {row.response}")
        responses[row.response] = row

    for (_, name), responses in by_item.items():
        if sorted(responses) != list(range(len(responses))):
            raise DataError(
                path,
                f"item {name!r} has rewards for the responses {sorted(responses)[:9]}; expected 0,"
                " 1, ... without gaps",
            )

    if subsets and (unknown := {subset for subset, _ in by_item} - subsets):
        raise DataError(
            path,
            f"no subset of the benchmark is called {min(unknown)!r}; it has"
            f" {', '.join(sorted(subsets))}",
        )
    return by_item


def _rewards(responses: Responses, item: Item, path: Path) -> list[float]:
    """The rewards of an item in the order of its responses.

    Raises:
        DataError: If the item has other responses, or prefers others.
    """
    if len(responses) != len(item.responses):
        raise DataError(
            path,
            f"item {item.item!r} has {len(responses)} rewards for {len(item.responses)} responses",
        )

    ordered = _ordered(responses)
    if [row.preferred for row in ordered] != item.preferred:
        raise DataError(
            path,
            f"item {item.item!r} prefers other responses than the benchmark, which puts the better"
            " ones first",
        )
    return [row.reward for row in ordered]


def _ordered(responses: Responses) -> list[RewardRow]:
    return [responses[index] for index in range(len(responses))]


def _lengths(ordered: Sequence[Responses]) -> list[list[int]] | None:
    """Tokens of each response of each item; None if one of them is not known."""
    lengths: list[list[int]] = []
    for responses in ordered:
        tokens = [row.length_tokens for row in _ordered(responses)]
        # one unknown length leaves the whole feature unusable
        certain = [count for count in tokens if count is not None]
        if len(certain) < len(tokens):
            return None
        lengths.append(certain)
    return lengths


def _without_texts(by_item: dict[ItemKey, Responses], path: Path, benchmark: Benchmark) -> Judged:
    """Items without texts: every better response against every worse one.

    Raises:
        DataError: If an item does not have both better and worse responses.
    """
    items: list[Item] = []
    rewards: list[list[float]] = []
    for (subset, name), responses in by_item.items():
        # `sorted` keeps the order of the file among the better and among the worse ones
        ordered = sorted(_ordered(responses), key=lambda row: not row.preferred)
        better = sum(row.preferred for row in ordered)
        if not 0 < better < len(ordered):
            raise DataError(
                path,
                f"item {name!r} has {better} preferred of {len(ordered)} responses; one of each"
                " kind is needed",
            )

        qualities = [row.quality for row in ordered if row.quality is not None]
        item = Item(
            subset=subset,
            item=name,
            prompt_id=ordered[0].prompt_id or benchmark.cluster(subset, name),
            prompt=(),
            responses=(Response(""),) * len(ordered),
            preferences=every_pair(better, len(ordered) - better),
            qualities=qualities if len(qualities) == len(ordered) else None,
        )
        items.append(item)
        rewards.append([row.reward for row in ordered])
    return Judged(items, rewards)


def in_order_of(first: Judged, second: Judged, path: Path) -> Judged:
    """The second model's items in the order of the first's, so that the two can be compared pair by
    pair.

    Raises:
        DataError: If the two have other items, or other responses to them.
    """
    index_of = {(item.subset, item.item): index for index, item in enumerate(second.items)}
    keys = [(item.subset, item.item) for item in first.items]
    indices = [index_of[key] for key in keys if key in index_of]

    # with raw rewards only, equal items may still have other numbers of better and worse responses
    same_items = len(indices) == len(keys) == len(index_of)
    if not same_items or any(
        second.items[index].preferences != item.preferences
        for index, item in zip(indices, first.items, strict=True)
    ):
        raise DataError(
            path,
            "has other items, or other responses to them, than the first model; judge them one"
            " by one",
        )
    return second.at(indices)


def table_of(checkpoint: str, benchmark: str, judged: Judged) -> Iterator[Plain]:
    """The rows of `rewards.parquet`."""
    lengths, truncated = judged.length_tokens, judged.truncated

    for number, (item, rewards) in enumerate(zip(judged.items, judged.rewards, strict=True)):
        sides = zip(item.preferred, rewards, strict=True)
        for response, (preferred, reward) in enumerate(sides):
            yield {
                "checkpoint": checkpoint,
                "benchmark": benchmark,
                "subset": item.subset,
                "item": item.item,
                "response": response,
                "preferred": preferred,
                "reward": reward,
                "prompt_id": item.prompt_id,
                "quality": item.qualities[response] if item.qualities else None,
                "length_tokens": lengths[number][response] if lengths else None,
                "truncated": truncated[number][response] if truncated else None,
            }
