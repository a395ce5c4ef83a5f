"""Figures as SVG text whose colours are CSS variables, so that one page serves light and dark."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from worldpm.stats.uncertainty import Interval


class Palette(NamedTuple):
    """The colours of a figure, as `#rrggbb`; colour-blind readers can distinguish those of data."""

    ink: str
    """Titles and labels of rows."""
    muted: str
    """Axis labels and reference lines."""
    grid: str
    """Grid lines and frames."""
    first: str
    """Data: the model, or the first series."""
    second: str
    """Data: the second series."""
    third: str
    """Data: the third series."""
    fourth: str
    """Data: the fourth series."""
    fifth: str
    sixth: str
    seventh: str
    eighth: str

    @property
    def series(self) -> tuple[str, ...]:
        """The colours of data, in the order of their use."""
        return self[3:]


# #010101, #020202, ...: colours that no figure uses otherwise, so that `svg` can replace them.
PAGE = Palette(*(f"#{n:02x}{n:02x}{n:02x}" for n in range(1, 12)))
"""Stand-ins that matplotlib can draw with; in an SVG each becomes the CSS variable of its name."""
PAPER = Palette(
    *("#1a1a1a", "#5c5c5c", "#d0d0d0"),
    *("#1f6fc4", "#d9661f", "#4c8f3f", "#9357b8", "#b8336a", "#1b8a8f", "#8a6d1f", "#6b7076"),
)

WIDTH_INCHES, HEIGHT_INCHES = 5.2, 3.0
"""Size of a figure that takes half a page's width."""
WIDE_INCHES = 9.0
"""Width of a figure that takes a whole page's width."""
NARROW_INCHES = 6.0
"""Narrower figures have a legend of three columns."""
DASHED = (0, (4, 3))
"""Dashes of 4 and gaps of 3 line widths, for reference lines."""
LINE_STYLES = ("-", "--", ":")
"""Styles that distinguish series of the same colour."""
MODEL_MARKS = ("o", "s", "^", "D", "v", "P", "X")
MOST_MARKED_POINTS = 20
"""Lines with fewer points have a mark at each."""
NULL_MARKS = {
    "longer": ("s", "third"),
    "shorter": ("v", "third"),
    "earlier": ("D", "fourth"),
    "first": ("P", "second"),
    "TF-IDF": ("^", "second"),
}
"""Mark of each null baseline, and the name of its colour in a palette."""
PNG_DPI = 200
LARGEST_SCALE = 1.6
"""Figures on a page are at most this much larger than in print."""


def style(palette: Palette) -> dict[Any, Any]:
    """Settings of matplotlib for a palette."""
    return {
        # Text stays text: it can be searched, and has the page's font.
        "svg.fonttype": "none",
        # A fixed salt makes the ids of SVG elements, and so the file, the same in every run.
        "svg.hashsalt": "worldpm",
        "font.size": 10,
        "text.color": palette.ink,
        "axes.edgecolor": palette.grid,
        "axes.labelcolor": palette.muted,
        "axes.titlecolor": palette.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "grid.color": palette.grid,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "legend.frameon": False,
    }


def plain(palette: Palette) -> dict[Any, Any]:
    """The settings for texts without formulas: a name of a file or subset may contain a dollar
    sign."""
    return style(palette) | {"text.parse_math": False}


