"""What the demo's judgement against the planted truth shows."""

from pathlib import Path
from typing import Any

from worldpm import plots
from worldpm.console import interval
from worldpm.report.layout import Grid, Section, Shown
from worldpm.storage import folders

Json = dict[str, Any]


def truth(path: Path, manifest: Json) -> list[Section]:
    """A model against the truth that was planted in a simulated forum."""
    found = folders.read_json(path / "metrics.json")
    rows: list[list[str]] = []
    dots: dict[str, list[plots.Dot]] = {}
    for against, domains in found.items():
        for domain, row in domains.items():
            model, others = row["model"], row["others"]
            dots.setdefault(against, []).append(
                plots.Dot(domain, model["accuracy"], model["interval"], others, row["ceiling"])
            )
            numbers = [
                f"{model['accuracy']:.3f}",
                interval(model["interval"]),
                f"{row['ceiling']:.3f}",
                f"{row['way_to_ceiling']:.0%}",
            ]
            rows.append(
                [
                    f"{domain}, by {against}",
                    f"{model['n']:,}",
                    *numbers,
                    *(f"{value:.3f}" for value in others.values()),
                ]
            )
    others = list(next(iter(found.values()))["overall"]["others"])
    head = ("pairs", "n", "model", "95 % interval", "ceiling", "way from coin", *others)
    titles = {"votes": "Against votes", "quality": "Against planted quality"}
    captions = {
        "votes": (
            "The bar is the ceiling: what a reader of the text alone reaches who knows exactly what"
            " the crowd likes."
        ),
        "quality": (
            "The bar is the ceiling: a reader of the text alone who ranks by quality is always"
            " right."
        ),
    }
    return [
        Section(
            title="Against the planted truth",
            text=(
                "The forum's votes come from a known quality with an adversarial part (on topic,"
                " whole), an objective part (a fact or sum) and a subjective part (style), from a"
                " crowd that likes long answers, and from a head start for early ones. So the best"
                " possible accuracy is known."
            ),
            figures=[
                Shown(plots.accuracy_dots(titles[against], some, width=5.2), captions[against])
                for against, some in dots.items()
            ],
            tables=[Grid("", head, rows)],
        )
    ]
