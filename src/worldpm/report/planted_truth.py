"""The section of the demo: a model against the truth that was planted in a simulated forum."""

from pathlib import Path

from worldpm import plots
from worldpm.console import interval
from worldpm.evaluation.planted import PlantedResult, read_planted
from worldpm.plots import Dot
from worldpm.report.layout import Grid, Section, Shown
from worldpm.storage.manifest import Manifest

TITLES = {"votes": "Against votes", "quality": "Against planted quality"}
CAPTIONS = {
    "votes": (
        "The bar is the ceiling: what a reader of the text alone reaches who knows exactly what the"
        " crowd likes."
    ),
    "quality": (
        "The bar is the ceiling: a reader of the text alone who ranks by quality is always right."
    ),
}
TEXT = (
    "The forum's votes come from a known quality with an adversarial part (on topic, whole), an"
    " objective part (a fact or sum) and a subjective part (style), from a crowd that likes long"
    " answers, and from a head start for early ones. So the best possible accuracy is known."
)


def truth(path: Path, manifest: Manifest) -> list[Section]:
    """One section: accuracy by domain, against votes and against planted quality."""
    results = read_planted(path)
    rows: list[list[str]] = []
    figures = []
    for against, domains in results.items():
        dots = [_dot(domain, result) for domain, result in domains.items()]
        svg = plots.accuracy_dots(TITLES[against], dots, width=5.2)
        figures.append(Shown(svg, CAPTIONS[against]))
        rows += [_row(f"{domain}, by {against}", result) for domain, result in domains.items()]

    judges = next(iter(results.values()))["overall"].others
    head = ("pairs", "n", "model", "95 % interval", "ceiling", "way from coin", *judges)
    grid = Grid("", head, rows)
    return [Section(title="Against the planted truth", text=TEXT, figures=figures, tables=[grid])]


def _dot(domain: str, result: PlantedResult) -> Dot:
    model = result.model
    return Dot(domain, model.accuracy, model.interval, result.others, result.ceiling)


def _row(label: str, result: PlantedResult) -> list[str]:
    return [
        label,
        f"{result.model.n:,}",
        f"{result.model.accuracy:.3f}",
        interval(result.model.interval),
        f"{result.ceiling:.3f}",
        f"{result.way_to_ceiling:.0%}",
        *(f"{accuracy:.3f}" for accuracy in result.others.values()),
    ]
