"""Figures of scaling laws, for a page and for a paper: test loss over data and size, emergence,
residuals, and compute."""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from worldpm import plots
from worldpm.curves.forms import COIN_LOSS_NATS
from worldpm.plots import PAPER, Palette

Json = dict[str, Any]

PANEL = (3.4, 2.7)
"""Inches of one panel."""
COLUMNS = 3
DPI = 200
NARROW = 4
"""Losses within this ratio get a tick for each digit."""
UNITS = {
    "N": "N, parameters without embeddings",
    "D": "D, effective pairs",
    "C": "C, operations (FLOPs)",
    "loss": "test loss (nats per pair)",
}


class Picture(NamedTuple):
    """One figure: its file's name, its caption, and how it is drawn in given colours."""

    name: str
    caption: str
    draw: Callable[[Palette], Figure]


def pictures(
    laws: Sequence[Json], points: Sequence[Json], optima: Mapping[str, Json | None], *, y: str
) -> Iterator[Picture]:
    """Every figure that the laws give, in the order to look at them."""
    fitted_to = "the full ones" if any(point["held_out"] for point in points) else "all"
    whole = [
        name for name in dict.fromkeys(point["series"] for point in points) if ": " not in name
    ]

    def fitted(*x: str, size: bool = False) -> list[str]:
        """The tests that have a law over these axes, of all sizes or of each."""
        there = {
            law["series"]
            for law in laws
            if law["x"] == [*x] and (law["size"] is not None) == size and law["parameters"]
        }
        return [name for name in whole if name in there]

    if names := fitted("D", size=True):
        caption = (
            "Test loss over data, one colour a size; dots are means over seeds, lines the fits"
            " that suit each size best, with 95 % bands; a fit to the full dots had to foretell"
            f" the open ones, the lines are fits to {fitted_to}. The dashed line is a coin flip."
            " Above stands the verdict over N and D together."
        )
        yield Picture(
            f"{y}_over_data",
            caption,
            partial(_panels, names, partial(_over_data, laws, points, y), "N"),
        )
    for axis in ("N", "D", "C", "d", "loss"):
        if names := fitted(axis):
            drawn = (
                "The last points of all runs" if axis == "N" and fitted("N", "D") else "All points"
            )
            caption = (
                f"{drawn}, and the best fit to {fitted_to} with its 95 % band; a fit to the full"
                " dots had to foretell the open ones. Above stands the verdict."
            )
            yield Picture(
                f"{y}_over_{axis}",
                caption,
                partial(_panels, names, partial(_along, axis, laws, points, y), ""),
            )
    split = [
        name
        for name in whole
        if any(law["series"].startswith(f"{name}: ") and law["x"] == ["N"] for law in laws)
    ]
    if split:
        caption = (
            "The parts of each test at the end of training, over size: means over seeds, with"
            " verdicts. The dashed line is a coin flip."
        )
        yield Picture(
            "parts_over_size",
            caption,
            partial(_panels, split, partial(_parts, laws, points, y), ""),
        )
    if names := fitted("N", "D"):
        caption = (
            "What the law over N and D leaves unexplained at each point: a pattern here is a law"
            " that does not hold."
        )
        yield Picture(
            "residuals", caption, partial(_panels, names, partial(_residuals, laws, points, y), "N")
        )
    if names := [name for name in whole if (optima.get(name) or {}).get("budgets_flops")]:
        caption = (
            "Loss over size at one budget of operations a curve, small ones light; squares are the"
            " lowest points of parabolas."
        )
        yield Picture("isoflop", caption, partial(_panels, names, partial(_isoflop, optima, y), ""))
        caption = (
            "The best size for a budget by three approaches; the band is the 95 % interval of the"
            " joint law's."
        )
        yield Picture("frontier", caption, partial(_panels, names, partial(_frontier, optima), ""))


def files(picture: Picture) -> dict[str, bytes]:
    """A figure as SVG and as PNG, in the colours of paper."""
    made = {}
    figure = picture.draw(PAPER)
    for kind, options in (
        ("svg", {"metadata": {"Date": None, "Creator": None}}),
        ("png", {"dpi": DPI, "metadata": {"Software": None}}),
    ):
        buffer = io.BytesIO()
        with mpl.rc_context(plots.style(PAPER)):
            figure.savefig(buffer, format=kind, facecolor="white", **options)
        made[f"{picture.name}.{kind}"] = buffer.getvalue()
    return made


def _panels(
    names: Sequence[str], draw: Callable[[Palette, Axes, str], None], legend: str, ink: Palette
) -> Figure:
    """One panel a series, and one legend for all, under its title; none without a title."""
    columns = 2 if len(names) == 4 else min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    with mpl.rc_context(plots.style(ink)):
        figure = Figure(
            figsize=(PANEL[0] * columns + (1.1 if legend else 0), PANEL[1] * rows),
            layout="constrained",
        )
        grid = figure.subplots(rows, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place < len(names):
                draw(ink, axes, names[place])
            else:
                axes.set_axis_off()
        if legend:
            found = {
                label: handle
                for axes in grid.flat
                for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
            figure.legend(
                found.values(),
                found,
                fontsize=8,
                loc="outside right upper",
                title=legend,
                title_fontsize=8,
            )
        return figure


def _frame(axes: Axes, title: str, *, x: str, y: str, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=9, fontweight="bold")
    axes.set_xlabel(UNITS.get(x, x), fontsize=8)
    axes.set_ylabel(UNITS.get(y, y), fontsize=8)
    axes.tick_params(labelsize=8)
    if y == "loss" and min(values) > 0:
        axes.set_yscale("log")
        narrow = max(values) / min(values) < NARROW
        axes.yaxis.set_major_locator(LogLocator(subs=range(1, 10) if narrow else (1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="both")


def _handle(axes: Axes, label: str, **options: Any) -> None:
    """An entry of the legend that no size's own dots explain."""
    axes.plot([], [], label=label, **options)


def _sizes(points: Sequence[Json]) -> dict[float, tuple[float, float, float, float]]:
    """A colour for each size, from dark to light, told apart without hue too."""
    sizes = sorted({point["N"] for point in points if "N" in point})
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, max(2, len(sizes))))
    return {size: tuple(shade) for size, shade in zip(sizes, shades, strict=False)}


def _label(size: float) -> str:
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:.3g} {letter}"
    return f"{size:.0f}"


def _means(points: Sequence[Json], axis: str, y: str) -> tuple[list[float], list[float]]:
    """The mean over seeds at each place of an axis; the amounts of two seeds that differ by
    rounding are one place."""
    by: dict[float, list[float]] = {}
    for point in points:
        by.setdefault(_place(point[axis]), []).append(point[y])
    places = sorted(by)
    return places, [sum(by[place]) / len(by[place]) for place in places]


def _place(value: float) -> float:
    """Where a point is drawn: amounts of data that differ by less than a twentieth, as those of two
    seeds, are one."""
    return float(10 ** (round(math.log10(value) * 50) / 50))


def _chosen(laws: Sequence[Json], series: str, x: list[str], size: float | None) -> Json | None:
    """The law that is drawn: the one whose form the verdict names, or without a verdict the one
    that foretells the largest best."""
    own = [
        law
        for law in laws
        if law["series"] == series and law["x"] == x and law["size"] == size and law["parameters"]
    ]
    named = [law for law in own if law["form"] == law.get("drawn")]
    return named[0] if named else min(own, key=_error_on_largest, default=None)


def _error_on_largest(law: Json) -> float:
    error = law["held_out"]["relative_error"]
    return math.inf if error is None else float(error)


def _curve(axes: Axes, law: Json, colour: Any) -> None:
    if not law.get("curve"):
        return
    curve = law["curve"]
    axes.fill_between(
        curve["x"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0
    )
    axes.plot(curve["x"], curve["y"], color=colour, linewidth=1.3)


def _coin(ink: Palette, axes: Axes, y: str) -> None:
    if y in ("loss", "accuracy"):
        place = COIN_LOSS_NATS if y == "loss" else 0.5
        axes.axhline(
            place, color=ink.muted, linewidth=1, linestyle=(0, (4, 3)), label="a coin flip"
        )


def _over_data(
    laws: Sequence[Json], points: Sequence[Json], y: str, ink: Palette, axes: Axes, name: str
) -> None:
    own = [point for point in points if point["series"] == name]
    for size, colour in _sizes(points).items():
        of_size = [point for point in own if point["N"] == size]
        if not of_size:
            continue
        x, means = _means(of_size, "D", y)
        law = _chosen(laws, name, ["D"], size)
        held = {_place(one["x"][0]) for one in law["held_out"]["predictions"]} if law else set()
        axes.plot(x, means, "o", color=colour, markersize=3.5, label=_label(size))
        open_dots = [(place, mean) for place, mean in zip(x, means, strict=True) if place in held]
        axes.plot(
            [a for a, _ in open_dots],
            [b for _, b in open_dots],
            "o",
            color=colour,
            markerfacecolor="white",
            markersize=3.5,
        )
        if law:
            _curve(axes, law, colour)
    plane = next(
        (
            law
            for law in laws
            if law["series"] == name and law["x"] == ["N", "D"] and "verdict" in law
        ),
        None,
    )
    _frame(
        axes,
        f"{name}: {plane['verdict']}" if plane else name,
        x="D",
        y=y,
        values=[point[y] for point in own],
    )
    _handle(
        axes,
        "foretold",
        color=ink.muted,
        marker="o",
        markerfacecolor="white",
        markersize=3.5,
        linestyle="none",
    )
    _handle(axes, "95 % of the fit", color=ink.muted, alpha=0.3, linewidth=6)
    if y == "accuracy" or (y == "loss" and min(point[y] for point in own) < COIN_LOSS_NATS):
        _coin(ink, axes, y)


def _along(
    axis: str,
    laws: Sequence[Json],
    points: Sequence[Json],
    y: str,
    ink: Palette,
    axes: Axes,
    name: str,
) -> None:
    law = _chosen(laws, name, [axis], None)
    own = [point for point in points if point["series"] == name and axis in point]
    used = law["used"] if law else [[point[axis], point[y]] for point in own]
    held = {one["x"][0] for one in law["held_out"]["predictions"]} if law else set()
    for held_out, face, label in ((False, ink.first, "seen"), (True, "white", "foretold")):
        some = [(x, value) for x, value in used if (x in held) == held_out]
        axes.plot(
            [x for x, _ in some],
            [v for _, v in some],
            "o",
            color=ink.first,
            markerfacecolor=face,
            markersize=4,
            label=label,
        )
    if law:
        _curve(axes, law, ink.first)
    verdict = f": {law['verdict']}" if law and "verdict" in law else ""
    _frame(axes, f"{name}{verdict}", x=axis, y=y, values=[value for _, value in used])
    if y == "accuracy" or (y == "loss" and min(value for _, value in used) < COIN_LOSS_NATS):
        _coin(ink, axes, y)
    axes.legend(fontsize=7)


def _parts(
    laws: Sequence[Json], points: Sequence[Json], y: str, ink: Palette, axes: Axes, name: str
) -> None:
    parts = [
        part
        for part in dict.fromkeys(point["series"] for point in points)
        if part.startswith(f"{name}: ")
    ]
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, max(2, len(parts))))
    values: list[float] = []
    for part, colour, marker in zip(parts, shades, "osD^vP*X" * 9, strict=False):
        law = next((law for law in laws if law["series"] == part and law["x"] == ["N"]), None)
        if law is None:
            continue
        by: dict[float, list[float]] = {}
        for x, value in law["used"]:
            by.setdefault(x, []).append(value)
        means = [sum(by[x]) / len(by[x]) for x in sorted(by)]
        values += means
        word = f", {law['verdict']}" if "verdict" in law else ""
        axes.plot(
            sorted(by),
            means,
            marker=marker,
            color=colour,
            markersize=4,
            linewidth=1.3,
            label=part.split(": ", 1)[1] + word,
        )
    _frame(axes, name, x="N", y=y, values=values or [1.0])
    _coin(ink, axes, y)
    axes.legend(fontsize=6.5)


