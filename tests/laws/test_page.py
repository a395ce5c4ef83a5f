"""The page and the figures of laws."""

import csv
import re
from itertools import pairwise, product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.conftest import run
from worldpm import plots
from worldpm.laws.figures import TICK_POINTS, LogTicks, _draw_frame
from worldpm.laws.law import XY
from worldpm.laws.panels import Line, Panel


def framed(dots: list[XY]) -> Figure:
    """A figure of one panel with two logarithmic axes."""
    marks = [Line(dots=dots, colour="first")]
    panel = Panel(title="", x_label="x", y_label="y", marks=marks, logarithmic_y=True)
    with mpl.rc_context(plots.style(plots.PAPER)):
        figure = Figure(figsize=(3.4, 2.7), layout="constrained")
        axes = figure.subplots()
        axes.plot([x for x, _ in dots], [y for _, y in dots])
        _draw_frame(axes, panel)
        figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("low", [0.0123, 0.5, 7.0, 1e4, 3.3e9])
@pytest.mark.parametrize("ratio", [1.01, 1.2, 2.0, 9.0, 60.0, 1e3, 1e8, 1e30])
def test_labels_of_logarithmic_axes_never_overlap(low: float, ratio: float) -> None:
    figure = framed([XY(low, low), XY(low * ratio, low * ratio)])
    (axes,) = figure.axes
    for axis, along in ((axes.xaxis, 0), (axes.yaxis, 1)):
        shown = sorted(axis.get_view_interval())
        labels = [
            label
            for label, tick in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
            if shown[0] <= tick <= shown[1]
        ]
        assert len(labels) >= 2, (low, ratio)
        assert all(label.get_text() for label in labels)
        boxes = [label.get_window_extent().intervaly for label in labels]
        if along == 0:
            boxes = [label.get_window_extent().intervalx for label in labels]
        boxes.sort(key=lambda box: box[0])
        assert all(first[1] < second[0] for first, second in pairwise(boxes)), (low, ratio)


def test_a_range_without_logarithms_has_no_ticks() -> None:
    (axes,) = framed([XY(1, 1), XY(10, 10)]).axes
    assert list(LogTicks(axes.xaxis).tick_values(0, 10)) == []
    assert TICK_POINTS == 8


def test_the_page_shows_curves_then_parameters_then_residuals_with_the_names_of_columns(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.csv"
    generator = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["N", "D", "run", "loss"])
        for n, d, seed in product((1e4, 1e5, 1e6, 1e7), np.geomspace(1e3, 1e6, 6), range(2)):
            loss = 0.3 + 2 * n**-0.3 + 3 * d**-0.4
            writer.writerow([n, d, f"{n}-{seed}", loss * np.exp(generator.normal(0, 0.003))])

    laws = tmp_path / "laws"
    assert run("laws", path, "--resamples", 10, "--predict", "N=1e8,D=1e7", "--out", laws) == 0
    assert run("report", laws, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    parts = [
        "<svg",
        "lines are this law at each size",
        "<h3>Parameters</h3>",
        "alpha",
        "<h3>Verdicts</h3>",
        "<h3>Predictions</h3>",
        "N = 1e+08, D = 1e+07",
        "Checks of the laws",
        "Residuals of the law",
        "<details",
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    # a table gives no units
    assert "effective pairs" not in page
    assert re.search(r">\s*D\s*</text>", page)
