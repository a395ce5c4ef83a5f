"""Figures as SVG text whose colours are CSS variables, so that one page serves light and dark."""

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldpm.field.uncertainty import Interval

INK, MUTED, GRID, FIRST, SECOND, THIRD, FOURTH = (f"#{n:02x}{n:02x}{n:02x}" for n in range(1, 8))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", FIRST: "first", SECOND: "second", THIRD: "third", FOURTH: "fourth"}
"""Stand-ins that matplotlib can draw with; each becomes the CSS variable of that name."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "worldpm",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}


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


def curves(title: str, train: Series, validation: Series, *, unit: str, chance: float) -> str:
    """Training (thin, smoothed) and validation (dots) over optimizer steps, with the line of a coin flip."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 3.0, title, x="optimizer step", y=unit)
        axes.plot(*_smooth(train), color=FIRST, linewidth=1.6, label="training, smoothed")
        axes.plot(validation.x, validation.y, color=SECOND, marker="o", markersize=5, linewidth=1.6, label="validation")
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="coin flip")
        axes.grid(axis="y")
        axes.legend(fontsize=9)
        return _svg(figure)


def _smooth(series: Series) -> Series:
    """A running mean over about a twentieth of the run."""
    width = max(1, len(series.y) // 20)
    y = [sum(series.y[max(0, i - width + 1) : i + 1]) / len(series.y[max(0, i - width + 1) : i + 1]) for i in range(len(series.y))]
    return Series(series.x, y)


def accuracy_dots(title: str, dots: Sequence[Dot], *, width: float) -> str:
    """Accuracy with its interval per row; null baselines as open marks, the ceiling as a bar where it is known. Width in inches."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(width, 1.5 + 0.36 * len(dots), title, x="accuracy", y="")
        marks = {"longer": ("s", THIRD), "earlier": ("D", FOURTH), "TF-IDF": ("^", SECOND)}
        for row, dot in enumerate(reversed(dots)):
            if dot.interval is not None:
                axes.plot(dot.interval, [row, row], color=FIRST, linewidth=2.2, solid_capstyle="round")
            axes.plot(dot.accuracy, row, "o", color=FIRST, markersize=8, label="model, 95 % interval" if row == 0 else None)
            for name, (marker, color) in marks.items():
                if (value := dot.nulls.get(name)) is not None:
                    axes.plot(value, row, marker, color=color, markerfacecolor="none", markersize=6, label=_once(axes, name))
            if dot.ceiling is not None:
                axes.plot([dot.ceiling] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=2, label=_once(axes, "ceiling"))
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="coin")
        axes.set_yticks(range(len(dots)), [dot.label for dot in reversed(dots)])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(-0.6, len(dots) - 0.4)
        axes.grid(axis="x")
        figure.legend(fontsize=9, ncols=3 if width < 6 else 6, loc="outside lower center")
        return _svg(figure)


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
        return _svg(figure)


def binned(title: str, bins: Sequence[Bin], *, x: str, y: str, chance: float) -> str:
    """A mean per bin with its 95 % interval and number of pairs."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.2, 3.0, title, x=x, y=y)
        for place, one in enumerate(bins):
            axes.plot([place, place], one.interval, color=FIRST, linewidth=2.2, solid_capstyle="round")
        axes.plot(range(len(bins)), [one.mean for one in bins], "o-", color=FIRST, markersize=6, linewidth=1)
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xticks(range(len(bins)), [f"{one.label}\n{one.pairs} pairs" for one in bins], fontsize=8)
        axes.set_xlim(-0.5, len(bins) - 0.5)
        axes.grid(axis="y")
        return _svg(figure)


def _axes(width: float, height: float, title: str, *, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales with its box."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1)
    for stand_in, name in VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg
