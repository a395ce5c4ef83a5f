"""The content of the figures of scaling laws: test loss over data and size, emergence, residuals,
and compute. `laws.figures` draws them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

import numpy as np

from worldpm.curves.forms import COIN_LOSS_NATS
from worldpm.laws.law import XY, Approach, Curve, Law, Laws, Measurement, Optimum, SliceKey

DARK, LIGHT = 0.0, 0.88
"""Range of colours for sizes and parts, as shares of a colour map. Lighter colours would be hard to
see on white."""
DOTS_A_DECADE = 50
"""Amounts of data per decade that get separate dots. The amounts of two seeds round to the same
dot."""
COIN_ACCURACY = 0.5
MARKERS = "osD^vP*X"
"""One marker for each part of a test, repeated if there are more parts."""
LABELS = {
    "N": "N, parameters without embeddings",
    "D": "D, effective pairs",
    "C": "C, operations (FLOPs)",
    "loss": "test loss (nats per pair)",
}
"""Labels of the axes of results. Those of a table are the names of its columns."""
LINE_AXES = ("N", "D", "C", "d", "loss")
"""Axes that have a separate figure, in the order of the figures."""

Ink = Literal["first", "second", "third", "muted"]
"""A colour of the palette."""
Colour = Ink | float
"""A colour of the palette, or a share of a colour map, from dark (0) to light (1)."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Dots, a line through them, or both."""

    dots: Sequence[XY]
    """Empty for a line that is only an entry of the legend."""
    colour: Colour
    label: str | None = None
    """None if the line is not in the legend."""
    marker: str = "o"
    """Matplotlib's marker; empty for no marker."""
    marker_size: float = 3.5
    """In points."""
    face: Literal["full", "white", "none"] = "full"
    """Fill of the markers."""
    width: float | None = None
    """Width of the line in points; None for dots without a line."""
    opacity: float | None = None
    """0 to 1; None is opaque."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """The area between two curves."""

    x: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]
    colour: Colour


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line over the whole width."""

    y: float
    label: str | None = None
    """None for a solid line that is not in the legend. Lines with a label are dashed."""


Mark = Line | Band | Level


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes of a figure; x has a logarithmic scale."""

    title: str
    x_label: str
    y_label: str
    marks: Sequence[Mark]
    """Marks in the order of drawing."""
    guides: Sequence[Mark] = ()
    """Reference lines and legend entries, drawn last."""
    logarithmic_y: bool = False
    legend_size: float | None = None
    """Font size in points; None for a panel without a legend."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure."""

    name: str
    """Name of the figure's files, without a suffix."""
    caption: str
    panels: Sequence[Panel]
    """One panel for each test."""
    legend: str | None = None
    """Title of the legend for all panels; None for no such legend."""


def pictures(laws: Laws) -> Iterator[Picture]:
    """All figures of the laws, in reading order."""
    yield from curves(laws)
    yield from checks(laws)


def curves(laws: Laws) -> Iterator[Picture]:
    """The fitted curves over their points."""
    yield from _pictures_over_data(laws)
    for axis in LINE_AXES:
        yield from _pictures_along(laws, axis)
    yield from _pictures_of_parts(laws)


def checks(laws: Laws) -> Iterator[Picture]:
    """Residuals, and the best sizes for budgets."""
    yield from _pictures_of_residuals(laws)
    yield from _pictures_of_optima(laws)


def _label(laws: Laws, column: str) -> str:
    """The label of a column. Only results have known units."""
    of_results = any(point.scores for point in laws.points)
    return LABELS.get(column, column) if of_results else column


def _tests(laws: Laws) -> list[str]:
    """The names of the tests, in the order of their points."""
    return list(dict.fromkeys(point.series.test for point in laws.points if not point.series.part))


def _fitted_tests(laws: Laws, *x: str, at_one_size: bool = False) -> list[str]:
    """The tests that have a law over these axes, over all sizes or at a single size."""
    # A series with the name of a test is the whole test.
    fitted = {
        law.series
        for law in laws.laws
        if law.x == x and (law.size is not None) == at_one_size and law.parameters
    }
    return [name for name in _tests(laws) if name in fitted]


def _drawn_law(laws: Laws, key: SliceKey) -> Law | None:
    """The law to draw: the law of the form that the verdict names, or without a verdict the law
    that predicts the largest points best. None if no form could be fitted."""
    fitted = [law for law in laws.laws if law.key == key and law.parameters]
    # With --form, the verdict's form may not be fitted.
    named = [law for law in fitted if law.form == law.drawn]
    return named[0] if named else min(fitted, key=_error_on_largest, default=None)


def _error_on_largest(law: Law) -> float:
    error = law.held_out.relative_error if law.held_out else None
    return math.inf if error is None else error


def _held_out_x(law: Law | None) -> list[float]:
    """The x of a line's held-out points."""
    if law is None or law.held_out is None:
        return []
    return [prediction.x[0] for prediction in law.held_out.predictions]


def _fitted_dots(laws: Laws) -> str:
    """The name of the fitted dots, for captions."""
    return "the full dots" if any(point.held_out for point in laws.points) else "all dots"


def _means(points: Iterable[XY]) -> list[XY]:
    """The mean y at each x, in ascending order of x."""
    by_x: dict[float, list[float]] = {}
    for x, y in points:
        by_x.setdefault(x, []).append(y)
    return [XY(x, sum(by_x[x]) / len(by_x[x])) for x in sorted(by_x)]


def _rounded(amount: float) -> float:
    """The amount at which a dot is drawn."""
    return float(10 ** (round(math.log10(amount) * DOTS_A_DECADE) / DOTS_A_DECADE))


def _shares(count: int) -> list[float]:
    """Colours from dark to light, which also differ without hue."""
    shares = np.linspace(DARK, LIGHT, max(2, count))[:count]
    return [float(share) for share in shares]


def _colours_of_sizes(laws: Laws) -> dict[float, float]:
    """A colour for each size of all tests, from dark to light."""
    # All tests, so that a size has the same colour in every panel.
    sizes = sorted({point.x["N"] for point in laws.points if "N" in point.x})
    return dict(zip(sizes, _shares(len(sizes)), strict=True))


def _size_label(size: float) -> str:
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:.3g} {letter}"
    return f"{size:.0f}"


def _has_logarithms(y: str, values: Sequence[float]) -> bool:
    """Whether the axis of y is logarithmic: for losses above 0."""
    return y == "loss" and bool(values) and min(values) > 0


def _curve(law: Law | None, colour: Colour) -> list[Mark]:
    """The curve and band of a law; nothing without a law, or if the points identify none."""
    if law is None or law.curve is None:
        return []
    # the mean of points that are too few for a curve would look like a finding
    if law.form == "constant" and law.verdict != "no trend":
        return []
    return _marks_of_curve(law.curve, colour)


def _marks_of_curve(curve: Curve, colour: Colour) -> list[Mark]:
    dots = [XY(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y is not None]
    return [
        Band(x=curve.x, low=curve.low, high=curve.high, colour=colour),
        Line(dots=dots, colour=colour, marker="", width=1.3),
    ]


def _coin(y: str) -> list[Mark]:
    """The level of a coin flip; nothing for columns without such a level."""
    levels = {"loss": COIN_LOSS_NATS, "accuracy": COIN_ACCURACY}
    return [Level(y=levels[y], label="a coin flip")] if y in levels else []


def _coin_below(y: str, values: Sequence[float]) -> list[Mark]:
    """The level of a coin flip; nothing for losses that are never below it, such as losses of a
    language model."""
    return _coin(y) if y != "loss" or min(values) < COIN_LOSS_NATS else []


def _pictures_over_data(laws: Laws) -> Iterator[Picture]:
    names = _fitted_tests(laws, "D", at_one_size=True)
    if names:
        caption = (
            f"{_label(laws, laws.y).capitalize()} over data, with one colour for each size. Dots"
            " are means over seeds. If the title names a law over N and D, lines are this law at"
            f" each size, fitted to {_fitted_dots(laws)}; otherwise they are a fit to each size"
            " alone, where its dots identify one. Bands are 95 % intervals. Open dots are held"
            " out: they test predictions by another fit, to the full dots only. The dashed line is"
            " a coin flip."
        )
        panels = [_panel_over_data(laws, name) for name in names]
        yield Picture(name=f"{laws.y}_over_data", caption=caption, panels=panels, legend="N")


def _panel_over_data(laws: Laws, name: str) -> Panel:
    points = _points_of(laws, name)
    values = [point.y for point in points]
    plane = _drawn_law(laws, SliceKey(name, ("N", "D"), None))
    identified = plane is not None and plane.verdict not in (None, "not identified")
    of_plane = {part.size: part.curve for part in (plane.curves if plane else None) or ()}

    marks: list[Mark] = []
    for size, colour in _colours_of_sizes(laws).items():
        of_size = [point for point in points if point.x["N"] == size]
        if of_size:
            law = _drawn_law(laws, SliceKey(name, ("D",), size))
            marks += _dots_over_data(of_size, law, colour, _size_label(size))
            if identified and size in of_plane:
                marks += _marks_of_curve(of_plane[size], colour)
            else:
                marks += _curve(law, colour)

    key = SliceKey(name, ("N", "D"), None)
    verdict = next((law.verdict for law in laws.laws if law.key == key and law.verdict), None)
    # Open dots and bands have the colours of sizes, so their legend entries need a neutral colour.
    held_out = Line(dots=[], colour="muted", face="white", label="held out")
    band = Line(dots=[], colour="muted", marker="", width=6, opacity=0.3, label="95 % of the fit")
    return Panel(
        title=f"{name}: {verdict}" if verdict else name,
        x_label=_label(laws, "D"),
        y_label=_label(laws, laws.y),
        marks=marks,
        guides=[held_out, band, *_coin_below(laws.y, values)],
        logarithmic_y=_has_logarithms(laws.y, values),
    )


def _points_of(laws: Laws, name: str) -> list[Measurement]:
    """The points of a whole test."""
    return [point for point in laws.points if point.series.name == name]


def _dots_over_data(
    points: Sequence[Measurement], law: Law | None, colour: Colour, label: str
) -> list[Mark]:
    """The means of one size; held-out means are open dots."""
    means = _means(XY(_rounded(point.x["D"]), point.y) for point in points)
    held_out = {_rounded(amount) for amount in _held_out_x(law)}
    open_dots = [dot for dot in means if dot.x in held_out]
    return [
        Line(dots=means, colour=colour, label=label),
        Line(dots=open_dots, colour=colour, face="white"),
    ]


def _pictures_along(laws: Laws, axis: str) -> Iterator[Picture]:
    names = _fitted_tests(laws, axis)
    if names:
        last_only = axis == "N" and _fitted_tests(laws, "N", "D")
        caption = (
            f"{'The last points of all runs' if last_only else 'All points'}, and the best fit to"
            f" {_fitted_dots(laws)} with its 95 % band. Open dots are held out: they test"
            " predictions by another fit, to the full dots only. The title shows the verdict."
        )
        panels = [_panel_along(laws, name, axis) for name in names]
        yield Picture(name=f"{laws.y}_over_{axis}", caption=caption, panels=panels)


def _panel_along(laws: Laws, name: str, axis: str) -> Panel:
    law = _drawn_law(laws, SliceKey(name, (axis,), None))
    used = law.used if law and law.used else []
    values = [y for _, y in used]
    held_out_x = set(_held_out_x(law))
    fitted = [dot for dot in used if dot.x not in held_out_x]
    held_out = [dot for dot in used if dot.x in held_out_x]

    return Panel(
        title=f"{name}: {law.verdict}" if law and law.verdict else name,
        x_label=_label(laws, axis),
        y_label=_label(laws, laws.y),
        marks=[
            Line(dots=fitted, colour="first", marker_size=4, label="fitted"),
            Line(dots=held_out, colour="first", marker_size=4, face="white", label="held out"),
            *_curve(law, "first"),
        ],
        guides=_coin_below(laws.y, values),
        logarithmic_y=_has_logarithms(laws.y, values),
        legend_size=7,
    )


def _pictures_of_parts(laws: Laws) -> Iterator[Picture]:
    split = {law.subject.test for law in laws.laws if law.subject.part and law.x == ("N",)}
    names = [name for name in _tests(laws) if name in split]
    if names:
        caption = (
            "The parts of each test at the end of training, over size. Dots are means over seeds."
            " The legend shows the verdicts. The dashed line is a coin flip."
        )
        panels = [_panel_of_parts(laws, name) for name in names]
        yield Picture(name="parts_over_size", caption=caption, panels=panels)


def _panel_of_parts(laws: Laws, name: str) -> Panel:
    series = dict.fromkeys(point.series for point in laws.points if point.series.test == name)
    parts = [part for part in series if part.part is not None]
    marks: list[Line] = []
    # Use markers too, because similar shades of many parts are hard to distinguish.
    for part, colour, marker in zip(parts, _shares(len(parts)), cycle(MARKERS), strict=False):
        laws_of_part = (law for law in laws.laws if law.subject == part and law.x == ("N",))
        law = next(laws_of_part, None)
        if law is not None and law.used is not None:
            marks.append(
                Line(
                    dots=_means(law.used),
                    colour=colour,
                    marker=marker,
                    marker_size=4,
                    width=1.3,
                    label=f"{part.part}, {law.verdict}" if law.verdict else part.part,
                )
            )

    values = [y for line in marks for _, y in line.dots]
    return Panel(
        title=name,
        x_label=_label(laws, "N"),
        y_label=_label(laws, laws.y),
        marks=marks,
        guides=_coin(laws.y),
        logarithmic_y=_has_logarithms(laws.y, values),
        legend_size=6.5,
    )


def _pictures_of_residuals(laws: Laws) -> Iterator[Picture]:
    names = _fitted_tests(laws, "N", "D")
    if names:
        caption = (
            "Residuals of the law over N and D at each point. A pattern means that the law does not"
            " hold."
        )
        panels = [_panel_of_residuals(laws, name) for name in names]
        yield Picture(name="residuals", caption=caption, panels=panels, legend="N")


def _panel_of_residuals(laws: Laws, name: str) -> Panel:
    law = _drawn_law(laws, SliceKey(name, ("N", "D"), None))
    x = law.residual_places if law and law.residual_places else []
    residuals = law.residuals if law and law.residuals else []
    marks: list[Mark] = []
    for size, colour in _colours_of_sizes(laws).items():
        dots = [
            XY(d, residual)
            for (n, d), residual in zip(x, residuals, strict=True)
            if n == size and residual is not None  # None: a y of 0 has no logarithm
        ]
        if dots:
            marks.append(Line(dots=dots, colour=colour, label=_size_label(size)))

    return Panel(
        title=f"{name}: {law.form if law else ''}",
        x_label=_label(laws, "D"),
        y_label=f"ln {'error' if laws.y == 'accuracy' else laws.y} - ln fit",
        marks=marks,
        guides=[Level(y=0)],
    )


def _pictures_of_optima(laws: Laws) -> Iterator[Picture]:
    """The curves of equal compute, and the best size over compute."""
    optima = {
        name: laws.optima[name]
        for name in _tests(laws)
        if name in laws.optima and laws.optima[name].budgets_flops
    }
    if optima:
        caption = (
            "Loss over size, with one curve for each budget of operations. Smaller budgets are"
            " lighter. Squares are the lowest points of parabolas."
        )
        panels = [_panel_isoflop(laws, name, optimum) for name, optimum in optima.items()]
        yield Picture(name="isoflop", caption=caption, panels=panels)

        caption = (
            "The best size for a budget, by three approaches. The band is the 95 % interval of the"
            " joint law."
        )
        panels = [_panel_of_frontier(laws, name, optimum) for name, optimum in optima.items()]
        yield Picture(name="frontier", caption=caption, panels=panels)


def _panel_isoflop(laws: Laws, name: str, optimum: Optimum) -> Panel:
    budgets = optimum.budgets_flops
    # From light to dark, so that larger budgets stand out.
    colours = np.linspace(LIGHT, DARK, max(2, len(budgets))).tolist()
    columns = zip(budgets, optimum.curves, optimum.isoflop.optimal_n, colours, strict=False)
    marks: list[Mark] = []
    values: list[float] = []
    for budget, curve, best, colour in columns:
        values += curve.loss
        marks.append(
            Line(
                dots=[XY(n, loss) for n, loss in zip(curve.n, curve.loss, strict=True)],
                colour=colour,
                marker_size=3,
                width=1.2,
                label=f"{budget:.1e} FLOPs",
            )
        )
        if best is not None and curve.n:
            # The best size is between trained sizes, so interpolate its loss.
            loss = float(np.interp(math.log(best), np.log(curve.n), curve.loss))
            dots = [XY(best, loss)]
            marks.append(Line(dots=dots, colour=colour, marker="s", marker_size=6, face="none"))

    return Panel(
        title=name,
        x_label=_label(laws, "N"),
        y_label=_label(laws, laws.y),
        marks=marks,
        logarithmic_y=_has_logarithms(laws.y, values),
        legend_size=6,
    )


def _panel_of_frontier(laws: Laws, name: str, optimum: Optimum) -> Panel:
    budgets = optimum.budgets_flops

    return Panel(
        title=name,
        x_label=LABELS["C"],
        y_label=f"best {_label(laws, 'N')}",
        marks=[
            *_marks_of_approach(optimum.envelope, "1: envelope", budgets, "second", "^"),
            *_marks_of_approach(optimum.isoflop, "2: parabolas", budgets, "third", "s"),
            *_marks_of_approach(optimum.joint, "3: joint law", budgets, "first", "o"),
        ],
        logarithmic_y=True,
        legend_size=7,
    )


def _marks_of_approach(
    approach: Approach | None, label: str, budgets: Sequence[float], colour: Ink, marker: str
) -> list[Mark]:
    """The best size over the budget, with its band if it has one."""
    if approach is None or not any(approach.optimal_n):
        return []

    dots = [XY(c, n) for c, n in zip(budgets, approach.optimal_n, strict=True) if n]
    exponent = "" if approach.exponent is None else f", a = {approach.exponent:.2f}"
    line = Line(
        dots=dots,
        colour=colour,
        marker=marker,
        marker_size=4,
        width=1.2,
        label=label + exponent,
    )

    intervals = approach.optimal_n_intervals
    if not intervals:
        return [line]
    low, high = [low for low, _ in intervals], [high for _, high in intervals]
    return [line, Band(x=budgets, low=low, high=high, colour=colour)]
