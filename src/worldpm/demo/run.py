"""The whole road on a simulated forum whose truth is known: a few thousand threads become a judged
model and a page."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from worldpm import console
from worldpm.benchmarks import groups
from worldpm.benchmarks.items import Item
from worldpm.benchmarks.metrics import NULLS
from worldpm.evaluation import planted, tfidf
from worldpm.evaluation.run import run as evaluate
from worldpm.forums.hobbies import Truth
from worldpm.forums.simulation import TRUTH
from worldpm.forums.simulation import run as simulate
from worldpm.options.demo import DemoOptions
from worldpm.options.evaluate import EvaluateOptions
from worldpm.options.group import GroupOptions
from worldpm.options.report import ReportOptions
from worldpm.options.simulate import SimulateOptions
from worldpm.options.train import TrainOptions
from worldpm.preferences.run import run as group
from worldpm.report.run import run as report
from worldpm.storage import folders, parquet
from worldpm.training.run import run as train

logger = logging.getLogger(__name__)
Json = dict[str, Any]

OTHERS = ("TF-IDF", "longer", "earlier", "coin")


def run(options: DemoOptions) -> None:
    """Run the steps, judge the model against the planted truth, and print the table; a killed demo
    goes on where it was."""
    out = options.out
    simulate(SimulateOptions(out=out / "threads", threads=options.threads, seed=options.seed))
    group(
        GroupOptions(
            threads=(out / "threads",), out=out / "groups", validation_share=0.03, test_share=0.1
        )
    )
    groups_made, checkpoint = str(out / "groups"), str(out / "checkpoint")
    train(
        TrainOptions(
            groups=(groups_made,),
            model="tiny",
            out=out / "checkpoint",
            epochs=1,
            max_length=512,
            seed=options.seed,
        )
    )
    evaluate(EvaluateOptions(checkpoints=(checkpoint,), on=(groups_made,), out=out / "results"))
    _judge(out)
    steps = ("threads", "groups", "checkpoint", "results", "truth")
    report(ReportOptions(folders=tuple(out / name for name in steps), out=out / "report.html"))
    _print_table(folders.read_json(out / "truth" / "metrics.json"), out)


def _judge(out: Path) -> None:
    """Write `truth/metrics.json`: the model, the baselines and the ceilings on the same pairs."""

    inputs = [folders.describe(out / name) for name in ("threads", "groups", "results")]
    output = folders.begin(out / "truth", step="demo", config={}, inputs=inputs)
    if output is None:
        return
    with output:
        items = groups.read(out / "groups", split="test")
        truth = {
            row["response_id"]: Truth(**row) for row in parquet.read_rows(out / "threads" / TRUTH)
        }
        regression = tfidf.fit(groups.read(out / "groups", split="train"))
        model = _model_rewards(out / "results" / "rewards.parquet", items)
        others = {
            "TF-IDF": [regression(item) for item in items],
            **{
                name: [judge(item) or [] for item in items]
                for name, judge in NULLS.items()
                if name in OTHERS
            },
        }
        output.write("metrics.json", folders.to_json(planted.judge(items, model, others, truth)))
        output.finish(counts={"items": len(items)})


def _model_rewards(path: Path, items: Sequence[Item]) -> list[list[float]]:

    found: dict[str, list[float]] = {}
    for row in parquet.read_rows(path):
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
            numbers = [
                f"{number:.3f}"
                for number in (row["ceiling"], *(row["others"][name] for name in OTHERS))
            ]
            way = f"{row['way_to_ceiling']:.0%}"
            table.add_row(
                f"{domain}, by {against}",
                f"{model['n']:,}",
                f"{model['accuracy']:.3f}",
                interval,
                numbers[0],
                way,
                *numbers[1:],
            )
        table.add_section()
    screen = Console(width=max(120, Console().width))
    screen.print(table)
    screen.print(
        "ceiling: the best that a reader of the text alone can do, up to the luck of the sample's"
        " votes; way: how far the model came from a coin to it",
        highlight=False,
    )
    screen.print(f"the page: {out / 'report.html'}", highlight=False)
