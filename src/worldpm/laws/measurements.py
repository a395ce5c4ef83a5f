"""Measured points for scaling laws: from folders of results, or from any table with columns N, D, C
and a loss."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from worldpm.curves.forms import Array
from worldpm.errors import ConfigError, DataError
from worldpm.laws.evidence import Points
from worldpm.stats import bradley_terry
from worldpm.storage import folders, parquet, rows

Json = dict[str, Any]

SHARES = frozenset(("accuracy", "error"))
TRUE, FALSE = frozenset(("true", "yes")), frozenset(("", "nan", "none", "false", "no"))


class Measurement(NamedTuple):
    """One point: a checkpoint on one test."""

    series: str
    run: str
    family: str | None
    x: dict[str, float]
    """By the names of the axes; those that are not known are absent."""
    y: float
    held_out: bool
    more: Json
    """What is shown beside it: accuracy with its interval, style."""


@dataclass
class Measured:
    """All points that were read, and what was left out."""

    points: list[Measurement] = field(default_factory=list[Measurement])
    drops: Counter[str] = field(default_factory=Counter[str])
    items: dict[tuple[str, str], tuple[Array, Array]] = field(
        default_factory=dict[tuple[str, str], tuple[Array, Array]]
    )
    """By series and checkpoint: sums and weights of its prompts."""
    seen: set[Any] = field(default_factory=set[Any])
    """What tells points apart."""

    def series(self) -> dict[str, list[Measurement]]:
        """The points of each series, in the order read."""
        found: dict[str, list[Measurement]] = {}
        for point in self.points:
            found.setdefault(point.series, []).append(point)
        return found


def read(places: Sequence[Path], *, y: str, axes: Sequence[str], calibrated: bool) -> Measured:
    """The points of all places; `y` is a column's name, for results `loss` or `accuracy`.

    A point is dropped, and counted, if `y` or an axis is no finite number, a loss or an axis is not
    above 0, a share lies outside 0 to 1, or the same point was read before.

    Raises:
        ConfigError: If a place is absent, lacks what is needed, holds no usable point, or mixes
            families of models whose losses are not calibrated.
        DataError: If a file cannot be read.
    """
    measured = Measured()
    for place in places:
        if place.is_dir():
            _read_results(measured, place, y=y, calibrated=calibrated)
        elif place.is_file():
            _read_table(measured, place, y=y, axes=axes)
        else:
            raise ConfigError(
                f"{place}: no such file or folder; name a table with columns N, D and {y}, or what"
                " `worldpm evaluate` wrote"
            )
    for name, points in measured.series().items():
        families = sorted({point.family for point in points if point.family})
        if len(families) > 1 and not calibrated:
            raise ConfigError(
                f"{name}: models of {len(families)} families ({', '.join(families[:3])}), whose raw"
                " losses cannot be compared; fit each alone, or say --calibrated: results then"
                " give the loss at their temperature, and of a table it is taken on trust"
            )
    if measured.points and all(point.held_out for point in measured.points):
        raise ConfigError(f"{places[0]}: every point is held out; leave some to fit")
    if not measured.points:
        told = ", ".join(f"{number} {reason}" for reason, number in measured.drops.items())
        raise ConfigError(
            f"{places[0]}: no point to fit" + (f" ({told})" if told else " (the table is empty)")
        )
    return measured


def points_of(measured: Measured, chosen: Sequence[Measurement], axes: Sequence[str]) -> Points:
    """Points of one series as arrays, with their prompts where all of them have the same."""
    names = {run: number for number, run in enumerate(dict.fromkeys(point.run for point in chosen))}
    items = [
        measured.items.get((point.series, str(point.more.get("checkpoint")))) for point in chosen
    ]
    known = [item for item in items if item is not None]
    same = len(known) == len(chosen) and len({len(weights) for _, weights in known}) == 1
    return Points(
        x=np.array([[point.x[axis] for point in chosen] for axis in axes]),
        y=np.array([point.y for point in chosen]),
        runs=np.array([names[point.run] for point in chosen]),
        item_sums=np.stack([sums for sums, _ in known]) if same else None,
        item_weights=known[0][1] if same else None,
    )


def _add(measured: Measured, points: Iterable[Measurement], y: str, *, by_run: bool) -> None:
    """Keep what is fit. Rows that name no run are told apart by their numbers alone."""
    for point in points:
        key = (point.series, point.run if by_run else None, *sorted(point.x.items()), point.y)
        if (why := _unfit(point, y)) or key in measured.seen:
            measured.drops[why or "repeated point"] += 1
            continue
        measured.seen.add(key)
        measured.points.append(point)


def _unfit(point: Measurement, y: str) -> str | None:
    if not all(map(math.isfinite, (point.y, *point.x.values()))):
        return "not a number"
    if any(value <= 0 for value in point.x.values()):
        return "axis of 0 or below"
    if y in SHARES and not 0 <= point.y <= 1:
        return f"{y} outside 0 to 1"
    return f"{y} of 0 or below" if y == "loss" and point.y <= 0 else None


def _read_table(measured: Measured, path: Path, *, y: str, axes: Sequence[str]) -> None:
    found = list(rows.read(path, nan=True))
    if not found:
        return
    if not all(isinstance(row, dict) for row in found):
        raise DataError(path, "holds rows that are not objects with named columns")
    names = list(dict.fromkeys(name for row in found for name in row))
    there = [axis for axis in axes if axis in names]
    if y not in names or not there:
        raise ConfigError(
            f"{path}: has the columns {', '.join(map(str, names))}; needed are {y} and at least one"
            f" of {', '.join(axes)}"
        )
    default = path.name.split(".")[0] if y == "loss" else y
    points = (
        Measurement(
            series=default if _empty(row.get("series")) else str(row["series"]),
            run=_run(row, path, number),
            family=None if _empty(row.get("family")) else str(row["family"]),
            x={axis: _number(row.get(axis)) for axis in there},
            y=_number(row.get(y)),
            held_out=_marked(row.get("held_out"), path, number),
            more={},
        )
        for number, row in enumerate(found, start=1)
    )
    _add(measured, points, y, by_run="run" in names)


def _run(row: Json, path: Path, number: int) -> str:
    """Which run a row is of. A run has one size: a name that stands at several, as that of a seed
    does, is a run at each."""
    name = f"{path} row {number}" if _empty(row.get("run")) else str(row["run"])
    return name if _empty(row.get("N")) else f"{name} at N = {row['N']}"


def _empty(cell: object) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _marked(cell: object, path: Path, number: int) -> bool:
    """Whether a row is held out: a number that is not 0, or true."""
    word = "" if cell is None else str(cell).strip().casefold()
    if word in TRUE or word in FALSE:
        return word in TRUE
    if math.isnan(value := _number(cell)):
        raise DataError(path, f"row {number}: held_out is {cell!r}; give 0 or 1, true or false")
    return value != 0


def _number(cell: object) -> float:
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _read_results(measured: Measured, folder: Path, *, y: str, calibrated: bool) -> None:
    folders.manifest(folder, made_by="evaluate")
    if y not in ("loss", "accuracy"):
        raise ConfigError(f"{folder}: results hold a loss and an accuracy; {y} needs a table")
    for checkpoint, found in folders.read_json(folder / "metrics.json")["checkpoints"].items():
        if not (found.get("conditions") or {}).get("training"):
            raise ConfigError(
                f"{folder}: {checkpoint} does not say what training it had; only checkpoints of"
                " `worldpm train` do"
            )
        _add(
            measured, _of_checkpoint(checkpoint, found, y=y, calibrated=calibrated), y, by_run=True
        )
    if y == "loss" and not calibrated:
        measured.items |= _item_losses(folder)


def _of_checkpoint(
    checkpoint: str, found: Json, *, y: str, calibrated: bool
) -> Iterable[Measurement]:
    """Its points: one of each benchmark, and one of each subset where there are several."""
    training = found["conditions"]["training"]
    x = {"N": training["non_embedding"], "D": training["effective_pairs"], "C": training["flops"]}
    for benchmark, metrics in found["benchmarks"].items():
        subsets = (
            metrics["subsets"] if len(metrics["subsets"]) > 1 and not calibrated else {}
        )  # a temperature is the whole set's
        loss = metrics["calibration"]["loss_nats"] if calibrated else metrics["loss_nats"]
        phi = (metrics.get("style") or {}).get("phi")
        parts = {
            benchmark: {**metrics, "loss_nats": loss},
            **{f"{benchmark}: {name}": part for name, part in subsets.items()},
        }
        for series, part in parts.items():
            more = {
                "checkpoint": checkpoint,
                "accuracy": part["accuracy"],
                "interval": part["interval"],
                "style_phi": phi,
            }
            value = part["loss_nats"] if y == "loss" else part["accuracy"]
            yield Measurement(
                series, training["run"], training["family"], x, value, held_out=False, more=more
            )


def _item_losses(folder: Path) -> dict[tuple[str, str], tuple[Array, Array]]:
    """Weighted sums of loss and of weight by prompt, of every series and checkpoint, from the raw
    rewards."""
    prompts = {
        (row["benchmark"], row["subset"], row["item"]): row["prompt_id"]
        for row in parquet.read_rows(folder / "items.parquet")
    }
    rewards: dict[str, dict[tuple[str, str, str, int], float]] = {}
    for row in parquet.read_rows(folder / "rewards.parquet"):
        rewards.setdefault(row["checkpoint"], {})[
            row["benchmark"], row["subset"], row["item"], row["response"]
        ] = row["reward"]
    pairs: dict[str, list[Json]] = {}
    for row in parquet.read_rows(folder / "preferences.parquet"):
        pairs.setdefault(row["benchmark"], []).append(row)
        pairs.setdefault(f"{row['benchmark']}: {row['subset']}", []).append(row)
    found: dict[tuple[str, str], tuple[Array, Array]] = {}
    for series, own in pairs.items():
        items = [(row["benchmark"], row["subset"], row["item"]) for row in own]
        clusters = np.unique([prompts[item] for item in items], return_inverse=True)[1]
        weights = np.array([row["weight"] for row in own], dtype=np.float64)
        probability = torch.tensor([row["probability"] for row in own], dtype=torch.float64)
        for checkpoint, reward in rewards.items():
            chosen, rejected = (
                torch.tensor(
                    [reward[*item, row[side]] for item, row in zip(items, own, strict=True)],
                    dtype=torch.float64,
                )
                for side in ("chosen", "rejected")
            )
            places = torch.arange(2 * len(own)).reshape(2, -1)
            margins = bradley_terry.margins(torch.cat([chosen, rejected]), places[0], places[1])
            losses = bradley_terry.losses_nats(margins, probability).numpy()
            found[series, checkpoint] = (
                np.asarray(np.bincount(clusters, weights * losses), dtype=np.float64),
                np.asarray(np.bincount(clusters, weights), dtype=np.float64),
            )
    return found
