"""Measured points for scaling laws, from folders of results or from any table with columns N, D, C
and a loss.

A row of a table in JSON lines. `series`, `run`, `family` and `held_out` are optional:

    {"N": 1180000, "D": 4000, "loss": 0.52, "series": "moves", "run": "seed 0", "held_out": false}
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from worldpm.benchmarks.measures import BenchmarkResult, SubsetResult
from worldpm.curves.forms import Array
from worldpm.errors import ConfigError, DataError
from worldpm.evaluation.results import CheckpointResult, judged_pairs, read_results
from worldpm.laws.evidence import Points
from worldpm.laws.law import CheckpointScores, Ends, Measurement, Series
from worldpm.model.description import TrainingRecord
from worldpm.stats import bradley_terry
from worldpm.storage import rows
from worldpm.storage.manifest import read_manifest
from worldpm.storage.rows import Row

logger = logging.getLogger(__name__)

SHARES = frozenset(("accuracy", "error"))
"""Columns whose values are between 0 and 1."""
TRUE, FALSE = frozenset(("true", "yes")), frozenset(("", "nan", "none", "false", "no"))
"""Texts that mark a row as held out or not held out. Numbers can mark it too."""
SNAPSHOTS = 3
"""Amounts of data of a size that look like snapshots of a run."""
FAMILIES_NAMED = 3
"""Largest number of families that an error message names."""


class ItemLosses(NamedTuple):
    """The losses of a checkpoint on a series by prompt, to resample prompts."""

    sums: Array
    """Weighted sum of the losses of each prompt's pairs, in nats, shape (clusters,)."""
    weights: Array
    """Sum of the weights of these pairs, shape (clusters,)."""


class SeriesOfCheckpoint(NamedTuple):
    """Key of `Measured.items`."""

    series: Series
    checkpoint: str


class PointKey(NamedTuple):
    """The identity of a point. A second point with the same key is a repeated point."""

    series: Series
    run: str | None
    """None if the table has no column `run`; then only numbers distinguish its rows."""
    x: frozenset[tuple[str, float]]
    y: float


@dataclass
class Measured:
    """All usable points of the inputs, and counts of dropped points."""

    points: list[Measurement] = field(default_factory=list[Measurement])
    drops: Counter[str] = field(default_factory=Counter[str])
    """Number of dropped points by reason."""
    items: dict[SeriesOfCheckpoint, ItemLosses] = field(
        default_factory=dict[SeriesOfCheckpoint, ItemLosses]
    )
    """Losses by prompt; empty if only means are known."""
    keys: set[PointKey] = field(default_factory=set[PointKey])
    """Keys of the points."""

    def series(self) -> dict[Series, list[Measurement]]:
        """The points of each series, in the order of the inputs."""
        by_series: dict[Series, list[Measurement]] = {}
        for point in self.points:
            by_series.setdefault(point.series, []).append(point)
        return by_series

    def add(self, points: Iterable[Measurement], y: str, *, by_run: bool) -> None:
        """Add the usable points, and count the others by reason.

        `by_run` is whether points with equal numbers from different runs are different points.
        """
        # A file that is given twice, or a snapshot in two folders, must not count twice.
        for point in points:
            axes = frozenset(point.x.items())
            key = PointKey(point.series, point.run if by_run else None, axes, point.y)
            reason = _unusable(point, y) or ("repeated point" if key in self.keys else None)

            if reason is not None:
                self.drops[reason] += 1
            else:
                self.keys.add(key)
                self.points.append(point)


def read(
    inputs: Sequence[Path], *, y: str, axes: Sequence[str], calibrated: bool = False
) -> Measured:
    """The points of all inputs. `y` is the name of a column, for results `loss` or `accuracy`.

    A point is dropped and counted if `y` or an axis is not a finite number, if a loss or an axis is
    not above 0, if a share is outside 0 to 1, if an accuracy is 1, or if the point repeats an
    earlier one.

    Raises:
        ConfigError: If an input is absent, lacks columns, has no usable point, or mixes families
            of models whose losses are not calibrated.
        DataError: If a file cannot be read.
    """
    measured = Measured()
    for path in inputs:
        if path.is_dir():
            _read_results(measured, path, y=y, calibrated=calibrated)
        elif path.is_file():
            _read_table(measured, path, y=y, axes=axes)
        else:
            raise ConfigError(
                f"{path}: no such file or folder. Name a table with columns N, D and {y}, or a"
                " folder of `worldpm evaluate`."
            )

    # Raw losses depend on the scale of a family's rewards, which a temperature removes.
    if not calibrated:
        _check_families(measured)
    _check_not_empty(measured, inputs[0])
    return measured


def _check_families(measured: Measured) -> None:
    for series, points in measured.series().items():
        families = sorted({point.family for point in points if point.family})
        if len(families) > 1:
            raise ConfigError(
                f"{series.name}: has models of {len(families)} families"
                f" ({', '.join(families[:FAMILIES_NAMED])}), whose raw losses cannot be compared."
                " Fit each family alone, or pass --calibrated. Results then give the loss at each"
                " checkpoint's temperature, and losses of tables are used without change."
            )


def _check_not_empty(measured: Measured, path: Path) -> None:
    if not measured.points:
        drops = ", ".join(f"{count} {reason}" for reason, count in measured.drops.items())
        raise ConfigError(
            f"{path}: has no point to fit ({drops or 'the table is empty'}). Name another input."
        )
    if all(point.held_out for point in measured.points):
        raise ConfigError(f"{path}: every point is held out. Leave some to fit.")


def points_of(measured: Measured, chosen: Sequence[Measurement], axes: Sequence[str]) -> Points:
    """Points of one series as arrays, with losses by prompt if all points have the same
    prompts."""
    numbers: dict[str, int] = {}
    for point in chosen:
        numbers.setdefault(point.run, len(numbers))

    items = _items_of(measured, chosen)
    return Points(
        x=np.stack([np.array([point.x[axis] for point in chosen]) for axis in axes]),
        y=np.array([point.y for point in chosen]),
        runs=np.array([numbers[point.run] for point in chosen]),
        item_sums=np.stack([losses.sums for losses in items]) if items else None,
        item_weights=items[0].weights if items else None,
    )


def _items_of(measured: Measured, chosen: Sequence[Measurement]) -> list[ItemLosses]:
    """The losses by prompt of each point; empty unless all points have the same number of
    prompts."""
    items = []
    for point in chosen:
        if point.scores is None:
            return []

        key = SeriesOfCheckpoint(point.series, point.scores.checkpoint)
        if key not in measured.items:
            return []
        items.append(measured.items[key])

    # Results on other test sets have other prompts, which cannot be resampled together.
    return items if len({len(losses.weights) for losses in items}) == 1 else []


def _unusable(point: Measurement, y: str) -> str | None:
    """The reason to drop a point; None for a point that can be fitted."""
    if not all(map(math.isfinite, (point.y, *point.x.values()))):
        return "not a number"
    if any(value <= 0 for value in point.x.values()):
        return "axis of 0 or below"
    if y in SHARES and not 0 <= point.y <= 1:
        return f"{y} outside 0 to 1"
    if y == "accuracy" and point.y == 1:
        return "accuracy of 1, whose error has no logarithm"
    if y == "loss" and point.y <= 0:
        return f"{y} of 0 or below"
    return None


def _read_table(measured: Measured, path: Path, *, y: str, axes: Sequence[str]) -> None:
    # Read rows with NaN too, so that they count as dropped points.
    table = list(rows.read(path, nan=True))
    if not table:
        return
    if not all(isinstance(row, dict) for row in table):
        raise DataError(path, "has rows that are not objects. Give every row named columns.")

    # The first row may lack some columns.
    columns = list(dict.fromkeys(chain.from_iterable(table)))
    present = [axis for axis in axes if axis in columns]
    if y not in columns or not present:
        raise ConfigError(
            f"{path}: has the columns {', '.join(map(str, columns))}. Add {y} and at least one of"
            f" {', '.join(axes)}."
        )

    points = [_of_row(row, path, number, y, present) for number, row in enumerate(table, start=1)]
    measured.add(points, y, by_run="run" in columns)
    if "run" not in columns and _may_be_snapshots(points):
        logger.warning(
            "%s: has no column run, but several D at most N. If these rows are snapshots of one"
            " run, they are not independent, and intervals are too narrow. Add the column run.",
            path,
        )


def _may_be_snapshots(points: Sequence[Measurement]) -> bool:
    """Whether most sizes have SNAPSHOTS amounts of data or more, as snapshots of a run have."""
    amounts: dict[float, set[float]] = {}
    for point in points:
        if "N" in point.x and "D" in point.x:
            amounts.setdefault(point.x["N"], set()).add(point.x["D"])
    several = sum(len(values) >= SNAPSHOTS for values in amounts.values())
    return 2 * several > len(amounts)


def _of_row(row: Row, path: Path, number: int, y: str, axes: Sequence[str]) -> Measurement:
    """The point of a row; `number` counts rows from 1."""
    # Remove all suffixes, for instance those of `table.jsonl.gz`.
    series = path.name.split(".")[0] if y == "loss" else y

    return Measurement(
        series=Series.parse(series if _is_empty(row.get("series")) else str(row["series"])),
        run=_run(row, path, number),
        family=None if _is_empty(row.get("family")) else str(row["family"]),
        x={axis: _number(row.get(axis)) for axis in axes},
        y=_number(row.get(y)),
        held_out=_held_out(row.get("held_out"), path, number),
    )


def _run(row: Row, path: Path, number: int) -> str:
    """The run of a row. A run has one size, so a name that occurs at several sizes, such as the
    name of a seed, is a different run at each."""
    name = f"{path} row {number}" if _is_empty(row.get("run")) else str(row["run"])
    return name if _is_empty(row.get("N")) else f"{name} at N = {row['N']}"


def _is_empty(cell: object) -> bool:
    # pandas uses NaN for a missing text.
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _held_out(cell: object, path: Path, number: int) -> bool:
    """Whether a row is held out: its cell is true, or a number other than 0."""
    # CSV has only texts; Parquet has booleans or, after pandas, floats.
    word = "" if cell is None else str(cell).strip().casefold()
    if word in TRUE or word in FALSE:
        return word in TRUE

    value = _number(cell)
    if math.isnan(value):
        raise DataError(path, f"row {number}: held_out is {cell!r}. Give 0 or 1, true or false.")
    return value != 0


def _number(cell: object) -> float:
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _read_results(measured: Measured, folder: Path, *, y: str, calibrated: bool) -> None:
    read_manifest(folder, made_by="evaluate")
    if y not in ("loss", "accuracy"):
        raise ConfigError(
            f"{folder}: results have a loss and an accuracy, but no {y}. Name a table."
        )

    for checkpoint, result in read_results(folder).checkpoints.items():
        if result.conditions.training is None:
            raise ConfigError(
                f"{folder}: {checkpoint} has no training record. Evaluate checkpoints of `worldpm"
                " train`."
            )
        training = result.conditions.training
        points = _of_checkpoint(checkpoint, training, result, y=y, calibrated=calibrated)
        measured.add(points, y, by_run=True)

    # A loss at a fitted temperature is not a mean over items, so prompts cannot be resampled.
    if y == "loss" and not calibrated:
        measured.items |= _item_losses(folder)


def _of_checkpoint(
    checkpoint: str,
    training: TrainingRecord,
    result: CheckpointResult,
    *,
    y: str,
    calibrated: bool,
) -> Iterator[Measurement]:
    """The points of a checkpoint: one for each benchmark, and one for each subset of benchmarks
    with several subsets."""
    x = {"N": training.non_embedding, "D": training.effective_pairs, "C": training.flops}

    for benchmark, measures in result.benchmarks.items():
        parts: dict[Series, BenchmarkResult | SubsetResult] = {Series(benchmark): measures}
        # A temperature belongs to the whole set, so subsets have no calibrated loss.
        if len(measures.subsets) > 1 and not calibrated:
            subsets = measures.subsets.items()
            parts |= {Series(benchmark, subset): part for subset, part in subsets}

        for series, part in parts.items():
            loss = measures.calibration.loss_nats if calibrated else part.loss_nats
            scores = CheckpointScores(
                checkpoint=checkpoint,
                accuracy=part.accuracy,
                interval=Ends(*part.interval) if part.interval else None,
                style_phi=measures.style.phi if measures.style else None,
            )
            yield Measurement(
                series=series,
                run=training.run,
                family=training.family,
                x=x,
                y=loss if y == "loss" else part.accuracy,
                held_out=False,
                scores=scores,
            )


def _item_losses(folder: Path) -> dict[SeriesOfCheckpoint, ItemLosses]:
    """Weighted sums of losses, and sums of weights, by prompt, for every series and checkpoint,
    from raw rewards."""
    by_series: dict[SeriesOfCheckpoint, ItemLosses] = {}

    for checkpoint, benchmark, pairs in judged_pairs(folder, texts=False):
        probability = torch.from_numpy(pairs.probability)
        losses = bradley_terry.losses_nats(pairs.margins, probability).numpy()
        subsets, prompt_ids = np.array(pairs.subsets), np.array(pairs.prompt_ids)

        # The whole benchmark is a series too.
        parts = {Series(benchmark): np.ones(len(losses), dtype=np.bool_)}
        parts |= {Series(benchmark, str(name)): subsets == name for name in np.unique(subsets)}
        for series, marked in parts.items():
            clusters = np.unique(prompt_ids[marked], return_inverse=True)[1]
            weight = pairs.weight[marked]
            by_series[SeriesOfCheckpoint(series, checkpoint)] = ItemLosses(
                sums=np.asarray(np.bincount(clusters, weight * losses[marked]), np.float64),
                weights=np.asarray(np.bincount(clusters, weight), np.float64),
            )
    return by_series
