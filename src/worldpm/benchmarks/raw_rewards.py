"""Raw rewards of any model, as tables: `benchmark, subset, item, response, preferred, reward`, one
row per response."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from worldpm.benchmarks.items import Item, Judged, pairs_of
from worldpm.errors import DataError
from worldpm.records import Response
from worldpm.storage import rows

Json = dict[str, Any]

Kinds = dict[str, type | tuple[type, ...]]
COLUMNS: Kinds = {
    "benchmark": str,
    "subset": str,
    "item": str,
    "response": int,
    "preferred": bool,
    "reward": (int, float),
}


LARGEST = 1e9
"""No logit is larger; what is, or is NaN, is a mistake."""


def read(path: Path) -> dict[str, dict[str, list[Json]]]:
    """The rows by checkpoint and benchmark; where the file names no checkpoint, it is called after
    the file.

    Raises:
        DataError: If a row lacks a column, or has something else in it than it should, such as NaN;
            its number is named.
    """
    found: dict[str, dict[str, list[Json]]] = {}
    for number, row in enumerate(rows.read(path), start=1):
        for name, kind in COLUMNS.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                raise DataError(
                    path,
                    f"row {number}: {name} is {value!r:.40}; each row needs {', '.join(COLUMNS)}",
                )
        if not abs(row["reward"]) <= LARGEST:
            raise DataError(
                path,
                f"row {number}: the reward of item {row['item']!r} is {row['reward']!r:.40}; score"
                " it anew",
            )
        checkpoint = str(row.get("checkpoint") or path.name.split(".")[0])
        found.setdefault(checkpoint, {}).setdefault(row["benchmark"], []).append(row)
    if not found:
        raise DataError(path, "holds no row")
    return found


def judged(
    table: Sequence[Json], path: Path, module: ModuleType, items: Sequence[Item] | None
) -> Judged:
    """The items of one benchmark with their rewards; without its own files, items of which only the
    rewards are known.

    Raises:
        DataError: If an item's responses have gaps or double, do not have both better and worse, or
            are not those of the benchmark.
    """
    known_subsets = {
        *getattr(module, "SIZES", {}),
        *(name for names in getattr(module, "DOMAINS", {}).values() for name in names),
    }
    only = min(known_subsets) if len(known_subsets) == 1 else None  # one subset may have any name
    by_item: dict[tuple[str, str], dict[int, Json]] = {}
    for row in table:
        responses = by_item.setdefault((only or row["subset"], row["item"]), {})
        if row["response"] in responses:
            raise DataError(
                path, f"item {row['item']!r} has two rewards for response {row['response']}"
            )
        responses[row["response"]] = row
    for (_, name), responses in by_item.items():
        if sorted(responses) != list(range(len(responses))):
            raise DataError(
                path,
                f"item {name!r} has rewards for the responses {sorted(responses)[:9]}; expected 0,"
                " 1, ... without gaps",
            )
    if known_subsets and (strange := {subset for subset, _ in by_item} - known_subsets):
        raise DataError(
            path,
            f"no subset of the benchmark is called {min(strange)!r}; it has"
            f" {', '.join(sorted(known_subsets))}",
        )
    if items is None:
        return _bare(by_item, path, module)
    known = {(item.subset, item.item): item for item in items}
    if unknown := [name for name in by_item if name not in known]:
        raise DataError(
            path,
            f"{len(unknown)} items are not the benchmark's, first {unknown[0]}; score the same"
            " release of it",
        )
    if absent := [name for name in known if name not in by_item]:
        raise DataError(
            path, f"lacks {len(absent)} of the benchmark's {len(known)} items, first {absent[0]}"
        )
    return Judged(
        items,
        [_rewards(by_item[item.subset, item.item], item, path) for item in items],
        _lengths(by_item, items),
    )


def _rewards(responses: dict[int, Json], item: Item, path: Path) -> list[float]:
    if len(responses) != len(item.responses):
        raise DataError(
            path,
            f"item {item.item!r} has {len(responses)} rewards for {len(item.responses)} responses",
        )
    if [responses[place]["preferred"] for place in range(len(responses))] != item.preferred:
        raise DataError(
            path,
            f"item {item.item!r} prefers other responses than the benchmark, which puts the better"
            " ones first",
        )
    return [float(responses[place]["reward"]) for place in range(len(responses))]


def _lengths(
    by_item: dict[tuple[str, str], dict[int, Json]], items: Sequence[Item]
) -> list[list[int]] | None:
    ordered = [by_item[item.subset, item.item] for item in items]
    if not all(
        isinstance(row.get("length_tokens"), int)
        for responses in ordered
        for row in responses.values()
    ):
        return None
    return [
        [responses[place]["length_tokens"] for place in range(len(responses))]
        for responses in ordered
    ]


def _bare(
    by_item: dict[tuple[str, str], dict[int, Json]], path: Path, module: ModuleType
) -> Judged:
    items, rewards = [], []
    for (subset, name), responses in by_item.items():
        ordered = sorted(
            (responses[place] for place in range(len(responses))),
            key=lambda row: not row["preferred"],
        )
        better = sum(row["preferred"] for row in ordered)
        if not 0 < better < len(ordered):
            raise DataError(
                path,
                f"item {name!r} has {better} preferred of {len(ordered)} responses; one of each"
                " kind is needed",
            )
        prompt = str(
            ordered[0].get("prompt_id") or getattr(module, "cluster", _own_cluster)(subset, name)
        )
        qualities = [float(row["quality"]) for row in ordered if row.get("quality") is not None]
        worth = qualities if len(qualities) == len(ordered) else None
        items.append(
            Item(
                subset,
                name,
                prompt,
                (),
                (Response(""),) * len(ordered),
                pairs_of(better, len(ordered) - better),
                None,
                worth,
            )
        )
        rewards.append([float(row["reward"]) for row in ordered])
    return Judged(items, rewards)


def _own_cluster(subset: str, item: str) -> str:
    return f"{subset}/{item}"


def in_order_of(first: Judged, judged: Judged, path: Path) -> Judged:
    """The same items in the order of another file's, so that two models are compared pair by pair.

    Raises:
        DataError: If the two have other items, or other responses to them.
    """
    places = {(item.subset, item.item): place for place, item in enumerate(judged.items)}
    order = [places.get((item.subset, item.item)) for item in first.items]
    found = [place for place in order if place is not None]
    same = len(found) == len(order) == len(places)
    if not same or any(
        judged.items[at].preferences != item.preferences
        for at, item in zip(found, first.items, strict=True)
    ):
        raise DataError(
            path,
            "has other items, or other responses to them, than the first model; judge them one"
            " by one",
        )
    return judged.at(found)


def table_of(checkpoint: str, benchmark: str, judged: Judged) -> Iterator[Json]:
    """The rows of `rewards.parquet`."""
    for place, (item, rewards) in enumerate(zip(judged.items, judged.rewards, strict=True)):
        for response, (preferred, reward) in enumerate(zip(item.preferred, rewards, strict=True)):
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
                "length_tokens": (
                    judged.length_tokens[place][response] if judged.length_tokens else None
                ),
                "truncated": judged.truncated[place][response] if judged.truncated else None,
            }