@dataclass(frozen=True)
class Drawing:
    """A figure for the page and for paper."""

    draw: Callable[[Palette], Figure]
    """Draws the figure in the colours of a palette."""

    @property
    def svg(self) -> str:
        """The figure as an `<svg>` element that scales with its box and has the page's colours."""
        document = self._saved("svg", PAGE, {"Date": None, "Creator": None}).decode()
        # Inside HTML an element has no XML declaration. It scales only without a fixed size, up to
        # LARGEST_SCALE.
        element = document[document.index("<svg") :]
        points = re.search(r'width="([\d.]+)pt"', element)
        widest = float(points[1] if points else 0) * LARGEST_SCALE
        attributes = f'role="img" style="max-width: {widest:.0f}pt"'
        element = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', attributes, element, count=1)
        for name, stand_in in PAGE._asdict().items():
            element = element.replace(stand_in, f"var(--{name})")
        return element

    def png(self, description: str | None = None) -> bytes:
        """The figure as a PNG on white, whose description is for readers of the file."""
        return self._saved("png", PAPER, {"Software": None, "Description": description})

    @property
    def figure(self) -> Figure:
        """The figure on white, to change with matplotlib."""
        return self.draw(PAPER)

    def _repr_png_(self) -> bytes:
        return self.png()

    def files(self, name: str) -> dict[str, bytes]:
        """The figure as SVG and PNG on white, by the names of the files."""
        svg = self._saved("svg", PAPER, {"Date": None, "Creator": None})
        return {f"{name}.svg": svg, f"{name}.png": self.png()}

    def _saved(self, kind: str, palette: Palette, metadata: Mapping[str, str | None]) -> bytes:
        """The content of a file. Without dates and versions it is the same in every run."""
        figure, buffer = self.draw(palette), io.BytesIO()
        facecolor = "none" if palette is PAGE else "white"
        # Set the style again, because matplotlib writes the texts of an SVG when it saves it.
        with mpl.rc_context(style(palette)):
            figure.savefig(
                buffer, format=kind, dpi=PNG_DPI, facecolor=facecolor, metadata={**metadata}
            )
        return buffer.getvalue()


class Series(NamedTuple):
    """Points of one line."""

    x: Sequence[float]
    """Ascending."""
    y: Sequence[float]
    """As many values as x has."""


class Bin(NamedTuple):
    """One bin of a binned mean."""

    label: str
    """Range of the bin, below the axis."""
    mean: float
    """Height of the dot."""
    interval: Interval
    """95 % interval of the mean; NaN ends are not drawn."""
    pairs: int
    """Number of pairs, below the label."""


class Dot(NamedTuple):
    """One row of an accuracy figure."""

    label: str
    """Name of the row."""
    accuracy: float
    """0 to 1."""
    interval: Sequence[float] | None
    """Low and high end of 95 %; None draws no bar."""
    nulls: Mapping[str, float | None]
    """Accuracies of null baselines by name, as in NULL_MARKS; None is not drawn."""
    ceiling: float | None = None
    """Accuracy of a perfect judge; None draws no ceiling."""


class ReliabilityDot(NamedTuple):
    """One bin of a reliability figure."""

    predicted: float
    """Mean predicted probability, 0.5 to 1."""
    right: float
    """Share of pairs that were right, 0 to 1."""
    pairs: int
    """Number of pairs."""


def curves(
    title: str,
    train: Series,
    validation: Series,
    *,
    unit: str,
    chance: float,
    marks: Sequence[float] = (),
) -> Drawing:
    """Training (thin, smoothed) and validation (dots) over optimizer steps, with a line for a coin
    flip and marked steps."""

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure, axes = _axes(WIDTH_INCHES, HEIGHT_INCHES, title, x="optimizer step", y=unit)
            axes.plot(
                *_smooth(train), color=palette.first, linewidth=1.6, label="training, smoothed"
            )
            axes.plot(
                validation.x,
                validation.y,
                color=palette.second,
                marker="o",
                markersize=5,
                linewidth=1.6,
                label="validation",
            )
            axes.axhline(
                chance, color=palette.muted, linewidth=1, linestyle=DASHED, label="coin flip"
            )

            # Only the first mark has a label: the legend would repeat it for each.
            for index, mark in enumerate(marks):
                label = "sudden drop" if index == 0 else None
                axes.axvline(mark, color=palette.fourth, linewidth=1.2, label=label)

            axes.grid(axis="y")
            axes.legend(fontsize=9)
            return figure

    return Drawing(draw)


