"""Figures as SVG text whose colours are CSS variables, so that one page serves light and dark."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from worldpm.stats.uncertainty import Interval


class Palette(NamedTuple):
    """The colours of a figure; those of data can be told apart by the colour-blind."""

    ink: str
    muted: str
    grid: str
    first: str
    second: str
    third: str
    fourth: str


PAGE = Palette(*(f"#{n:02x}{n:02x}{n:02x}" for n in range(1, 8)))
"""Stand-ins that matplotlib can draw with; in an SVG each becomes the CSS variable of its name."""
PAPER = Palette("#1a1a1a", "#5c5c5c", "#d0d0d0", "#1f6fc4", "#d9661f", "#4c8f3f", "#9357b8")
INK, MUTED, GRID, FIRST, SECOND, THIRD, FOURTH = PAGE
PALETTE = (FIRST, SECOND, THIRD, FOURTH)


def style(palette: Palette) -> dict[Any, Any]:
    """What matplotlib is to draw with."""
    return {
        "svg.fonttype": "none",
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


STYLE = style(PAGE) | {"text.parse_math": False}  # a name may hold any sign


class Series(NamedTuple):
    """Points of one line."""

    x: Sequence[float]
    y: Sequence[float]


class Bin(NamedTuple):
    """One bin of a binned mean."""

    label: str
    mean: float
    interval: Interval
    pairs: int


class Dot(NamedTuple):
    """One row of an accuracy figure."""

    label: str
    accuracy: float
    interval: Sequence[float] | None
    nulls: dict[str, float | None]
    ceiling: float | None = None


def curves(
    title: str,
    train: Series,
    validation: Series,
    *,
    unit: str,
    chance: float,
    marks: Sequence[float] = (),
) -> str:
    """Training (thin, smoothed) and validation (dots) over optimizer steps, with the line of a coin
    flip and marked steps."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 3.0, title, x="optimizer step", y=unit)
        axes.plot(*_smooth(train), color=FIRST, linewidth=1.6, label="training, smoothed")
        axes.plot(
            validation.x,
            validation.y,
            color=SECOND,
            marker="o",
            markersize=5,
            linewidth=1.6,
            label="validation",
        )
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="coin flip")
        for place, mark in enumerate(marks):
            axes.axvline(
                mark, color=FOURTH, linewidth=1.2, label="sudden drop" if place == 0 else None
            )
        axes.grid(axis="y")
        axes.legend(fontsize=9)
        return svg(figure)


