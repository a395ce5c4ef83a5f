"""The whole road on a simulated forum whose truth is known: from threads to a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from worldpm.benchmarks import groups
from worldpm.benchmarks.items import Item
from worldpm.benchmarks.metrics import NULLS
from worldpm.console import interval
from worldpm.evaluation import planted, tfidf
from worldpm.evaluation.planted import Planted, PlantedResult
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
from worldpm.storage.json_files import to_json
from worldpm.storage.manifest import describe
from worldpm.training.run import run as train

JUDGES = ("TF-IDF", "longer", "earlier", "coin")
"""The baselines beside the model, in the order of the table."""
TABLE_COLUMNS = 120
"""Least width of the table on the terminal."""
NOTE = (
    "ceiling: the best that a reader of the text alone can do, up to the luck of the sample's"
    " votes; way: how far the model came from a coin to it"
)


def run(options: DemoOptions) -> None:
    """Run every step and print the table; a killed demo, run again, goes on where it stopped."""
    out = options.out
    simulate(SimulateOptions(out=out / "threads", threads=options.threads, seed=options.seed))
    group(
        GroupOptions(
            threads=(out / "threads",), out=out / "groups", validation_share=0.03, test_share=0.1
        )
    )
    groups_folder, checkpoint = str(out / "groups"), str(out / "checkpoint")
    train(
        TrainOptions(
            groups=(groups_folder,),
            model="tiny",
            out=out / "checkpoint",
            epochs=1,
            max_length=512,
            seed=options.seed,
        )
    )
    evaluate(EvaluateOptions(checkpoints=(checkpoint,), on=(groups_folder,), out=out / "results"))
    _judge(out)
    steps = ("threads", "groups", "checkpoint", "results", "truth")
    report(ReportOptions(folders=tuple(out / name for name in steps), out=out / "report.html"))
    _print(planted.read_planted(out / "truth"), out)


def _judge(out: Path) -> None:
    """Write `truth/metrics.json`: the model, the baselines and the ceilings on the same pairs."""
    inputs = [describe(out / name) for name in ("threads", "groups", "results")]
    output = folders.begin(out / "truth", step="demo", config={}, inputs=inputs)
    if output is None:
        return

    with output:
        items = groups.read(out / "groups", split="test")
        truth_rows = parquet.read_rows(out / "threads" / TRUTH)
        truth = {row["response_id"]: Truth(**row) for row in truth_rows}
        rewards = _rewards_of(out / "results" / "rewards.parquet", items)
        results = planted.judge(items, rewards, _baselines(out, items), truth)
        output.write(planted.METRICS, to_json(results))
        output.finish(counts={"items": len(items)})


def _baselines(out: Path, items: Sequence[Item]) -> Mapping[str, list[list[float]]]:
    """What each of JUDGES makes of the items' responses."""
    regression = tfidf.fit(groups.read(out / "groups", split="train"))
    rewards = {"TF-IDF": [regression(item) for item in items]}
    for name in JUDGES[1:]:
        rewards[name] = [NULLS[name](item) or [] for item in items]
    return rewards


def _rewards_of(path: Path, items: Sequence[Item]) -> list[list[float]]:
    """The rewards of a table in the order of the items."""
    rewards: dict[str, list[float]] = {}
    for row in parquet.read_rows(path):
        rewards.setdefault(row["item"], []).append(row["reward"])
    return [rewards[item.item] for item in items]


def _print(results: Planted, out: Path) -> None:
    table = Table(title="Held-out accuracy, thread-weighted, with its 95 % interval")
    table.add_column("pairs", no_wrap=True)
    for heading in ("n", "model", "interval", "ceiling", "way", *JUDGES):
        table.add_column(heading, justify="right", no_wrap=True)

    for against, domains in results.items():
        for domain, result in domains.items():
            table.add_row(f"{domain}, by {against}", *_cells(result))
        table.add_section()

    screen = Console(width=max(TABLE_COLUMNS, Console().width))
    screen.print(table)
    screen.print(NOTE, highlight=False)
    screen.print(f"the page: {out / 'report.html'}", highlight=False)


def _cells(result: PlantedResult) -> list[str]:
    return [
        f"{result.model.n:,}",
        f"{result.model.accuracy:.3f}",
        interval(result.model.interval),
        f"{result.ceiling:.3f}",
        f"{result.way_to_ceiling:.0%}",
        *(f"{result.others[name]:.3f}" for name in JUDGES),
    ]
