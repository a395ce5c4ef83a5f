"""Measured points become scaling laws: fits with their intervals, and verdicts with the evidence
for them."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from worldpm import console
from worldpm.curves.forms import FORMS, Form
from worldpm.curves.solver import HUBER, LOG_SQUARES, SQUARES, Fit, Objective, fit
from worldpm.errors import ConfigError
from worldpm.laws import compute_optimal, evidence, figures, measurements, verdicts
from worldpm.laws.evidence import Points
from worldpm.laws.measurements import Measured, Measurement
from worldpm.laws.verdicts import LEAST_DECADES, LEAST_SIZES, Verdict
from worldpm.options.laws import AXES, COLUMNS, LawsOptions
from worldpm.storage import folders
from worldpm.storage.workers import cores, in_order

logger = logging.getLogger(__name__)
Json = dict[str, Any]

LINE = ("constant", "power", "power_floor", "saturating", "broken", "sigmoid")
PLANE = ("joint", "saturating_joint", "saturating_product", "emergent")
CURVE = LINE[:4]
"""The forms of a curve over data at one size: emergence is a matter of sizes."""
PROFILED = ("E", "alpha")
CURVE_POINTS = 40
PART = ": "
"""Between a test's name and that of a part of it."""
FEW_SLICES = 8
"""Are fitted by one process."""
LEAST_OF_A_CURVE = 4
"""Amounts of data that a size must have seen to give a curve of its own."""


class Slice(NamedTuple):
    """Points of one series along one axis, or along N and D together."""

    name: str
    x: tuple[str, ...]
    points: Sequence[Measurement]
    size: float | None = None
    """The N of a curve over D."""


def run(options: LawsOptions) -> None:
    """Write `laws.json`, the points, how compute is best spent, and the figures as SVG and PNG."""

    if options.form and options.y == "accuracy" and FORMS[options.form].fixed:
        raise ConfigError(
            f"--form {options.form} begins at a coin's loss, ln 2, which is no accuracy; leave --y"
            " out, or take another form"
        )
    measured = measurements.read(
        options.inputs, y=options.y_column, axes=options.axes, calibrated=options.calibrated
    )
    slices = [
        one
        for one in _slices(measured, options)
        if (options.form is None or _axes_of(options.form) == len(one.x))
        and not all(point.held_out for point in one.points)
    ]
    if not slices:
        raise ConfigError(_nothing(options, measured))
    settings = {
        "y": options.y_column,
        **{
            name: getattr(options, name)
            for name in ("form", "objective", "calibrated", "resamples", "seed")
        },
    }
    output = folders.begin(
        options.out,
        step="laws",
        config=settings,
        inputs=[folders.describe(place) for place in options.inputs],
    )
    if output is None:
        return
    with output:
        for reason, number in measured.drops.items():
            logger.warning("%d points left out: %s", number, reason)
        laws: list[Json] = []
        fits = in_order(
            partial(_fit_slice, measured=measured, options=options),
            slices,
            workers=cores() if len(slices) > FEW_SLICES else 0,
        )
        for found in console.track(fits, "fit", total=len(slices)):
            laws += found
        if failed := [law for law in laws if law["warnings"]]:
            logger.warning(
                "%d of %d fits have warnings; `laws.json` names them", len(failed), len(laws)
            )
        # a budget has a best size only where both size and data lower the loss
        falling = {
            law["series"]
            for law in laws
            if law["x"] == ["N", "D"] and law.get("verdict") == "power law"
        }
        optima = {
            name: _compute_optimal(points, options)
            for name, points in measured.series().items()
            if name in falling and PART not in name
        }
        output.write("laws.json", folders.to_json(_known(laws)))
        told = [_told(point, options.y_column) for point in measured.points]
        output.write("points.json", folders.to_json(told))
        output.write(
            "compute_optimal.json",
            folders.to_json(_known({name: found for name, found in optima.items() if found})),
        )
        (options.out / "figures").mkdir(exist_ok=True)
        for picture in figures.pictures(laws, told, optima, y=options.y_column):
            for name, content in figures.files(picture).items():
                output.write(f"figures/{name}", content)
        _say(laws)
        output.finish(
            counts={"points": len(measured.points), "fits": len(laws)},
            drops={"points": dict(Counter(measured.drops))},
        )


def _slices(measured: Measured, options: LawsOptions) -> Iterator[Slice]:
    """What is fitted: each series over N and D together, over D at each size, and over N or C or D
    where that is all there is."""
    for name, points in measured.series().items():
        if options.axes != AXES:
            yield Slice(name, options.axes, points)
            continue
        sizes, amounts = (
            {point.x[axis] for point in points if axis in point.x} for axis in ("N", "D")
        )
        both = _has(points, "N", "D") and len(sizes) > 1 and len(amounts) > 1
        if both:
            yield Slice(name, ("N", "D"), points)
            for size in (
                sorted(sizes) if PART not in name else ()
            ):  # a part of a test has a verdict of its own, and no curves
                own = [point for point in points if point.x["N"] == size]
                if len({point.x["D"] for point in own}) >= LEAST_OF_A_CURVE:
                    yield Slice(name, ("D",), own, size)
            yield Slice(name, ("N",), points if _together(points) else _last(points))
        else:
            axis = next(
                (
                    axis
                    for axis in AXES
                    if _has(points, axis) and len({point.x[axis] for point in points}) > 1
                ),
                None,
            )
            if axis:
                yield Slice(name, (axis,), points)


def _has(points: Sequence[Measurement], *axes: str) -> bool:
    return all(axis in point.x for point in points for axis in axes)


def _last(points: Sequence[Measurement]) -> list[Measurement]:
    """The last point of each run: what a size reaches with all of the data."""
    last: dict[str, Measurement] = {}
    for point in points:
        if point.run not in last or point.x["D"] > last[point.run].x["D"]:
            last[point.run] = point
    most = max(point.x["D"] for point in last.values())
    return [point for point in last.values() if point.x["D"] >= 0.9 * most]


def _together(points: Sequence[Measurement]) -> bool:
    """Whether size and data are one axis, along which both grow."""

    places = np.array([[point.x[axis] for point in points] for axis in ("N", "D")])
    return evidence.go_together(places) and bool(np.corrcoef(np.log(places))[0, 1] > 0)


def _nothing(options: LawsOptions, measured: Measured) -> str:
    """Why there is nothing to fit."""
    places = {
        axis: len({point.x[axis] for point in measured.points if axis in point.x})
        for axis in options.axes
    }
    found = " and ".join(
        f"{number} value{'s' * (number != 1)} of {axis}"
        for axis, number in places.items()
        if number
    )
    wanted = (
        "N and D"
        if options.form and _axes_of(options.form) == 2
        else f"one of {', '.join(options.axes)}"
    )
    form = f" with --form {options.form}" if options.form else ""
    told = f"{len(measured.points)} points, with {found}; there is no axis to fit along{form}"
    return f"{options.inputs[0]}: {told}: {wanted} must vary within a series"


def _fit_slice(one: Slice, measured: Measured, options: LawsOptions) -> list[Json]:
    """The laws of one slice; the verdict stands with each."""

    points = measurements.points_of(measured, one.points, one.x)
    suited = PLANE if len(one.x) == 2 else LINE if one.size is None else CURVE
    names = (
        [options.form]
        if options.form
        else [name for name in suited if options.y == "loss" or not FORMS[name].fixed]
    )
    fitted = _unmarked(one, points)
    draws = evidence.resample(fitted, seed=options.seed, resamples=options.resamples)
    verdict = None
    if options.y_column == "loss" and options.form not in COLUMNS:
        verdict = verdicts.of_plane(fitted) if len(one.x) == 2 else verdicts.of_line(fitted, draws)
    return [_law(name, one, points, fitted, draws, verdict, options) for name in names]


def _axes_of(form: str) -> int:

    return FORMS[form].axes


def _held_out(one: Slice, points: Points) -> Any:
    """Which points a fit must foretell: those the table marks, or else the largest third of the
    first axis."""

    marked = np.array([point.held_out for point in one.points])
    return marked if marked.any() else evidence.largest(points)