def _smooth(series: Series) -> Series:
    """A running mean over about a twentieth of the run."""
    width = max(1, len(series.y) // 20)
    y = [
        sum(series.y[max(0, i - width + 1) : i + 1]) / len(series.y[max(0, i - width + 1) : i + 1])
        for i in range(len(series.y))
    ]
    return Series(series.x, y)


def accuracy_dots(title: str, dots: Sequence[Dot], *, width: float) -> str:
    """Accuracy with its interval per row; null baselines as open marks, the ceiling as a bar where
    it is known. Width in inches."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(width, 1.5 + 0.36 * len(dots), title, x="accuracy", y="")
        marks = {
            "longer": ("s", THIRD),
            "shorter": ("v", THIRD),
            "earlier": ("D", FOURTH),
            "first": ("P", SECOND),
            "TF-IDF": ("^", SECOND),
        }
        for row, dot in enumerate(reversed(dots)):
            if dot.interval is not None:
                axes.plot(
                    dot.interval, [row, row], color=FIRST, linewidth=2.2, solid_capstyle="round"
                )
            axes.plot(
                dot.accuracy,
                row,
                "o",
                color=FIRST,
                markersize=8,
                label="model, 95 % interval" if row == 0 else None,
            )
            for name, (marker, color) in marks.items():
                if (value := dot.nulls.get(name)) is not None:
                    axes.plot(
                        value,
                        row,
                        marker,
                        color=color,
                        markerfacecolor="none",
                        markersize=6,
                        label=_once(axes, name),
                    )
            if dot.ceiling is not None:
                axes.plot(
                    [dot.ceiling] * 2,
                    [row - 0.3, row + 0.3],
                    color=INK,
                    linewidth=2,
                    label=_once(axes, "ceiling"),
                )
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="coin")
        axes.set_yticks(range(len(dots)), [dot.label for dot in reversed(dots)])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(-0.6, len(dots) - 0.4)
        axes.grid(axis="x")
        figure.legend(fontsize=9, ncols=3 if width < 6 else 7, loc="outside lower center")
        return svg(figure)


def _once(axes: Axes, name: str) -> str | None:
    return None if name in {line.get_label() for line in axes.lines} else name


def histogram(title: str, chosen: Sequence[float], rejected: Sequence[float]) -> str:
    """Rewards of the chosen and of the rejected responses, in the same bins."""
    low, high = min(*chosen, *rejected), max(*chosen, *rejected)
    edges = [low + (high - low or 1.0) * i / 40 for i in range(41)]
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 3.0, title, x="reward (logits)", y="pairs")
        for values, color, label in ((rejected, SECOND, "rejected"), (chosen, FIRST, "chosen")):
            axes.hist(values, bins=edges, color=color, alpha=0.45, label=label)
            axes.hist(values, bins=edges, histtype="step", color=color, linewidth=1.4)
        axes.grid(axis="y")
        axes.legend(fontsize=9)
        return svg(figure)


def bars(title: str, counts: Mapping[str, float], *, x: str, y: str) -> str:
    """One bar for each name, in the order given."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 3.0, title, x=x, y=y)
        axes.bar(range(len(counts)), list(counts.values()), color=FIRST, alpha=0.85, width=0.8)
        axes.set_xticks(
            range(len(counts)), list(counts), fontsize=8, rotation=30 if len(counts) > 10 else 0
        )
        axes.grid(axis="y")
        return svg(figure)


def binned(title: str, bins: Sequence[Bin], *, x: str, y: str, chance: float) -> str:
    """A mean per bin with its 95 % interval and number of pairs."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 3.0, title, x=x, y=y)
        for place, one in enumerate(bins):
            axes.plot(
                [place, place], one.interval, color=FIRST, linewidth=2.2, solid_capstyle="round"
            )
        axes.plot(
            range(len(bins)),
            [one.mean for one in bins],
            "o-",
            color=FIRST,
            markersize=6,
            linewidth=1,
        )
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xticks(
            range(len(bins)), [f"{one.label}\n{one.pairs} pairs" for one in bins], fontsize=8
        )
        axes.set_xlim(-0.5, len(bins) - 0.5)
        axes.grid(axis="y")
        return svg(figure)


def lines(
    title: str,
    x_values: Sequence[object],
    series: Mapping[str, Sequence[float]],
    *,
    y: str,
    x: str = "",
) -> str:
    """One line for each name over the same places, which are numbers or names."""
    numeric = all(isinstance(value, int | float) for value in x_values)
    places = (
        [float(str(value)) for value in x_values]
        if numeric
        else list(map(float, range(len(x_values))))
    )
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 3.0, title, x=x, y=y)
        for number, (name, values) in enumerate(series.items()):
            color, style = (
                PALETTE[number % len(PALETTE)],
                ("-", "--", ":")[number // len(PALETTE) % 3],
            )
            axes.plot(
                places,
                values,
                style,
                color=color,
                marker="o" if len(places) < 20 else None,
                markersize=4,
                linewidth=1.6,
                label=name,
            )
        if numeric:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            axes.set_xticks(
                places, [str(value) for value in x_values], rotation=20, ha="right", fontsize=8
            )
        axes.grid(axis="y")
        axes.legend(fontsize=9)
        return svg(figure)


def dumbbells(title: str, pairs: Mapping[str, tuple[float, float]]) -> str:
    """Label (open) and prediction (full) for each feature, between -1 and 1."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 1.3 + 0.32 * len(pairs), title, x="phi", y="")
        for row, (label, prediction) in enumerate(reversed(list(pairs.values()))):
            axes.plot([label, prediction], [row, row], color=GRID, linewidth=2)
            axes.plot(
                label,
                row,
                "o",
                color=THIRD,
                markerfacecolor="none",
                markersize=8,
                label="labels" if row == 0 else None,
            )
            axes.plot(
                prediction,
                row,
                "o",
                color=FIRST,
                markersize=8,
                label="predictions" if row == 0 else None,
            )
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(pairs)), list(pairs)[::-1])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(-0.6, max(1, len(pairs)) - 0.4)
        axes.grid(axis="x")
        if pairs:
            figure.legend(fontsize=9, ncols=2, loc="outside lower center")
        return svg(figure)


def heat_map(
    title: str,
    names: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    *,
    rows: str,
    columns: str,
) -> str:
    """Accuracy from 0 to 1 in each cell, written there too; a cell without pairs is empty."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 3.0, title, x=columns, y=rows)
        for i, row in enumerate(cells):
            for j, value in enumerate(row):
                if value is not None:
                    color = FIRST if value >= 0.5 else SECOND
                    axes.add_patch(
                        Rectangle(
                            (j - 0.48, i - 0.48),
                            0.96,
                            0.96,
                            color=color,
                            alpha=0.12 + 0.75 * abs(value - 0.5) * 2,
                            linewidth=0,
                        )
                    )
                axes.text(
                    j,
                    i,
                    "-" if value is None else f"{value:.3f}",
                    ha="center",
                    va="center",
                    color=INK,
                )
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xticks(range(len(names)), list(names))
        axes.set_yticks(range(len(names)), list(names))
        axes.tick_params(length=0)
        return svg(figure)


def reliability(title: str, bins: Sequence[tuple[float, float, int]]) -> str:
    """Said against right for each bin; the area of a dot is its number of pairs."""
    most = max(pairs for *_, pairs in bins)
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 3.0, title, x="preference probability", y="share right")
        axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(
            [said for said, *_ in bins], [right for _, right, _ in bins], color=FIRST, linewidth=1
        )
        for said, right, pairs in bins:
            axes.plot(
                said, right, "o", color=FIRST, markersize=3 + 9 * (pairs / most) ** 0.5, alpha=0.8
            )
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(min(0.45, *(right - 0.03 for _, right, _ in bins)), 1.03)
        axes.grid(axis="both")
        return svg(figure)


def _axes(width: float, height: float, title: str, *, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales with its box."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawn = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    drawn = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', drawn, count=1)
    for name, stand_in in PAGE._asdict().items():
        drawn = drawn.replace(stand_in, f"var(--{name})")
    return drawn
