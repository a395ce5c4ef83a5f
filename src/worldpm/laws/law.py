"""Laws as dataclasses, and the other contents of a folder of laws.

A folder of laws holds `laws.json` (a list of `Law`), `points.json` (a list of `PointRow`) and
`compute_optimal.json` (an `Optimum` by test). NaN and infinity are null in these files, because
JSON has neither. A field that has its default (None or UNSET) is absent from the file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from msgspec import UNSET, UnsetType

from worldpm import extras
from worldpm.curves.forms import Array
from worldpm.display import Display, Row
from worldpm.errors import ConfigError
from worldpm.stats.style_control import Phi
from worldpm.stats.uncertainty import Interval
from worldpm.storage.json_files import read_record, to_json

LAWS, POINTS, COMPUTE_OPTIMAL = "laws.json", "points.json", "compute_optimal.json"
SEPARATOR = ": "
"""Separator between the name of a test and the name of its part."""
AXIS_COLUMNS = ("N", "D", "C", "d", "loss")
"""Columns of a point that a law can depend on; `loss` only if it is not the fitted column."""

Word = Literal["power law", "emergent", "turns", "saturates", "no trend", "not identified"]


@dataclass(frozen=True, order=True)
class Series:
    """The subject of a law: a test or a part of a test."""

    test: str
    """Name of a benchmark, or of a table's series."""
    part: str | None = None
    """A subset of the test; None for the whole test."""

    @classmethod
    def parse(cls, name: str) -> "Series":
        """Parse a name of the form `test` or `test: part`."""
        test, separator, part = name.partition(SEPARATOR)
        return cls(test, part if separator else None)

    @property
    def name(self) -> str:
        """The name in files, `test` or `test: part`."""
        return self.test if self.part is None else f"{self.test}{SEPARATOR}{self.part}"


class Ends(NamedTuple):
    """The ends of a 95 % interval."""

    low: float | None
    """None if the interval is unknown or has no lower end."""
    high: float | None
    """None if the interval is unknown or has no upper end."""


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
    """A fitted line with its 95 % band, for a figure. All fields have the same length."""

    x: Sequence[float]
    """From the least to the largest x of the points, evenly spread on a logarithmic scale."""
    y: Sequence[float | None]
    low: Sequence[float | None]
    """Equal to `y` without a band."""
    high: Sequence[float | None]
    """Equal to `y` without a band."""


@dataclass(frozen=True, kw_only=True)
class CurveOfSize:
    """The curve of a plane over D at one size."""

    size: float
    """N."""
    curve: Curve


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One held-out point, and its prediction by a fit to the other points."""

    x: Sequence[float]
    """In the order of the law's axes."""
    y: float
    predicted: float | None
    relative_error: float | None
    """|predicted - y| / |y|; None if y is 0."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well a form predicts points that were left out of its fit."""

    relative_error: float | None
    """Mean over the predictions, 0 or more; None if there are none."""
    points: int
    """Number of predictions; 0 if there are too few other points for the form."""
    predictions: Sequence[Prediction]
    covered: int | None = None
    """Number of held-out points within their 95 % intervals, which include the variance between
    runs; None for forms that are not drawn, and with a single run."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The slope d ln y / d ln x over the whole range of an axis."""

    estimate: float | None
    interval: Ends
    detectable: float | None
    """Smallest slope that a 5 % test on these runs detects with 80 % power."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well one form describes the points. A line has a held-out error, and a plane has a
    left-out error; the other error is UNSET."""

    aicc: float | None
    """Akaike's criterion. With several runs at equal x it uses their noise; otherwise it is
    corrected for few points. None with too few points."""
    held_out_error: float | UnsetType | None = UNSET
    """Mean relative error on the largest third; None if there are too few other points."""
    left_out_error: float | UnsetType | None = UNSET
    """Root mean square error of ln y over sizes, each predicted from the other sizes."""
    left_out_amounts: float | UnsetType | None = UNSET
    """Root mean square error of ln y over amounts of data, each predicted from the others."""
    misfit: float | UnsetType | None = UNSET
    """Root mean square misfit of ln y that the noise between runs does not explain; None if that
    noise is unknown."""
    misfit_p: float | UnsetType | None = UNSET
    """Probability of such a misfit from noise alone; None if that noise is unknown."""