def _unmarked(one: Slice, points: Points) -> Points:
    """The points that a table does not hold out: what is fitted, and what a verdict is given on."""

    marked = np.array([point.held_out for point in one.points])
    return points.take(~marked) if marked.any() else points


def _law(
    name: str,
    one: Slice,
    points: Points,
    fitted: Points,
    draws: Any,
    verdict: Verdict | None,
    options: LawsOptions,
) -> Json:
    """One fit with all that is to be known of it; where it cannot be made, the reason stands among
    the warnings."""

    form, objective = FORMS[name], _objective(options)
    told: Json = {
        "series": one.name,
        "form": name,
        "equation": form.equation,
        "x": list(one.x),
        "y": options.y_column,
        "size": one.size,
        "objective": objective.name,
        "n_points": len(fitted.y),
        "runs": len(set(fitted.runs.tolist())),
    }
    try:
        found = fit(form, fitted.x, fitted.y, objective)
    except ValueError as error:
        nothing: Json = {
            "parameters": None,
            "intervals": None,
            "converged": False,
            "warnings": [str(error)],
        }
        return {**told, **nothing, **_judged(verdict)}
    spread = evidence.bootstrap(found, fitted, objective, draws)
    profiles = {}
    if objective.logarithmic and name in (options.form, verdict.form if verdict else None):
        smooth = fit(form, fitted.x, fitted.y, LOG_SQUARES)
        profiles = {
            key: list(evidence.profile(fitted, key, smooth))
            for key in PROFILED
            if key in form.parameters
        }
    return {
        **told,
        "parameters": dict(zip(form.parameters, map(float, found.theta), strict=True)),
        "intervals": {key: list(interval) for key, interval in spread.intervals.items()},
        "profile_intervals": profiles,
        "objective_value": found.objective,
        **_shown(found, spread, points),
        "held_out": _foretold(form, points, objective, _held_out(one, points)),
        "converged": found.converged,
        "optima": [list(optimum) for optimum in found.optima],
        "condition": found.condition,
        "resamples_failed": spread.failed,
        "warnings": _warnings(found, spread, fitted, options),
        **_judged(verdict),
    }


def _objective(options: LawsOptions) -> Objective:

    chosen = options.objective or ("huber" if options.y_column == "loss" else "squares")
    return HUBER if chosen == "huber" else SQUARES


def _foretold(form: Form, points: Points, objective: Objective, held_out: Any) -> Json:
    """The points held out, as a fit to the others has them, and the mean of the relative errors."""

    predicted = evidence.foretold(form, points, objective, held_out)
    if predicted is None:
        return {"relative_error": None, "points": 0, "predictions": []}
    places = zip(
        points.x[:, held_out].T.tolist(),
        points.y[held_out].tolist(),
        predicted.tolist(),
        strict=True,
    )
    rows = [
        {
            "x": x,
            "y": y,
            "predicted": guess,
            "relative_error": abs(guess - y) / abs(y) if y else None,
        }
        for x, y, guess in places
    ]
    errors = [row["relative_error"] for row in rows if row["relative_error"] is not None]
    return {
        "relative_error": sum(errors) / len(errors) if errors else None,
        "points": len(rows),
        "predictions": rows,
    }


def _shown(found: Fit, spread: Any, points: Points) -> Json:
    """The points and the curve through them, or what the surface leaves unexplained, for the
    figures."""

    if len(points.x) == 1:
        grid = np.geomspace(max(points.x.min(), 1e-300), points.x.max(), CURVE_POINTS)
        low, high = (
            spread.band(found.form, grid[None])
            if len(spread.theta) > 1
            else (found.predict(grid[None]),) * 2
        )
        curve = {
            "x": grid.tolist(),
            "y": found.predict(grid[None]).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
        }
        return {"used": np.stack([points.x[0], points.y], axis=1).tolist(), "curve": curve}
    residuals = np.log(np.where(points.y > 0, points.y, np.nan)) - np.log(
        np.maximum(found.predict(points.x), 1e-300)
    )
    return {"residual_places": points.x.T.tolist(), "residuals": residuals.tolist()}


def _warnings(found: Fit, spread: Any, points: Points, options: LawsOptions) -> list[str]:
    """All that speaks against reading the parameters."""

    told = (
        []
        if found.converged
        else ["did not converge: no better point than a start was found, or it was still moving"]
    )
    told += [
        f"{name} is at its bound: it has no effect, and cannot be told from nothing"
        for name in found.at_bound
    ]
    if len(found.optima) > 1:
        told.append(f"{len(found.optima)} different optima reach the same objective")
    if found.condition > 1e12:
        told.append(
            f"condition number {found.condition:.1e}: some parameters can be traded for others"
        )
    for axis, values in zip(("first", "second"), points.x, strict=False):
        places = np.sort(evidence.places(values[None])[0])
        decades = float(np.log10(places[-1] / places[0]))
        if found.form.name not in COLUMNS and (
            len(places) < LEAST_SIZES or decades < LEAST_DECADES
        ):
            told.append(
                f"the {axis} axis has {len(places)} places over {decades:.2f} decades;"
                f" {LEAST_SIZES} and {LEAST_DECADES} are needed"
            )
    if len(set(points.runs.tolist())) < 2:
        told.append("one run: nothing tells what another would give, so there are no intervals")
    for name, value in zip(found.form.parameters, found.theta, strict=True):
        low, high = spread.intervals[name]
        if high - low > abs(value):
            told.append(f"the interval of {name} is wider than its value")
        if name == "E" and low < 1e-3 * points.y.min():
            told.append("the interval of E touches 0: there may be no floor")
    if spread.failed > 0.1 * options.resamples:
        told.append(f"{spread.failed} of {options.resamples} resamples could not be fitted")
    return told


def _judged(verdict: Verdict | None) -> Json:
    return (
        {}
        if verdict is None
        else {
            "verdict": verdict.word,
            "reason": verdict.reason,
            "drawn": verdict.form,
            "evidence": verdict.evidence,
        }
    )


def _compute_optimal(points: Sequence[Measurement], options: LawsOptions) -> Json | None:
    """How compute is best spent, where the runs have their operations counted, or by 6 N D where a
    table has none."""

    if options.y_column != "loss" or len({point.x["N"] for point in points}) < LEAST_OF_A_CURVE:
        return None
    n, d = (np.array([point.x[axis] for point in points]) for axis in ("N", "D"))
    counted = _has(points, "C")
    c = np.array([point.x["C"] for point in points]) if counted else 6 * n * d
    names = {run: number for number, run in enumerate(dict.fromkeys(point.run for point in points))}
    # runs of one point each are no curves; those of one size are taken together
    by = [names[point.run] if len(names) < len(points) else point.x["N"] for point in points]
    runs = compute_optimal.Runs(
        n, d, c, np.array([point.y for point in points]), np.unique(by, return_inverse=True)[1]
    )
    return {
        "operations": "counted" if counted else "6 N D",
        **compute_optimal.compare(runs, seed=options.seed, resamples=min(options.resamples, 200)),
    }


def _known(value: Any) -> Any:
    """The same without NaN and infinity, which are no JSON: what is not known, or an open end, is
    null."""
    if isinstance(value, dict):
        return {name: _known(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _told(point: Measurement, y: str) -> Json:
    named = {"series": point.series, "run": point.run, "family": point.family}
    return {
        **named,
        **point.x,
        y: point.y,
        "held_out": point.held_out,
        **{key: value for key, value in point.more.items() if key != y},
    }


def _say(laws: Sequence[Mapping[str, Any]]) -> None:
    """One line for each verdict, or for each fit where no verdict is given."""
    said: set[tuple[Any, ...]] = set()
    for law in laws:
        where = f"{law['series']} over {' and '.join(law['x'])}" + (
            f" at N = {law['size']:,.0f}" if law["size"] else ""
        )
        key = (law["series"], tuple(law["x"]), law["size"])
        if "verdict" in law and key not in said:
            said.add(key)
            logger.info("%s: %s (%s)", where, law["verdict"], law["reason"])
        if "verdict" not in law or len(laws) < 4:
            numbers = ", ".join(
                f"{name} {value:.6g}" for name, value in (law["parameters"] or {}).items()
            )
            logger.info("%s: %s, %s", where, law["equation"], numbers or "; ".join(law["warnings"]))
