"""The whole road on a simulated forum whose truth is known: from threads to a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from worldpm.benchmarks import groups
from worldpm.benchmarks.items import Item
from worldpm.benchmarks.metrics import NULLS
from worldpm.evaluation import planted, tfidf
from worldpm.evaluation.planted import Planted
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
from worldpm.report import planted_truth
from worldpm.report.run import run as report
from worldpm.storage import folders, parquet
from worldpm.storage.json_files import to_json
from worldpm.storage.manifest import describe
from worldpm.training.run import run as train

JUDGES = ("TF-IDF", "longer", "earlier")
"""The baselines beside the model, in the order of the table."""
PICTURE = "accuracy.png"
"""In the folder of the truth."""
TABLE_COLUMNS = 80
"""Width of the table on a terminal that is narrower, or on none."""
NOTE = (
    "ceiling: accuracy of the best reader of the text alone; way: the share of the distance from a"
    " coin to the ceiling that the model covers"
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
        output.write(PICTURE, planted_truth.picture(results))
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
    screen = Console(width=max(TABLE_COLUMNS, Console().width))
    screen.print("\nHeld-out accuracy, thread-weighted, with its 95 % interval", highlight=False)

    # without the number of pairs, which the page has, it fits 80 columns
    head, *rows = [[label, *cells] for label, _, *cells in planted_truth.table(results)]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(head[0], no_wrap=True)
    for heading in head[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    screen.print(table)

    screen.print(NOTE, highlight=False)
    page, picture = out / "report.html", out / "truth" / PICTURE
    screen.print(f"the page: {page}\nthe figure: {picture}", highlight=False)
