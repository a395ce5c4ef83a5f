"""Laws as types, with all that is written beside them.

A folder of laws holds `laws.json` (a list of `Law`), `points.json` (a list of `PointRow`) and
`compute_optimal.json` (an `Optimum` by test). NaN and infinity are None there, because JSON has
neither. A field with a default (None or UNSET) is absent from the file where it has the default.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import UNSET, UnsetType

from worldpm.curves.forms import Array
from worldpm.stats.style_control import Phi
from worldpm.stats.uncertainty import Interval
from worldpm.storage.json_files import read_record, to_json

LAWS, POINTS, COMPUTE_OPTIMAL = "laws.json", "points.json", "compute_optimal.json"
SEPARATOR = ": "
"""Between the name of a test and that of a part of it."""
AXIS_COLUMNS = ("N", "D", "C", "d", "loss")
"""Columns of a point that a law may depend on; `loss` is one only where it is not fitted."""

Word = Literal["power law", "emergent", "no trend", "not identified"]


@dataclass(frozen=True, order=True)
class Series:
    """What a law is about: a test, or a part of one."""

    test: str
    """Name of a benchmark, or of a table's series."""
    part: str | None = None
    """A subset of the test; None for the test as a whole."""

    @classmethod
    def parse(cls, name: str) -> "Series":
        """The series of a name as files have it, `test` or `test: part`."""
        test, separator, part = name.partition(SEPARATOR)
        return cls(test, part if separator else None)

    @property
    def name(self) -> str:
        """The name as files have it."""
        return self.test if self.part is None else f"{self.test}{SEPARATOR}{self.part}"


class Ends(NamedTuple):
    """The ends of a 95 % interval."""

    low: float | None
    """None where the interval is open below, or not known."""
    high: float | None
    """None where the interval is open above, or not known."""


class XY(NamedTuple):
    """One point of a line."""

    x: float
    y: float


class SizeAndData(NamedTuple):
    """The x of one point of a plane."""

    n: float
    """Parameters without embeddings."""
    d: float
    """Effective pairs."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A fitted line with its 95 % band, for a figure; all fields have the same length."""

    x: Sequence[float]
    """From the least to the largest x of the points, evenly on a logarithmic scale."""
    y: Sequence[float | None]
    low: Sequence[float | None]
    """Equal to `y` where there is no band."""
    high: Sequence[float | None]
    """Equal to `y` where there is no band."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One held-out point and its prediction by a fit to the points that are not held out."""

    x: Sequence[float]
    """In the order of the law's axes."""
    y: float
    predicted: float | None
    relative_error: float | None
    """|predicted - y| / |y|; None where y is 0."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well a form predicts points that it was not fitted to."""

    relative_error: float | None
    """Mean over the predictions, 0 or more; None where there is none."""
    points: int
    """Number of predictions; 0 where the points that are left do not suffice for the form."""
    predictions: Sequence[Prediction]


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The slope d ln y / d ln x over the whole range of an axis."""

    estimate: float | None
    interval: Ends
    detectable: float | None
    """Smallest slope that a 5 % test on these runs finds in 80 % of cases."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well one form describes the points. A line has a held-out error, a plane a left-out one,
    and the other is UNSET."""

    aicc: float | None
    """Akaike's criterion, corrected for few points; None with too few of them."""
    held_out_error: float | UnsetType | None = UNSET
    """Mean relative error on the largest third; None where the rest does not suffice."""
    left_out_error: float | UnsetType | None = UNSET
    """Root mean square error of ln y over sizes left out one by one."""


@dataclass(frozen=True, kw_only=True)
class ByAxis:
    """An interval along each axis of a plane."""

    N: Ends
    D: Ends


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The numbers behind a verdict. None: it was decided before the number was needed, or the
    number belongs to a line and the points are a plane, or the reverse."""

    places: int | None = None
    """Of a line: different values of x."""
    sizes: int | None = None
    """Of a plane: different values of N."""
    decades: float | None = None
    """log10 of the largest over the least x (of a plane: N); 0 for one value."""
    amounts: int | None = None
    """Of a plane: different values of D."""
    runs: int | None = None
    """Independent runs."""
    points: int | None = None
    """Of a line: points, several of a run."""
    slope: Trend | None = None
    """Of a line."""
    forms: dict[str, Score] | None = None
    """By the name of the form."""
    turn: Ends | None = None
    """Of a line: interval of the turn of an abrupt form that is clearly better than a smooth one,
    in units of x."""
    gain_of_emergent: Ends | None = None
    """Of a plane: mean squared error of ln y over sizes left out, by the best smooth form minus by
    the emergent one; above 0 favours emergence."""
    place: Ends | None = None
    """Of a plane: interval of the threshold N0, in parameters."""
    steepness: Ends | None = None
    """Of a plane: interval of the threshold's exponent k."""
    gain_of_smooth: Ends | None = None
    """Of a plane: mean squared error of ln y over sizes left out, by a constant minus by the best
    smooth form; above 0 favours a law."""
    falls: ByAxis | None = None
    """Of a plane: the power by which the smooth form falls along each axis."""
    slopes: ByAxis | None = None
    """Of a plane: d ln y / d ln N and d ln y / d ln D by least squares."""


class SliceKey(NamedTuple):
    """Which points a law is fitted to; the laws of all forms share it, and the verdict."""

    series: str
    x: tuple[str, ...]
    size: float | None


@dataclass(frozen=True, kw_only=True)
class Law:
    """One form fitted to one slice of the points, with what speaks for and against reading it.

    The fields from `profile_intervals` to `resamples_failed` are None where the form cannot be
    fitted; those from `verdict` on are None where no verdict is given.
    """

    series: str
    """`test`, or `test: part`."""
    form: str
    """Name of a form of `curves.forms`."""
    equation: str
    x: tuple[str, ...]
    """Axes: one of N (parameters), D (effective pairs), C (operations), d and loss, or N and D."""
    y: str
    """The column that is fitted: loss (nats per pair), accuracy, error or gain."""
    size: float | None
    """The N of a curve over D; None for points of all sizes."""
    objective: str
    """What the fit minimises."""
    n_points: int
    """Points that were fitted."""
    runs: int
    """Runs that these points belong to."""
    parameters: dict[str, float] | None
    """By name; None where the form cannot be fitted."""
    intervals: dict[str, Ends] | None
    """95 % bootstrap intervals by parameter; None where the form cannot be fitted."""
    profile_intervals: dict[str, Ends] | None = None
    """95 % profile-likelihood intervals of E and alpha; empty for forms that are not drawn."""
    objective_value: float | None = None
    """The least value that the fit reached."""
    used: Sequence[XY] | None = None
    """The points of a line, held-out ones included; None for a plane."""
    curve: Curve | None = None
    """None for a plane."""
    residual_places: Sequence[SizeAndData] | None = None
    """The points of a plane; None for a line."""
    residuals: Sequence[float | None] | None = None
    """ln y - ln fit at each of these points, None where y is 0; None as a whole for a line."""
    held_out: HeldOut | None = None
    converged: bool
    optima: Sequence[Sequence[float]] | None = None
    """Different parameters that reach the least objective, the first being `parameters`."""
    condition: float | None = None
    """Condition number of the Hessian: beyond 1e12 some parameters can be traded for others."""
    resamples_failed: int | None = None
    """Bootstrap draws that could not be fitted."""
    warnings: Sequence[str]
    """Reasons not to read the parameters; the error of a form that cannot be fitted."""
    verdict: Word | None = None
    reason: str | None = None
    """Why the verdict was given."""
    drawn: str | None = None
    """The form that describes the points best; figures draw it."""
    evidence: Evidence | None = None

    @property
    def subject(self) -> Series:
        """What the law is about."""
        return Series.parse(self.series)

    @property
    def key(self) -> SliceKey:
        """Which points the law is fitted to."""
        return SliceKey(self.series, self.x, self.size)

    @property
    def over(self) -> str:
        """The axes for readers, such as `D at N = 3,056`."""
        axes = " and ".join(self.x)
        return axes if self.size is None else f"{axes} at N = {self.size:,.0f}"


@dataclass(frozen=True, kw_only=True)
class IsoflopCurve:
    """Mean loss over size at one budget."""

    n: Sequence[float]
    """Sizes in ascending order."""
    loss: Sequence[float]
    """Nats per pair, one for each size."""


@dataclass(frozen=True, kw_only=True)
class Approach:
    """The best size for a budget, N*(C) = G C^a, by one approach."""

    exponent: float | None
    """a, 0 to 1; None where too few budgets have a best size."""
    interval: Ends | None
    """95 % interval of a over runs; None where more than one resample in ten has no exponent."""
    optimal_n: Sequence[float | None]
    """Best N at each budget; None where the runs do not show one."""
    optimal_n_intervals: Sequence[Ends] | None = None
    """95 % intervals of `optimal_n`; None but for the joint law."""
    optimal_d: Sequence[float | None] | None = None
    """Effective pairs at the best N; None but for the joint law."""
    at_bound: Sequence[str] | None = None
    """Parameters of the joint law that have no effect; None for the other approaches."""
    warning: str | None = None
    """Why the approach may be biased."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """How compute is best spent on one test, by the three approaches of Chinchilla."""

    operations: Literal["counted", "6 N D"]
    """How the operations of a run are known."""
    budgets_flops: Sequence[float]
    """Ascending; empty where no budget is reached by four sizes."""
    flops_per_parameter_and_pair: float
    """C / (N D)."""
    envelope: Approach
    """Approach 1: the least loss among all runs at each budget."""
    isoflop: Approach
    """Approach 2: a parabola through the losses over ln N at each budget."""
    curves: Sequence[IsoflopCurve]
    """One for each budget."""
    joint: Approach | None
    """Approach 3: the joint law in closed form; None where it cannot be fitted."""


@dataclass(frozen=True, kw_only=True)
class CheckpointScores:
    """Results of a checkpoint that are shown beside a point."""

    checkpoint: str
    accuracy: float
    """0 to 1."""
    interval: Ends | None
    """95 % interval of the accuracy; None where it is not known."""
    style_phi: dict[str, Phi] | None
    """Correlations with style features; None where the texts are not known."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One point: a checkpoint on one test, or a row of a table."""

    series: Series
    run: str
    """Points of one run are not independent."""
    family: str | None
    """Losses of different families cannot be compared without calibration; None if not known."""
    x: dict[str, float]
    """By the name of the axis; an axis that is not known is absent."""
    y: float
    held_out: bool
    """Whether a table marks the point to be predicted."""
    scores: CheckpointScores | None = None
    """None for a row of a table."""


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """A point as `points.json` has it: its axes and its y are the columns that are not None."""

    series: str
    """`test`, or `test: part`."""
    run: str
    family: str | None
    N: float | None = None
    """Parameters without embeddings."""
    D: float | None = None
    """Effective pairs."""
    C: float | None = None
    """Operations (FLOPs)."""
    d: float | None = None
    """Square root of the KL divergence from the policy, in nats."""
    loss: float | None = None
    """Nats per pair."""
    error: float | None = None
    """0 to 1."""
    gain: float | None = None
    """Reward, in logits."""
    held_out: bool
    checkpoint: str | None = None
    """None for a row of a table, as are the next three."""
    accuracy: float | None = None
    """0 to 1."""
    interval: Ends | UnsetType | None = UNSET
    """95 % interval of the accuracy; None where it is not known, UNSET for a row of a table."""
    style_phi: dict[str, Phi] | UnsetType | None = UNSET
    """None where the texts are not known, UNSET for a row of a table."""

    @classmethod
    def of(cls, point: Measurement, y: str) -> "PointRow":
        """The row of a point whose y is this column."""
        # No form has the same column as x and as y.
        columns = {**point.x, y: point.y}
        scores = point.scores

        return cls(
            series=point.series.name,
            run=point.run,
            family=point.family,
            N=columns.get("N"),
            D=columns.get("D"),
            C=columns.get("C"),
            d=columns.get("d"),
            loss=columns.get("loss"),
            error=columns.get("error"),
            gain=columns.get("gain"),
            held_out=point.held_out,
            checkpoint=scores.checkpoint if scores else None,
            accuracy=scores.accuracy if scores else columns.get("accuracy"),
            interval=scores.interval if scores else UNSET,
            style_phi=scores.style_phi if scores else UNSET,
        )

    def measurement(self, y: str) -> Measurement:
        """The point, whose y is this column."""
        columns = {"N": self.N, "D": self.D, "C": self.C, "d": self.d, "loss": self.loss}
        columns |= {"error": self.error, "gain": self.gain, "accuracy": self.accuracy}
        numbers = {name: value for name, value in columns.items() if value is not None}

        # An accuracy stands beside a loss, and is not one of its axes.
        return Measurement(
            series=Series.parse(self.series),
            run=self.run,
            family=self.family,
            x={name: numbers[name] for name in AXIS_COLUMNS if name in numbers and name != y},
            y=numbers[y],
            held_out=self.held_out,
            scores=self._scores(),
        )

    def _scores(self) -> CheckpointScores | None:
        # A table of accuracies has an accuracy, but no checkpoint.
        if self.checkpoint is None or self.accuracy is None:
            return None
        return CheckpointScores(
            checkpoint=self.checkpoint,
            accuracy=self.accuracy,
            interval=None if self.interval is UNSET else self.interval,
            style_phi=None if self.style_phi is UNSET else self.style_phi,
        )