def _residuals(
    laws: Sequence[Json], points: Sequence[Json], y: str, ink: Palette, axes: Axes, name: str
) -> None:
    law = _chosen(laws, name, ["N", "D"], None)
    if law and law.get("residuals"):
        of_points = list(zip(law["residual_places"], law["residuals"], strict=True))
        for size, colour in _sizes(points).items():
            own = [
                (d, residual)
                for (n, d), residual in of_points
                if n == size and residual is not None
            ]  # None: of a y of 0
            if own:
                axes.plot(
                    [d for d, _ in own],
                    [residual for _, residual in own],
                    "o",
                    color=colour,
                    markersize=3.5,
                    label=_label(size),
                )
    axes.axhline(0, color=ink.muted, linewidth=1)
    axes.set_xscale("log")
    axes.set_title(
        f"{name}: {law['form'] if law else ''}", loc="left", fontsize=9, fontweight="bold"
    )
    axes.set_xlabel(UNITS["D"], fontsize=8)
    axes.set_ylabel(f"ln {y} - ln fit", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="both")


def _isoflop(
    optima: Mapping[str, Json | None], y: str, ink: Palette, axes: Axes, name: str
) -> None:
    found = optima[name] or {}
    budgets = found["budgets_flops"]
    shades = mpl.colormaps["viridis"](np.linspace(0.88, 0.0, max(2, len(budgets))))
    values: list[float] = []
    for place, shade in enumerate(shades[: len(budgets)]):
        sizes, losses = found["curves"][place]["n"], found["curves"][place]["loss"]
        values += losses
        axes.plot(
            sizes,
            losses,
            "o-",
            color=shade,
            markersize=3,
            linewidth=1.2,
            label=f"{budgets[place]:.1e} FLOPs",
        )
        best = found["isoflop"]["optimal_n"][place]
        if best is not None and sizes:
            axes.plot(
                best,
                float(np.interp(math.log(best), np.log(sizes), losses)),
                "s",
                color=shade,
                markersize=6,
                markerfacecolor="none",
            )
    _frame(axes, name, x="N", y=y, values=values or [1.0])
    axes.legend(fontsize=6)


