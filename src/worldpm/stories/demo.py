"""The whole road on a simulated forum whose truth is known: a few thousand threads become a judged model and a page."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from worldpm.formats import console, folders
from worldpm.steps import evaluate, group, report, simulate, train

if TYPE_CHECKING:
    from worldpm.parts.benchmarks.items import Item

logger = logging.getLogger(__name__)
Json = dict[str, Any]

OTHERS = ("TF-IDF", "longer", "earlier", "coin")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Walk the whole road on a simulated forum, offline, on a CPU: simulate, group, train, evaluate, report."""

    out: Path = Path("demo")
    """Folder for all that is made; `report.html` is the page to look at."""
    threads: int = 7000
    """Size of the forum; fewer are faster and learn less."""
    seed: int = 0
    """Of the forum and of the model."""


def run(config: Config) -> None:
    """Run the steps, judge the model against the planted truth, and print the table; a killed demo goes on where it was."""
    out = config.out
    simulate.run(simulate.Config(out=out / "threads", threads=config.threads, seed=config.seed))
    group.run(group.Config(threads=(out / "threads",), out=out / "groups", validation_share=0.03, test_share=0.1))
    train.run(train.Config(groups=(str(out / "groups"),), model="tiny", out=out / "checkpoint", epochs=1, max_length=512, seed=config.seed))
    evaluate.run(evaluate.Config(checkpoints=(str(out / "checkpoint"),), on=(str(out / "groups"),), out=out / "results"))
    _judge(out)
    steps = ("threads", "groups", "checkpoint", "results", "truth")
    report.run(report.Config(folders=tuple(out / name for name in steps), out=out / "report.html"))
    _print_table(folders.read_json(out / "truth" / "metrics.json"), out)


def _judge(out: Path) -> None:
    """Write `truth/metrics.json`: the model, the baselines and the ceilings on the same pairs."""
    from worldpm.formats import tables
    from worldpm.parts import tfidf
    from worldpm.parts.benchmarks import groups, planted
    from worldpm.parts.benchmarks.metrics import NULLS
    from worldpm.parts.forums.simulated import Truth

    inputs = [folders.describe(out / name) for name in ("threads", "groups", "results")]
    output = folders.begin(out / "truth", step="demo", config={}, inputs=inputs)
    if output is None:
        return
    with output:
        items = groups.read(out / "groups", split="test")
        truth = {row["response_id"]: Truth(**row) for row in tables.read_rows(out / "threads" / simulate.TRUTH)}
        regression = tfidf.fit(groups.read(out / "groups", split="train"))
        model = _model_rewards(out / "results" / "rewards.parquet", items)
        others = {
            "TF-IDF": [regression(item) for item in items],
            **{name: [judge(item) or [] for item in items] for name, judge in NULLS.items() if name in OTHERS},
        }
        output.write("metrics.json", folders.to_json(planted.judge(items, model, others, truth)))
        output.finish(counts={"items": len(items)})


def _model_rewards(path: Path, items: "Sequence[Item]") -> list[list[float]]:
    from worldpm.formats import tables

    found: dict[str, list[float]] = {}
    for row in tables.read_rows(path):
        found.setdefault(row["item"], []).append(row["reward"])
    return [found[item.item] for item in items]


def _print_table(truth: Json, out: Path) -> None:
    table = Table(title="Held-out accuracy, thread-weighted, with its 95 % interval")
    table.add_column("pairs", no_wrap=True)
    for heading in ("n", "model", "interval", "ceiling", "way", *OTHERS):
        table.add_column(heading, justify="right", no_wrap=True)
    for against, domains in truth.items():
        for domain, row in domains.items():
            model = row["model"]
            interval = console.interval(model["interval"])
            numbers = [f"{number:.3f}" for number in (row["ceiling"], *(row["others"][name] for name in OTHERS))]
            way = f"{row['way_to_ceiling']:.0%}"
            table.add_row(f"{domain}, by {against}", f"{model['n']:,}", f"{model['accuracy']:.3f}", interval, numbers[0], way, *numbers[1:])
        table.add_section()
    screen = Console(width=max(120, Console().width))
    screen.print(table)
    screen.print(
        "ceiling: the best that a reader of the text alone can do, up to the luck of the sample's votes; "
        "way: how far the model came from a coin to it",
        highlight=False,
    )
    screen.print(f"the page: {out / 'report.html'}", highlight=False)