@dataclass(frozen=True, kw_only=True)
class Laws:
    """All that `worldpm laws` finds."""

    y: str
    """The column that was fitted: loss, accuracy, error or gain."""
    laws: Sequence[Law]
    """Of every slice in turn, one for each form."""
    points: Sequence[Measurement]
    """In the order read."""
    optima: dict[str, Optimum]
    """By test; only for tests whose loss falls with both size and data."""


def finite(value: float) -> float | None:
    """A number as JSON can hold it: None for NaN and infinity."""
    return value if math.isfinite(value) else None


def all_finite(values: Array) -> list[float | None]:
    """Numbers of shape (n,) as JSON can hold them."""
    return [finite(value) for value in values.tolist()]


def ends(interval: Interval) -> Ends:
    """An interval as JSON can hold it."""
    return Ends(*map(finite, interval))


def to_files(laws: Laws) -> dict[str, bytes]:
    """The three files of a folder, by name."""
    # msgspec leaves out UNSET, but not None, so defaults are removed before.
    rows = [PointRow.of(point, laws.y) for point in laws.points]
    contents = {LAWS: laws.laws, POINTS: rows, COMPUTE_OPTIMAL: laws.optima}
    return {name: to_json(_without_defaults(content)) for name, content in contents.items()}


def read_laws(folder: Path) -> Laws:
    """What `to_files` wrote.

    Raises:
        DataError: If a file is damaged.
    """
    laws = read_record(folder / LAWS, list[Law])
    rows = read_record(folder / POINTS, list[PointRow])
    # A folder has at least one law, and all its laws are about the same column.
    y = laws[0].y

    return Laws(
        y=y,
        laws=laws,
        points=[row.measurement(y) for row in rows],
        optima=read_record(folder / COMPUTE_OPTIMAL, dict[str, Optimum]),
    )


def _without_defaults(value: object) -> object:
    """The same in dicts and lists, without the fields that have their default."""
    if is_dataclass(value):
        items = {field: getattr(value, field.name) for field in fields(value)}
        present = {field.name: item for field, item in items.items() if item is not field.default}
        return _without_defaults(present)
    if isinstance(value, dict):
        return {name: _without_defaults(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_defaults(item) for item in value]
    return value
