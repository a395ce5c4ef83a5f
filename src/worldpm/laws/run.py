"""The work of `worldpm laws`: from measured points to fits with intervals, verdicts with their
evidence, and figures."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from worldpm import console
from worldpm.curves.forms import FORMS, Form
from worldpm.curves.solver import HUBER, LOG_SQUARES, SQUARES, Fit, Objective, fit
from worldpm.errors import ConfigError
from worldpm.laws import compute_optimal, evidence, figures, measurements, panels, verdicts
from worldpm.laws.evidence import Points, Resamples, Spread
from worldpm.laws.law import (
    XY,
    Curve,
    Ends,
    HeldOut,
    Law,
    Laws,
    Measurement,
    Optimum,
    Prediction,
    Series,
    SizeAndData,
    SliceKey,
    all_finite,
    ends,
    finite,
    to_files,
)
from worldpm.laws.measurements import Measured
from worldpm.laws.verdicts import (
    LEAST_DECADES,
    LEAST_VALUES,
    LINE_FORMS,
    PLANE_FORMS,
    Verdict,
)
from worldpm.options.laws import AXES, COLUMNS, LawsOptions
from worldpm.options.shared import command_of
from worldpm.storage import folders
from worldpm.storage.json_files import Plain
from worldpm.storage.manifest import describe
from worldpm.storage.workers import cores, in_order

logger = logging.getLogger(__name__)

PROFILED = ("E", "alpha")
"""Parameters with a profile-likelihood interval."""
CURVE_POINTS = 40
"""Points of a curve that figures draw."""
FEW_SLICES = 8
"""Slices that one process fits sooner than several."""
FEW_LAWS = 4
"""Fewer laws than this are logged one by one, besides their verdicts."""
LEAST_AMOUNTS = 4
"""Amounts of data that a size must have seen to give a curve of its own."""
LEAST_SIZES_OF_OPTIMUM = 4
"""Sizes that the best size for a budget needs."""
LAST_SHARE = 0.9
"""A run counts as finished with this share of the data of the longest run."""
RESAMPLES_OF_OPTIMUM = 200
"""Draws behind the best size for a budget, at most: each interpolates every run."""
LARGEST_CONDITION = 1e12
"""Condition number beyond which parameters can be traded for others."""
FLOOR_SHARE = 1e-3
"""A floor below this share of the least y touches 0."""
FAILED_SHARE = 0.1
"""Share of resamples that may fail without a warning."""
LEAST_POSITIVE = 1e-300
"""Stands in for 0 and below where a logarithm is taken."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The column, the axes and the method of the fits."""

    y: str = "loss"
    """The column that is fitted."""
    axes: tuple[str, ...] = AXES
    """The columns that it may depend on."""
    form: str | None = None
    """The only form to fit; None for all that suit the columns."""
    objective: Literal["huber", "squares"] | None = None
    """None for huber of losses, and squares of other columns."""
    resamples: int = 1000
    """Bootstrap draws of runs and prompts behind each interval, 2 or more."""
    seed: int = 0
    """Of the draws."""

    @property
    def minimised(self) -> Objective:
        """The objective of every fit."""
        name = self.objective or ("huber" if self.y == "loss" else "squares")
        return HUBER if name == "huber" else SQUARES

    @property
    def gives_verdicts(self) -> bool:
        """Whether slices get a verdict: only for losses, and not for forms with columns of their
        own."""
        return self.y == "loss" and self.form not in COLUMNS


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Points of one series along one axis, or along N and D together."""

    series: Series
    x: tuple[str, ...]
    """Names of the axes."""
    points: Sequence[Measurement]
    size: float | None = None
    """The N of a curve over D; None for points of all sizes."""

    @property
    def is_plane(self) -> bool:
        """Whether the slice has two axes."""
        return len(self.x) == 2


@dataclass(frozen=True)
class Sample:
    """The points of a slice as arrays."""

    points: Points
    """All of them."""
    fitted: Points
    """Those that a table does not hold out: the points of fits and verdicts."""
    held_out: NDArray[np.bool_]
    """Shape (n,): the points to predict, which a table marks; else the largest third of the first
    axis."""
    draws: Resamples
    """Of the fitted points."""


def run(options: LawsOptions) -> None:
    """Write the laws, the points, the best sizes for a budget, and the figures as SVG and PNG."""
    _check_form(options)
    settings = _settings(options)
    measured = measurements.read(
        options.inputs, y=settings.y, axes=settings.axes, calibrated=options.calibrated
    )
    # Before the folder is begun, so that wrong inputs leave nothing behind.
    slices = slices_of(measured, settings)
    if not slices:
        raise ConfigError(f"{options.inputs[0]}: {_why_no_slice(measured, settings)}")

    output = folders.begin(
        options.out,
        step="laws",
        config=_config(options),
        inputs=[describe(path) for path in options.inputs],
        command=command_of("laws", options),
    )
    if output is None:
        return

    with output:
        for reason, count in measured.drops.items():
            logger.warning("%d points left out: %s", count, reason)

        # A process takes seconds to start, and a slice about as long to fit.
        workers = cores() if len(slices) > FEW_SLICES else 0
        with console.progress("fit", total=len(slices)) as advance:
            laws = fit_laws(measured, settings, workers=workers, after_each=advance)

        _write(laws, output)
        _log(laws)
        output.finish(
            counts={"points": len(laws.points), "fits": len(laws.laws)},
            drops={"points": dict(measured.drops)},
        )


def _check_form(options: LawsOptions) -> None:
    if options.form and options.y == "accuracy" and FORMS[options.form].starts_at_coin_loss:
        raise ConfigError(
            f"--form {options.form} models a loss that starts at ln 2. It cannot be fitted to"
            " accuracies: leave --y out, or take another form."
        )


def _config(options: LawsOptions) -> Plain:
    """The settings as the manifest has them."""
    return {
        "y": options.y_column,
        "form": options.form,
        "objective": options.objective,
        "calibrated": options.calibrated,
        "resamples": options.resamples,
        "seed": options.seed,
    }


def _settings(options: LawsOptions) -> Settings:
    return Settings(
        y=options.y_column,
        axes=options.axes,
        form=options.form,
        objective=options.objective,
        resamples=options.resamples,
        seed=options.seed,
    )


def _write(laws: Laws, output: folders.Output) -> None:
    """Write the laws, and every figure as SVG and PNG."""
    for name, content in to_files(laws).items():
        output.write(name, content)

    (output.path / "figures").mkdir(exist_ok=True)
    for picture in panels.pictures(laws):
        for name, content in figures.files(picture).items():
            output.write(f"figures/{name}", content)


def fit_laws(
    measured: Measured,
    settings: Settings,
    *,
    workers: int = 0,
    after_each: Callable[[], None] | None = None,
) -> Laws:
    """Fit every slice of the points, and find the best size for a budget where both size and data
    lower the loss.

    `workers` processes fit the slices, this one alone for 0; `after_each` is called once for each
    slice.
    """
    laws: list[Law] = []
    slices = slices_of(measured, settings)
    work = partial(_fit_slice, measured=measured, settings=settings)
    # In the order of the slices, so that any number of processes gives the same files.
    for laws_of_slice in in_order(work, slices, workers=workers):
        laws += laws_of_slice
        if after_each is not None:
            after_each()

    # A budget has a best size only where both size and data lower the loss.
    falling = {law.series for law in laws if law.x == ("N", "D") and law.verdict == "power law"}
    optima: dict[str, Optimum] = {}
    for series, points in measured.series().items():
        if series.name in falling and series.part is None:
            optimum = _optimum(points, settings)
            if optimum is not None:
                optima[series.test] = optimum
    return Laws(y=settings.y, laws=laws, points=measured.points, optima=optima)


def slices_of(measured: Measured, settings: Settings) -> list[Slice]:
    """The slices that suit the form and have a point that is not held out."""
    slices: list[Slice] = []
    for series, points in measured.series().items():
        for part in _slices_of_series(series, points, settings):
            suits = settings.form is None or FORMS[settings.form].axes == len(part.x)
            if suits and not all(point.held_out for point in part.points):
                slices.append(part)
    return slices


def _slices_of_series(
    series: Series, points: Sequence[Measurement], settings: Settings
) -> Iterator[Slice]:
    """A series over N and D together, over D at each size, and over N; or over the one axis along
    which it varies."""
    # A form with columns of its own has one axis, whatever its values.
    if settings.axes != AXES:
        yield Slice(series=series, x=settings.axes, points=points)
        return

    if not (_varies(points, "N") and _varies(points, "D")):
        axis = next((axis for axis in AXES if _varies(points, axis)), None)
        if axis is not None:
            yield Slice(series=series, x=(axis,), points=points)
        return

    yield Slice(series=series, x=("N", "D"), points=points)
    # A part of a test has a verdict of its own, and no curves.
    if series.part is None:
        for size in sorted({point.x["N"] for point in points}):
            of_size = [point for point in points if point.x["N"] == size]
            if len({point.x["D"] for point in of_size}) >= LEAST_AMOUNTS:
                yield Slice(series=series, x=("D",), points=of_size, size=size)

    # Over N, runs are compared after equal amounts of data, or where D grows with N, as they are.
    along_size = points if _grow_together(points) else _last_points(points)
    yield Slice(series=series, x=("N",), points=along_size)


def _varies(points: Sequence[Measurement], axis: str) -> bool:
    """Whether all points have the axis, at two values or more."""
    return _have(points, axis) and len({point.x[axis] for point in points}) > 1


def _have(points: Sequence[Measurement], axis: str) -> bool:
    return all(axis in point.x for point in points)


def _last_points(points: Sequence[Measurement]) -> list[Measurement]:
    """The last point of each run that saw nearly all of the data."""
    # By data, not by order: snapshots are read in the order of their names.
    last: dict[str, Measurement] = {}
    for point in points:
        if point.run not in last or point.x["D"] > last[point.run].x["D"]:
            last[point.run] = point

    # A run that was stopped early would lie above the curve of the others.
    most = max(point.x["D"] for point in last.values())
    return [point for point in last.values() if point.x["D"] >= LAST_SHARE * most]


def _grow_together(points: Sequence[Measurement]) -> bool:
    """Whether size and data are one axis, along which both grow."""
    x = np.array([[point.x["N"] for point in points], [point.x["D"] for point in points]])
    return evidence.are_collinear(x) and bool(np.corrcoef(np.log(x))[0, 1] > 0)


def _why_no_slice(measured: Measured, settings: Settings) -> str:
    """The reason why there is nothing to fit."""
    counts = []
    for axis in settings.axes:
        values = {point.x[axis] for point in measured.points if axis in point.x}
        if values:
            counts.append(f"{len(values)} value{'s' * (len(values) != 1)} of {axis}")

    needs_plane = settings.form is not None and FORMS[settings.form].axes == 2
    needed = "N and D" if needs_plane else f"one of {', '.join(settings.axes)}"
    form = f" with --form {settings.form}" if settings.form else ""
    return (
        f"{len(measured.points)} points, with {' and '.join(counts)}; there is no axis to fit along"
        f"{form}: {needed} must vary within a series"
    )


def _fit_slice(part: Slice, measured: Measured, settings: Settings) -> list[Law]:
    """The laws of one slice, one for each form; each has the verdict on the slice."""
    sample = _sample(part, measured, settings)
    verdict = _verdict(part, sample) if settings.gives_verdicts else None
    return [_law(form, part, sample, verdict, settings) for form in _forms(part, settings)]


def _sample(part: Slice, measured: Measured, settings: Settings) -> Sample:
    points = measurements.points_of(measured, part.points, part.x)
    # Points that a table marks take no part in fits; the largest third is left out only to predict.
    marked = np.array([point.held_out for point in part.points])
    fitted = points.take(~marked) if marked.any() else points
    return Sample(
        points=points,
        fitted=fitted,
        held_out=marked if marked.any() else evidence.largest(points),
        draws=evidence.resample(fitted, seed=settings.seed, resamples=settings.resamples),
    )


def _verdict(part: Slice, sample: Sample) -> Verdict:
    if part.is_plane:
        return verdicts.of_plane(sample.fitted)
    return verdicts.of_line(sample.fitted, sample.draws)


def _forms(part: Slice, settings: Settings) -> list[Form]:
    """The form of the settings, or else all that suit the axes and the column."""
    if settings.form is not None:
        return [FORMS[settings.form]]

    # At one size a turn of the curve over data is of no interest, and the points are few.
    shapes = PLANE_FORMS if part.is_plane else LINE_FORMS
    forms = [
        FORMS[name] for name, shape in shapes.items() if part.size is None or shape != "abrupt"
    ]
    return [form for form in forms if settings.y == "loss" or not form.starts_at_coin_loss]


def _law(
    form: Form, part: Slice, sample: Sample, verdict: Verdict | None, settings: Settings
) -> Law:
    """One fit with its evidence and warnings; the warning of a form that cannot be fitted is the
    reason."""
    unfitted = _unfitted(form, part, sample, verdict, settings)
    objective = settings.minimised
    try:
        fitted = fit(form, sample.fitted.x, sample.fitted.y, objective)
    except ValueError as error:
        return replace(unfitted, warnings=[str(error)])

    # Profiles take a search for each of many values: only the form that is read has them.
    is_read = form.name in (settings.form, unfitted.drawn)
    spread = evidence.bootstrap(fitted, sample.fitted, objective, sample.draws)
    law = replace(
        unfitted,
        parameters=dict(zip(form.parameters, fitted.theta.tolist(), strict=True)),
        intervals={name: ends(interval) for name, interval in spread.intervals.items()},
        profile_intervals=_profiles(form, sample.fitted, objective) if is_read else {},
        objective_value=finite(fitted.objective),
        held_out=_held_out(form, sample, objective),
        converged=fitted.converged,
        optima=[list(optimum) for optimum in fitted.optima],
        condition=finite(fitted.condition),
        resamples_failed=spread.failed,
        warnings=_warnings(fitted, spread, sample.fitted, resamples=len(sample.draws.weights)),
    )
    if part.is_plane:
        return _with_residuals(law, fitted, sample.points)
    return _with_curve(law, fitted, spread, sample.points)


def _unfitted(
    form: Form, part: Slice, sample: Sample, verdict: Verdict | None, settings: Settings
) -> Law:
    """A law without a fit."""
    law = Law(
        series=part.series.name,
        form=form.name,
        equation=form.equation,
        x=part.x,
        y=settings.y,
        size=part.size,
        objective=settings.minimised.name,
        n_points=len(sample.fitted.y),
        runs=len(np.unique(sample.fitted.runs)),
        parameters=None,
        intervals=None,
        converged=False,
        warnings=[],
    )
    if verdict is None:
        return law

    return replace(
        law,
        verdict=verdict.word,
        reason=verdict.reason,
        drawn=verdict.form,
        evidence=verdict.evidence,
    )


def _profiles(form: Form, points: Points, objective: Objective) -> dict[str, Ends]:
    """Profile-likelihood intervals, for errors of ln y; none where y itself is fitted."""
    if not objective.logarithmic:
        return {}
    # The likelihood is that of normal errors, so the fit is by squares even if the law's is not.
    fitted = fit(form, points.x, points.y, LOG_SQUARES)
    names = [name for name in PROFILED if name in form.parameters]
    return {name: ends(evidence.profile(points, name, fitted)) for name in names}


def _held_out(form: Form, sample: Sample, objective: Objective) -> HeldOut:
    """The held-out points, predicted by a fit to the others."""
    points = sample.points
    predicted = evidence.predictions(form, points, objective, sample.held_out)
    if predicted is None:
        return HeldOut(relative_error=None, points=0, predictions=[])

    x, y = points.x[:, sample.held_out].T.tolist(), points.y[sample.held_out].tolist()
    predictions = [
        Prediction(
            x=axes,
            y=actual,
            predicted=finite(prediction),
            relative_error=finite(abs(prediction - actual) / abs(actual)) if actual else None,
        )
        for axes, actual, prediction in zip(x, y, predicted.tolist(), strict=True)
    ]
    relative_errors = [prediction.relative_error for prediction in predictions]
    errors = [error for error in relative_errors if error is not None]
    mean = sum(errors) / len(errors) if errors else None
    return HeldOut(relative_error=mean, points=len(predictions), predictions=predictions)


def _with_curve(law: Law, fitted: Fit, spread: Spread, points: Points) -> Law:
    """The law of a line with the points and the curve through them, for figures."""
    x = np.geomspace(max(points.x.min(), LEAST_POSITIVE), points.x.max(), CURVE_POINTS)
    y = fitted.predict(x[None])
    # One run has no resamples, and its curve no band.
    has_band = len(spread.theta) > 1
    low, high = spread.band(fitted.form, x[None]) if has_band else (y, y)
    curve = Curve(x=x.tolist(), y=all_finite(y), low=all_finite(low), high=all_finite(high))
    used = np.stack([points.x[0], points.y], axis=1).tolist()
    return replace(law, used=[XY(*point) for point in used], curve=curve)


def _with_residuals(law: Law, fitted: Fit, points: Points) -> Law:
    """The law of a plane with its residuals at each point, for figures."""
    predicted = np.maximum(fitted.predict(points.x), LEAST_POSITIVE)
    residuals = np.log(np.where(points.y > 0, points.y, np.nan)) - np.log(predicted)
    x = [SizeAndData(*column) for column in points.x.T.tolist()]
    return replace(law, residual_places=x, residuals=all_finite(residuals))


def _warnings(fitted: Fit, spread: Spread, points: Points, *, resamples: int) -> list[str]:
    """Reasons not to read the parameters."""
    warnings = [*_warnings_of_search(fitted), *_warnings_of_points(fitted.form, points)]

    # NaN ends of an unknown interval compare as False, and give no warning.
    for name, value in zip(fitted.form.parameters, fitted.theta, strict=True):
        low, high = spread.intervals[name]
        if high - low > abs(value):
            warnings.append(f"the interval of {name} is wider than its value")
        if name == "E" and low < FLOOR_SHARE * points.y.min():
            warnings.append("the interval of E touches 0: there may be no floor")

    if spread.failed > FAILED_SHARE * resamples:
        warnings.append(f"{spread.failed} of {resamples} resamples could not be fitted")
    return warnings


def _warnings_of_search(fitted: Fit) -> Iterator[str]:
    """Warnings about the search for the parameters."""
    if not fitted.converged:
        yield "did not converge: no better point than a start was found, or it was still moving"
    for name in fitted.at_bound:
        yield f"{name} is at its bound: it has no measurable effect"
    if len(fitted.optima) > 1:
        yield f"{len(fitted.optima)} different optima reach the same objective"
    if fitted.condition > LARGEST_CONDITION:
        number = f"condition number {fitted.condition:.1e}"
        yield f"{number}: some parameters can be traded for others"


def _warnings_of_points(form: Form, points: Points) -> Iterator[str]:
    """Warnings about the points."""
    for axis, values in zip(("first", "second"), points.x, strict=False):
        distinct = evidence.distinct_values(values[None])[0]
        decades = float(np.log10(distinct.max() / distinct.min()))
        is_short = len(distinct) < LEAST_VALUES or decades < LEAST_DECADES

        # Columns of their own, such as a distance from the policy, do not span decades.
        if is_short and form.name not in COLUMNS:
            yield (
                f"the {axis} axis has {len(distinct)} different values over {decades:.2f}"
                f" decades; {LEAST_VALUES} values and {LEAST_DECADES} decades are needed"
            )

    if len(np.unique(points.runs)) < 2:
        yield "only one run, so no intervals: the variance between runs is unknown"


def _optimum(points: Sequence[Measurement], settings: Settings) -> Optimum | None:
    """The best sizes for a budget; None with too few sizes."""
    if len({point.x["N"] for point in points}) < LEAST_SIZES_OF_OPTIMUM:
        return None

    n = np.array([point.x["N"] for point in points])
    d = np.array([point.x["D"] for point in points])
    counted = _have(points, "C")
    runs = compute_optimal.Runs(
        n=n,
        d=d,
        # Chinchilla's rule of six operations for each parameter and datum.
        c=np.array([point.x["C"] for point in points]) if counted else 6 * n * d,
        loss=np.array([point.y for point in points]),
        runs=_training_curves(points),
        operations="counted" if counted else "6 N D",
    )
    resamples = min(settings.resamples, RESAMPLES_OF_OPTIMUM)
    return compute_optimal.compare(runs, seed=settings.seed, resamples=resamples)


def _training_curves(points: Sequence[Measurement]) -> NDArray[np.int64]:
    """The number of the training curve that each point belongs to, shape (n,)."""
    numbers: dict[str, int] = {}
    for point in points:
        numbers.setdefault(point.run, len(numbers))

    # Runs of one point each are no curves; those of one size are taken together.
    if len(numbers) < len(points):
        return np.array([numbers[point.run] for point in points])
    return np.unique([point.x["N"] for point in points], return_inverse=True)[1]


def _log(laws: Laws) -> None:
    """Log one line for each verdict, or for each fit where no verdict is given or there are few."""
    count = sum(1 for law in laws.laws if law.warnings)
    if count:
        total = len(laws.laws)
        logger.warning("%d of %d fits have warnings; `laws.json` names them", count, total)

    # The laws of one slice share its verdict.
    logged: set[SliceKey] = set()
    for law in laws.laws:
        name = f"{law.series} over {law.over}"
        if law.verdict is not None and law.key not in logged:
            logged.add(law.key)
            logger.info("%s: %s (%s)", name, law.verdict, law.reason)

        if law.verdict is None or len(laws.laws) < FEW_LAWS:
            parameters = law.parameters or {}
            numbers = ", ".join(f"{key} {value:.6g}" for key, value in parameters.items())
            logger.info("%s: %s, %s", name, law.equation, numbers or "; ".join(law.warnings))