def _frontier(optima: Mapping[str, Json | None], ink: Palette, axes: Axes, name: str) -> None:
    found = optima[name] or {}
    budgets = found["budgets_flops"]
    for approach, label, marker in (
        ("envelope", "1: envelope", "^"),
        ("isoflop", "2: parabolas", "s"),
        ("joint", "3: joint law", "o"),
    ):
        one = found.get(approach)
        if not one or not any(one["optimal_n"]):
            continue
        there = [(c, n) for c, n in zip(budgets, one["optimal_n"], strict=True) if n]
        exponent = f", a = {one['exponent']:.2f}" if one["exponent"] is not None else ""
        colour = {"envelope": ink.second, "isoflop": ink.third, "joint": ink.first}[approach]
        axes.plot(
            [c for c, _ in there],
            [n for _, n in there],
            marker + "-",
            color=colour,
            markersize=4,
            linewidth=1.2,
            label=label + exponent,
        )
        if one.get("optimal_n_intervals"):
            ends = one["optimal_n_intervals"]
            axes.fill_between(
                budgets,
                [low for low, _ in ends],
                [high for _, high in ends],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
    _frame(axes, name, x="C", y="", values=[1.0])
    axes.set_yscale("log")
    axes.set_ylabel("best N, parameters without embeddings", fontsize=8)
    axes.legend(fontsize=7)