@dataclass(frozen=True, kw_only=True)
class ByAxis:
    """An interval along each axis of a plane."""

    N: Ends
    D: Ends


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The numbers behind a verdict. A number is None if the verdict did not need it. Some numbers
    exist only for lines, and others only for planes."""

    places: int | None = None
    """Line: number of distinct values of x."""
    sizes: int | None = None
    """Plane: number of distinct values of N."""
    decades: float | None = None
    """log10 of the largest over the least x (plane: N); 0 for a single value."""
    amounts: int | None = None
    """Plane: number of distinct values of D."""
    runs: int | None = None
    """Number of independent runs."""
    points: int | None = None
    """Line: number of points, several per run."""
    slope: Trend | None = None
    """Line: the slope over the whole range."""
    forms: dict[str, Score] | None = None
    """Scores by form."""
    bend: Ends | None = None
    """Line: interval of the x at which an abrupt form bends, if such a form is clearly better than
    every smooth one."""
    turn: Ends | None = None
    """Interval of the x of a minimum, if a form that rises after it is clearly better than every
    other; for a plane along D."""
    rise: Ends | None = None
    """ln y at the largest x minus ln y at the minimum."""
    plateau: Ends | None = None
    """Interval of the x from which y no longer falls; for a plane along N."""
    gain_of_emergent: Ends | None = None
    """Plane: mean squared error of ln y over left-out sizes, best smooth form minus emergent form;
    above 0 favours emergence."""
    threshold: Ends | None = None
    """Plane: interval of the threshold N0, in parameters."""
    steepness: Ends | None = None
    """Plane: interval of the threshold's exponent k."""
    gain_of_smooth: Ends | None = None
    """Plane: mean squared error of ln y over left-out sizes, constant minus best smooth form; above
    0 favours a law."""
    gain_over_amounts: Ends | None = None
    """Plane: like `gain_of_smooth`, over left-out amounts of data."""
    falls: ByAxis | None = None
    """Plane: exponents of the smooth form's fall along each axis."""
    slopes: ByAxis | None = None
    """Plane: d ln y / d ln N and d ln y / d ln D by least squares."""


class SliceKey(NamedTuple):
    """The identity of the points that a law is fitted to. Laws of all forms on these points share
    it, and their verdict."""

    series: str
    x: tuple[str, ...]
    size: float | None


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """A prediction that the user asked for."""

    x: dict[str, float]
    """By axis."""
    y: float | None
    interval: Ends
    """95 % interval of one new run: of the fit, and of the variance between runs."""


@dataclass(frozen=True, kw_only=True)
class Influence:
    """The point without which the prediction at the largest x changes most."""

    x: Sequence[float]
    """In the order of the law's axes."""
    y: float
    change: float | None
    """ln of the prediction without the point minus ln of the prediction with it; for accuracies of
    the error."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """One form fitted to one slice of the points, with the evidence for and against it.

    The fields from `profile_intervals` to `resamples_failed` are None if the form cannot be fitted.
    The fields from `verdict` on are None without a verdict.
    """

    series: str
    """`test`, or `test: part`."""
    form: str
    """Name of a form of `curves.forms`."""
    equation: str
    x: tuple[str, ...]
    """Axes: one of N (parameters), D (effective pairs), C (operations), d and loss, or N and D."""
    y: str
    """The fitted column: loss (nats per pair), accuracy (its error, 1 - accuracy, is fitted), error
    or gain."""
    size: float | None
    """The N of a curve over D; None for points of all sizes."""
    objective: str
    """The objective that the fit minimises."""
    n_points: int
    """Number of fitted points."""
    runs: int
    """Number of runs of these points."""
    parameters: dict[str, float] | None
    """Values by name; None if the form cannot be fitted."""
    intervals: dict[str, Ends] | None
    """95 % bootstrap intervals by parameter; None if the form cannot be fitted."""
    profile_intervals: dict[str, Ends] | None = None
    """95 % profile-likelihood intervals of E and alpha; empty for forms that are not drawn."""
    foretold: Sequence[Foretold] = ()
    """Predictions by --predict; empty for forms that are not drawn."""
    influence: Influence | None = None
    """None for forms that are not drawn, and if y itself is fitted."""
    objective_value: float | None = None
    """The least value of the objective that the fit reached."""
    used: Sequence[XY] | None = None
    """The points of a line, with held-out ones; None for a plane."""
    curve: Curve | None = None
    """None for a plane."""
    curves: Sequence[CurveOfSize] | None = None
    """The curves over D at each size; None for a line, and for forms that are not drawn."""
    residual_places: Sequence[SizeAndData] | None = None
    """The points of a plane; None for a line."""
    residuals: Sequence[float | None] | None = None
    """ln y - ln fit at each of these points, for accuracies those of the error; None if y is 0. For
    a line, the field is None."""
    held_out: HeldOut | None = None
    converged: bool
    optima: Sequence[Sequence[float]] | None = None
    """Different parameters that reach the least objective. The first are those in `parameters`."""
    condition: float | None = None
    """Condition number of the Hessian. Above 1e12, quite different parameters fit equally well."""
    resamples_failed: int | None = None
    """Number of bootstrap draws that could not be fitted."""
    warnings: Sequence[str]
    """Reasons not to interpret the parameters, or the error of a form that cannot be fitted."""
    verdict: Word | None = None
    reason: str | None = None
    """The reason for the verdict."""
    drawn: str | None = None
    """The form of the verdict, else the form that describes the points best. Figures draw it."""
    evidence: Evidence | None = None

    @property
    def subject(self) -> Series:
        """The series of the law."""
        return Series.parse(self.series)

    @property
    def key(self) -> SliceKey:
        """The identity of the fitted points."""
        return SliceKey(self.series, self.x, self.size)

    @property
    def over(self) -> str:
        """The axes as text, such as `D at N = 3,056`."""
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
    """The exponent a, 0 to 1; None if too few budgets have a best size."""
    interval: Ends | None
    """95 % interval of a over runs; None if more than one resample in ten has no exponent."""
    optimal_n: Sequence[float | None]
    """Best N at each budget; None if the runs do not show one."""
    optimal_n_intervals: Sequence[Ends] | None = None
    """95 % intervals of `optimal_n`; only for the joint law."""
    optimal_d: Sequence[float | None] | None = None
    """Effective pairs at the best N; only for the joint law."""
    at_bound: Sequence[str] | None = None
    """Parameters that have no effect; only for the joint law."""
    warning: str | None = None
    """The reason why the approach may be biased."""


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best use of compute for one test, by the three approaches of Chinchilla."""

    operations: Literal["counted", "6 N D"]
    """Source of the number of operations."""
    budgets_flops: Sequence[float]
    """Budgets in ascending order; empty if four sizes reach no common budget."""
    flops_per_parameter_and_pair: float
    """C / (N D)."""
    envelope: Approach
    """Approach 1: the least loss among all runs at each budget."""
    isoflop: Approach
    """Approach 2: a parabola through the losses over ln N at each budget."""
    curves: Sequence[IsoflopCurve]
    """One curve for each budget."""
    joint: Approach | None
    """Approach 3: the joint law in closed form; None if it cannot be fitted."""


@dataclass(frozen=True, kw_only=True)
class CheckpointScores:
    """Further results of a checkpoint, shown with its point."""

    checkpoint: str
    accuracy: float
    """0 to 1."""
    interval: Ends | None
    """95 % interval of the accuracy; None if unknown."""
    style_phi: dict[str, Phi] | None
    """Correlations with style features; None if the texts are unknown."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One point: a checkpoint on one test, or a row of a table."""

    series: Series
    run: str
    """The run of the point. Points of one run are not independent."""
    family: str | None
    """Family of models; None if unknown. Losses of different families need calibration before they
    can be compared."""
    x: dict[str, float]
    """Values by axis, without unknown axes."""
    y: float
    held_out: bool
    """Whether a table marks the point as held out."""
    scores: CheckpointScores | None = None
    """None for a row of a table."""


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """A row of `points.json`. The columns that are not None are the axes and the y of the point."""

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
    """None for a row of a table."""
    accuracy: float | None = None
    """0 to 1; for a row of a table, None unless it is the column y."""
    interval: Ends | UnsetType | None = UNSET
    """95 % interval of the accuracy; None if unknown, UNSET for a row of a table."""
    style_phi: dict[str, Phi] | UnsetType | None = UNSET
    """None if the texts are unknown, UNSET for a row of a table."""

    @classmethod
    def of(cls, point: Measurement, y: str) -> "PointRow":
        """The row of a point; `y` names its column."""
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
        """The point; `y` names its column."""
        columns = {"N": self.N, "D": self.D, "C": self.C, "d": self.d, "loss": self.loss}
        columns |= {"error": self.error, "gain": self.gain, "accuracy": self.accuracy}
        numbers = {name: value for name, value in columns.items() if value is not None}

        # An accuracy is an additional result, not an axis, so AXIS_COLUMNS does not contain it.
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


@dataclass(frozen=True, kw_only=True, repr=False)
class Laws(Display):
    """All results of `worldpm laws`."""

    y: str
    """The fitted column: loss, accuracy, error or gain."""
    laws: Sequence[Law]
    """Laws ordered by slice; a slice has one law for each form."""
    points: Sequence[Measurement]
    """Points in the order of the inputs."""
    optima: dict[str, Optimum]
    """Optima by test, only for tests whose loss falls with both size and data."""

    def rows(self) -> list[Row]:
        """A row for each law: series, axes, form, verdict of the slice, points, and the parameters
        as text; empty if the form cannot be fitted."""
        return [
            {
                "series": law.series,
                "over": law.over,
                "form": law.form,
                "verdict": law.verdict,
                "points": law.n_points,
                "parameters": ", ".join(
                    f"{name} {value:.4g}" for name, value in (law.parameters or {}).items()
                ),
            }
            for law in self.laws
        ]

    def plot(self) -> Any:
        """The first figure of the curves, or else of the residuals; see `Display.plot`."""
        load = partial(extras.load, extra="eval", needed_by="plot()")
        panels, figures = map(load, ("worldpm.laws.panels", "worldpm.laws.figures"))
        pictures = [*panels.curves(self), *panels.checks(self)]
        if not pictures:
            raise ConfigError("plot(): no form can be drawn over these points")
        return figures.drawing(pictures[0])


def finite(value: float) -> float | None:
    """Replace NaN and infinity by None, for JSON."""
    return value if math.isfinite(value) else None


def all_finite(values: Array) -> list[float | None]:
    """Replace NaN and infinity in an array of shape (n,) by None, for JSON."""
    return [finite(value) for value in values.tolist()]


def ends(interval: Interval) -> Ends:
    """Replace ends that are NaN or infinite by None, for JSON."""
    return Ends(*map(finite, interval))


def to_files(laws: Laws) -> dict[str, bytes]:
    """The contents of a folder's three files, by name."""
    # msgspec leaves out UNSET, but not None, so remove defaults first.
    rows = [PointRow.of(point, laws.y) for point in laws.points]
    contents = {LAWS: laws.laws, POINTS: rows, COMPUTE_OPTIMAL: laws.optima}
    return {name: to_json(_without_defaults(content)) for name, content in contents.items()}


def read_laws(folder: Path) -> Laws:
    """Read the files that `to_files` wrote.

    Raises:
        DataError: If a file is damaged.
    """
    laws = read_record(folder / LAWS, list[Law])
    rows = read_record(folder / POINTS, list[PointRow])
    # A folder has at least one law, and all its laws have the same column y.
    y = laws[0].y

    return Laws(
        y=y,
        laws=laws,
        points=[row.measurement(y) for row in rows],
        optima=read_record(folder / COMPUTE_OPTIMAL, dict[str, Optimum]),
    )


def _without_defaults(value: object) -> object:
    """Convert dataclasses to dicts, without the fields that have their default."""
    if is_dataclass(value):
        items = {field: getattr(value, field.name) for field in fields(value)}
        present = {field.name: item for field, item in items.items() if item is not field.default}
        return _without_defaults(present)
    if isinstance(value, dict):
        return {name: _without_defaults(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_defaults(item) for item in value]
    return value