def _smooth(series: Series) -> Series:
    """A running mean of the steps up to each point, over about a twentieth of the run."""
    width = max(1, len(series.y) // 20)
    means = []

    for end in range(1, len(series.y) + 1):
        window = series.y[max(0, end - width) : end]
        means.append(sum(window) / len(window))

    return Series(series.x, means)


def accuracy_dots(panels: Mapping[str, Sequence[Dot]], *, width: float) -> Drawing:
    """Accuracy with its interval per row; null baselines as open marks, the ceiling as a bar if
    there is one. One panel per title, side by side. Width in inches."""
    most_rows = max(map(len, panels.values()))

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure = Figure(figsize=(width, 1.5 + 0.36 * most_rows), layout="constrained")
            grid = figure.subplots(1, len(panels), squeeze=False)
            for axes, (title, dots) in zip(grid.flat, panels.items(), strict=True):
                axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
                axes.set_xlabel("accuracy")
                _draw_accuracies(axes, dots, palette)

            handles, labels = grid.flat[0].get_legend_handles_labels()
            columns = 3 if width < NARROW_INCHES else 7
            figure.legend(handles, labels, fontsize=9, ncols=columns, loc="outside lower center")
            return figure

    return Drawing(draw)


def model_dots(title: str, rows: Mapping[str, Mapping[str, Dot]], *, x: str) -> Drawing:
    """A value with its interval for each model in each row; a model has the same colour and mark in
    all rows. Models are the keys of the inner mappings."""
    models = list(dict.fromkeys(model for dots in rows.values() for model in dots))
    step = 0.8 / max(1, len(models))
    height = 1.2 + len(rows) * max(0.36, 0.17 * len(models)) + 0.18 * -(-len(models) // 3)

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure, axes = _axes(WIDE_INCHES, height, title, x=x, y="")
            # Rows count upwards from the axis, and the first row belongs on top.
            for row, dots in enumerate(reversed(list(rows.values()))):
                for index, model in enumerate(models):
                    if model in dots:
                        height_of = row + 0.4 - step * (index + 0.5)
                        _model_dot(axes, height_of, dots[model], index, palette)

            for index, model in enumerate(models):
                color, marker = _look(index, palette)
                axes.plot([], [], marker, color=color, label=_in_legend(model))
            axes.set_yticks(range(len(rows)), list(rows)[::-1])
            axes.tick_params(axis="y", length=0, labelcolor=palette.ink)
            axes.set_ylim(-0.6, len(rows) - 0.4)
            axes.grid(axis="x")
            figure.legend(fontsize=8, ncols=3, loc="outside lower center")
            return figure

    return Drawing(draw)


def _model_dot(axes: Axes, row: float, dot: Dot, index: int, palette: Palette) -> None:
    color, marker = _look(index, palette)
    if dot.interval is not None:
        axes.plot(dot.interval, [row, row], color=color, linewidth=1.8, solid_capstyle="round")
    axes.plot(dot.accuracy, row, marker, color=color, markersize=6)


def _in_legend(name: str) -> str:
    """A name as a label: matplotlib leaves labels that start with `_` out of legends."""
    return f" {name}" if name.startswith("_") else name


def _look(index: int, palette: Palette) -> tuple[str, str]:
    """Colour and mark of a model: beyond eight models the colours repeat, with other marks."""
    series = palette.series
    return series[index % len(series)], MODEL_MARKS[index // len(series) % len(MODEL_MARKS)]


def _draw_accuracies(axes: Axes, dots: Sequence[Dot], palette: Palette) -> None:
    # Rows count upwards from the axis, and the first dot belongs on top.
    for row, dot in enumerate(reversed(dots)):
        _accuracy_row(axes, row, dot, palette)

    axes.axvline(0.5, color=palette.muted, linewidth=1, linestyle=DASHED, label="coin")
    axes.set_yticks(range(len(dots)), [dot.label for dot in reversed(dots)])
    axes.tick_params(axis="y", length=0, labelcolor=palette.ink)
    axes.set_ylim(-0.6, len(dots) - 0.4)
    axes.grid(axis="x")


def _accuracy_row(axes: Axes, row: int, dot: Dot, palette: Palette) -> None:
    color = palette.first
    if dot.interval is not None:
        axes.plot(dot.interval, [row, row], color=color, linewidth=2.2, solid_capstyle="round")

    label = "model, 95 % interval" if row == 0 else None
    axes.plot(dot.accuracy, row, "o", color=color, markersize=8, label=label)

    for name, (marker, color_name) in NULL_MARKS.items():
        accuracy = dot.nulls.get(name)
        if accuracy is not None:
            axes.plot(
                accuracy,
                row,
                marker,
                color=getattr(palette, color_name),
                markerfacecolor="none",
                markersize=6,
                label=_new_label(axes, name),
            )

    if dot.ceiling is not None:
        ends, heights = [dot.ceiling] * 2, [row - 0.3, row + 0.3]
        axes.plot(ends, heights, color=palette.ink, linewidth=2, label=_new_label(axes, "ceiling"))


def _new_label(axes: Axes, name: str) -> str | None:
    """A label for the legend; None if a line already has it."""
    return None if name in {line.get_label() for line in axes.lines} else name


def histogram(title: str, chosen: Sequence[float], rejected: Sequence[float]) -> Drawing:
    """Rewards of the chosen and of the rejected responses, in the same bins."""
    low, high = min(*chosen, *rejected), max(*chosen, *rejected)
    # Rewards that are all equal still need bins of some width.
    edges = [low + (high - low or 1.0) * i / 40 for i in range(41)]

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure, axes = _axes(WIDTH_INCHES, HEIGHT_INCHES, title, x="reward (logits)", y="pairs")
            for values, color, label in (
                (rejected, palette.second, "rejected"),
                (chosen, palette.first, "chosen"),
            ):
                axes.hist(values, bins=edges, color=color, alpha=0.45, label=label)
                axes.hist(values, bins=edges, histtype="step", color=color, linewidth=1.4)

            axes.grid(axis="y")
            axes.legend(fontsize=9)
            return figure

    return Drawing(draw)


def bars(title: str, counts: Mapping[str, float], *, x: str, y: str) -> Drawing:
    """One bar for each name, in the order given."""

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure, axes = _axes(WIDTH_INCHES, HEIGHT_INCHES, title, x=x, y=y)
            axes.bar(
                range(len(counts)),
                list(counts.values()),
                color=palette.first,
                alpha=0.85,
                width=0.8,
            )

            # More than ten names side by side would overlap.
            rotation = 30 if len(counts) > 10 else 0
            axes.set_xticks(range(len(counts)), list(counts), fontsize=8, rotation=rotation)
            axes.grid(axis="y")
            return figure

    return Drawing(draw)


def binned(title: str, bins: Sequence[Bin], *, x: str, y: str, chance: float) -> Drawing:
    """A mean per bin with its 95 % interval and number of pairs."""

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure, axes = _axes(WIDTH_INCHES, HEIGHT_INCHES, title, x=x, y=y)
            for index, bin_ in enumerate(bins):
                axes.plot(
                    [index, index],
                    bin_.interval,
                    color=palette.first,
                    linewidth=2.2,
                    solid_capstyle="round",
                )
            means = [bin_.mean for bin_ in bins]
            axes.plot(range(len(bins)), means, "o-", color=palette.first, markersize=6, linewidth=1)

            axes.axhline(chance, color=palette.muted, linewidth=1, linestyle=DASHED)
            labels = [f"{bin_.label}\n{bin_.pairs} pairs" for bin_ in bins]
            axes.set_xticks(range(len(bins)), labels, fontsize=8)
            axes.set_xlim(-0.5, len(bins) - 0.5)
            axes.grid(axis="y")
            return figure

    return Drawing(draw)


def lines(
    title: str,
    x_values: Sequence[object],
    series: Mapping[str, Sequence[float]],
    *,
    y: str,
    x: str = "",
) -> Drawing:
    """One line for each name over the same x values, which are numbers (on a logarithmic axis) or
    names."""
    numeric = all(isinstance(value, int | float) for value in x_values)
    numbers = [float(str(value)) for value in x_values] if numeric else range(len(x_values))
    x_floats = [float(number) for number in numbers]
    marker = "o" if len(x_floats) < MOST_MARKED_POINTS else None

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure, axes = _axes(WIDTH_INCHES, HEIGHT_INCHES, title, x=x, y=y)
            for index, (name, values) in enumerate(series.items()):
                # Beyond eight series the colours repeat, and the dashes change.
                axes.plot(
                    x_floats,
                    values,
                    LINE_STYLES[index // len(palette.series) % len(LINE_STYLES)],
                    color=palette.series[index % len(palette.series)],
                    marker=marker,
                    markersize=4,
                    linewidth=1.6,
                    label=_in_legend(name),
                )

            if numeric:
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter("{x:g}")
            else:
                names = [str(value) for value in x_values]
                axes.set_xticks(x_floats, names, rotation=20, ha="right", fontsize=8)
            axes.grid(axis="y")
            axes.legend(fontsize=9)
            return figure

    return Drawing(draw)


def dumbbells(title: str, pairs: Mapping[str, tuple[float, float]]) -> Drawing:
    """Label (open) and prediction (full) for each feature, between -1 and 1."""

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure, axes = _axes(WIDTH_INCHES, 1.3 + 0.32 * len(pairs), title, x="phi", y="")

            # Rows count upwards from the axis, and the first feature belongs on top.
            for row, (label, prediction) in enumerate(reversed(list(pairs.values()))):
                axes.plot([label, prediction], [row, row], color=palette.grid, linewidth=2)
                axes.plot(
                    label,
                    row,
                    "o",
                    color=palette.third,
                    markerfacecolor="none",
                    markersize=8,
                    label="labels" if row == 0 else None,
                )
                axes.plot(
                    prediction,
                    row,
                    "o",
                    color=palette.first,
                    markersize=8,
                    label="predictions" if row == 0 else None,
                )

            axes.axvline(0, color=palette.muted, linewidth=1, linestyle=DASHED)
            axes.set_yticks(range(len(pairs)), list(pairs)[::-1])
            axes.tick_params(axis="y", length=0, labelcolor=palette.ink)
            axes.set_ylim(-0.6, max(1, len(pairs)) - 0.4)
            axes.grid(axis="x")
            # matplotlib warns about a legend without entries.
            if pairs:
                figure.legend(fontsize=9, ncols=2, loc="outside lower center")
            return figure

    return Drawing(draw)


def heat_map(
    title: str,
    names: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    *,
    rows: str,
    columns: str,
) -> Drawing:
    """Accuracy from 0 to 1 in each cell, as colour and number; a cell without pairs is empty."""

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure, axes = _axes(WIDTH_INCHES, HEIGHT_INCHES, title, x=columns, y=rows)
            for row, values in enumerate(cells):
                for column, value in enumerate(values):
                    if value is not None:
                        axes.add_patch(_cell(row, column, value, palette))
                    text = "-" if value is None else f"{value:.3f}"
                    axes.text(column, row, text, ha="center", va="center", color=palette.ink)

            axes.set_xlim(-0.5, len(names) - 0.5)
            # From high to low: the first row belongs on top.
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_xticks(range(len(names)), list(names))
            axes.set_yticks(range(len(names)), list(names))
            axes.tick_params(length=0)
            return figure

    return Drawing(draw)


def _cell(row: int, column: int, accuracy: float, palette: Palette) -> Rectangle:
    """A square whose colour shows the side of 0.5, and whose opacity the distance from it."""
    return Rectangle(
        (column - 0.48, row - 0.48),
        0.96,
        0.96,
        color=palette.first if accuracy >= 0.5 else palette.second,
        alpha=0.12 + 0.75 * abs(accuracy - 0.5) * 2,
        linewidth=0,
    )


def reliability(title: str, bins: Sequence[tuple[float, float, int]]) -> Drawing:
    """Predicted probability against the share right, for bins of (predicted, right, pairs); the
    area of a dot is its number of pairs."""
    dots = [ReliabilityDot(*bin_) for bin_ in bins]
    predicted, right = [dot.predicted for dot in dots], [dot.right for dot in dots]
    most_pairs = max(dot.pairs for dot in dots)

    def draw(palette: Palette) -> Figure:
        with mpl.rc_context(plain(palette)):
            figure, axes = _axes(
                WIDTH_INCHES, HEIGHT_INCHES, title, x="preference probability", y="share right"
            )
            axes.plot([0.5, 1], [0.5, 1], color=palette.muted, linewidth=1, linestyle=DASHED)
            axes.plot(predicted, right, color=palette.first, linewidth=1)

            for dot in dots:
                # A marker's size is its diameter, and the area grows with its square.
                size = 3 + 9 * (dot.pairs / most_pairs) ** 0.5
                axes.plot(
                    dot.predicted, dot.right, "o", color=palette.first, markersize=size, alpha=0.8
                )

            axes.set_xlim(0.48, 1.02)
            axes.set_ylim(min(0.45, *(share - 0.03 for share in right)), 1.03)
            axes.grid(axis="both")
            return figure

    return Drawing(draw)


def _axes(width: float, height: float, title: str, *, x: str, y: str) -> tuple[Figure, Axes]:
    # A `Figure` without pyplot has no global state and needs no display.
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes
