"""Finished folders of the road become one self-contained page: what went in, what came out, what was dropped, and how."""

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.formats import folders

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)
Json = dict[str, Any]

COIN_LOSS_NATS = 0.6931471805599453


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show folders of the road on one page."""

    folders: Positional[tuple[Path, ...]]
    """Finished folders of any step, in the order to show them."""
    out: Path
    """HTML file to write; it needs no network."""

    def __post_init__(self) -> None:
        if not self.folders:
            raise ConfigError("no folder given: name what the other steps wrote, for instance threads groups checkpoint results")
        if self.out.is_dir():
            raise ConfigError(f"--out {self.out}: a folder; name the file to write, for instance report.html")


class Shown(NamedTuple):
    """One figure with its caption."""

    svg: str
    caption: str


class Grid(NamedTuple):
    """One table."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the page."""

    title: str
    text: str
    tiles: Sequence[tuple[str, str]] = ()
    wide: Sequence[Shown] = ()
    figures: Sequence[Shown] = ()
    tables: Sequence[Grid] = ()
    code: str = ""


def run(config: Config) -> None:
    """Write the page; it replaces an earlier one."""
    import jinja2

    manifests = {path: folders.manifest(path) for path in config.folders}
    if unknown := [f"{path} (made by `worldpm {entry['step']}`)" for path, entry in manifests.items() if entry["step"] not in SHOW]:
        raise ConfigError(f"{unknown[0]}: there is nothing to show of it; name folders of {', '.join(SHOW)}")
    sections = [section for path, manifest in manifests.items() for section in SHOW[manifest["step"]](path, manifest)]
    sections.append(_how(manifests))
    template = files("worldpm.steps").joinpath("templates/report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    lead = "A thread is the unit: a prompt and all its responses, from the forum to the reward."
    page = environment.from_string(template).render(lead=lead, sections=sections)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    folders.write_atomically(config.out, page.encode())
    logger.info("wrote %s", config.out)


def _threads(path: Path, manifest: Json) -> list[Section]:
    counts: dict[str, dict[str, int]] = manifest["counts"]
    rows = [[site, *(f"{count.get(key, 0):,}" for key in ("threads", "responses"))] for site, count in counts.items()]
    total = {key: sum(count.get(key, 0) for count in counts.values()) for key in ("threads", "responses")}
    return [
        Section(
            title=f"Threads: {path.name}",
            text="What was read, before any filter. Only rows that cannot be read are left out here.",
            tiles=[(f"{total['threads']:,}", "threads"), (f"{total['responses']:,}", "responses"), (str(len(counts)), "sites")],
            tables=[Grid("", ("site", "threads", "responses"), rows), *_drops("Left out", manifest["drops"])],
        )
    ]


def _groups(path: Path, manifest: Json) -> list[Section]:
    counts: dict[str, dict[str, int]] = manifest["counts"]
    splits = ("train", "validation", "test")
    rows = [
        [site, *(f"{count.get(f'{split} groups', 0):,} / {count.get(f'{split} pairs', 0):,}" for split in splits)]
        for site, count in counts.items()
    ]
    total = {kind: sum(count.get(f"{split} {kind}", 0) for count in counts.values() for split in splits) for kind in ("groups", "pairs")}
    return [
        Section(
            title=f"Preference groups: {path.name}",
            text=f"Rule {manifest['config']['rule']} for training; every pair of different votes for validation and test. "
            "The pairs of a thread weigh 1 together. Splits are by thread.",
            tiles=[(f"{total['groups']:,}", "groups"), (f"{total['pairs']:,}", "pairs of different votes")],
            tables=[Grid("Groups / pairs", ("site", *splits), rows), *_drops("Dropped, and why", manifest["drops"])],
        )
    ]


def _drops(title: str, drops: Mapping[str, Mapping[str, int]]) -> list[Grid]:
    reasons = sorted({reason for found in drops.values() for reason in found})
    if not reasons:
        return []
    rows = [[site, *(f"{found.get(reason, 0):,}" for reason in reasons)] for site, found in drops.items()]
    return [Grid(title, ("site", *reasons), rows)]


def _checkpoint(path: Path, manifest: Json) -> list[Section]:
    from worldpm.parts import figures
    from worldpm.parts.figures import Series

    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [row for row in rows if "loss_nats" in row]
    seen = [row for row in rows if "validation/loss_nats" in row]

    def drawn(key: str, title: str, unit: str, chance: float) -> str:
        series = Series([row["step"] for row in train], [row[key] for row in train])
        held = Series([row["step"] for row in seen], [row[f"validation/{key}"] for row in seen])
        return figures.curves(title, series, held, unit=unit, chance=chance)

    counts, kept = manifest["counts"], manifest["counts"]["kept step"]
    return [
        Section(
            title=f"Training: {path.name}",
            text=f"The weights of step {kept:,} of {counts['steps']:,}, those of least validation loss, make the checkpoint. "
            f"{counts['truncated train responses']:,} of {counts['train responses']:,} training responses were cut to fit.",
            tiles=[
                (f"{counts['parameters'] / 1e6:.2f} M", "parameters"),
                (f"{counts['pairs seen']:,}", "pairs seen"),
                (f"{counts['effective pairs seen']:,.0f}", "effective pairs (sum of weights)"),
                (f"{counts['tokens seen'] / 1e6:.2f} M", "tokens, prompts counted once"),
            ],
            figures=[
                Shown(drawn("loss_nats", "Loss", "nats per pair", COIN_LOSS_NATS), "Bradley-Terry loss. A coin flip costs ln 2 = 0.693."),
                Shown(
                    drawn("accuracy", "Accuracy", "thread-weighted accuracy", 0.5),
                    "Share of preferences with a positive margin; a tie counts half.",
                ),
            ],
        )
    ]


def _results(path: Path, manifest: Json) -> list[Section]:
    metrics = folders.read_json(path / "metrics.json")["checkpoints"]
    pairs = _pairs(path)
    return [_judged(name, found, pairs) for name, found in metrics.items()]


def _judged(name: str, found: Json, pairs: "Mapping[tuple[str, str], Pairs]") -> Section:
    from worldpm.parts import figures

    rows: list[tuple[str, str, Json]] = []
    for benchmark, result in found["benchmarks"].items():
        rows.append((benchmark, result["domain"], result))
        if len(result["domains"]) > 1:
            rows += [(f"{benchmark}: {domain}", domain, metrics) for domain, metrics in result["domains"].items()]
        if len(result["subsets"]) > 1:
            rows += [(f"{benchmark}: {subset}", metrics["domain"], metrics) for subset, metrics in result["subsets"].items()]
    dots = [figures.Dot(label, metrics["accuracy"], metrics["interval"], metrics["nulls"]) for label, _, metrics in rows]
    domains = [[domain, f"{entry['accuracy']:.3f}", ", ".join(entry["benchmarks"])] for domain, entry in found["domains"].items()]
    conditions = [[key.replace("_", " "), _plain(value)] for key, value in found["conditions"].items()]
    head = ("pairs of", "domain", "accuracy", "95 % interval", "unweighted", "loss, nats", "pairs", "ties", "longer", "earlier", "coin")
    caption = "A model that does not beat the open marks has learned nothing that they do not know."
    return Section(
        title=f"Results: {name}",
        text="Accuracy counts each thread about once and a tie half; the interval is a bootstrap over threads. "
        "Null baselines judge the same pairs: the longer response wins, the earlier one wins, a coin.",
        wide=[Shown(figures.accuracy_dots("Accuracy with null baselines", dots, width=9.0), caption)],
        figures=[shown for (checkpoint, benchmark), one in pairs.items() if checkpoint == name for shown in _pair_figures(benchmark, one)],
        tables=[
            Grid("", head, [_accuracy_row(*row) for row in rows]),
            Grid("Domains: plain means over benchmarks", ("domain", "accuracy", "benchmarks"), domains),
            Grid("Conditions", ("condition", "value"), conditions),
        ],
    )


def _accuracy_row(label: str, domain: str, metrics: Json) -> list[str]:
    nulls = ["-" if metrics["nulls"][null] is None else f"{metrics['nulls'][null]:.3f}" for null in ("longer", "earlier", "coin")]
    accuracy, unweighted, loss = (f"{metrics[key]:.3f}" for key in ("accuracy", "accuracy_unweighted", "loss_nats"))
    return [label, domain, accuracy, _interval(metrics), unweighted, loss, f"{metrics['n']:,}", f"{metrics['ties']:,}", *nulls]


def _interval(metrics: Json) -> str:
    return "-" if metrics["interval"] is None else "{:.3f} to {:.3f}".format(*metrics["interval"])


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(entry)}" for key, entry in value.items())
    return f"{value:.2%}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Pairs:
    """The pairs of one checkpoint on one benchmark; every array has shape (pairs,)."""

    chosen: "NDArray[np.float64]"
    rejected: "NDArray[np.float64]"
    strength: "NDArray[np.float64]"
    weight: "NDArray[np.float64]"
    length_gap: "NDArray[np.float64]"
    """Characters of the chosen minus those of the rejected."""
    cluster: list[str]


def _pairs(path: Path) -> dict[tuple[str, str], Pairs]:
    """The pairs by checkpoint and benchmark, from the tables of a results folder."""
    import numpy as np

    from worldpm.formats import tables

    items = {(row["benchmark"], row["item"], row["response"]): row for row in tables.read_rows(path / "items.parquet")}
    preferences = list(tables.read_rows(path / "preferences.parquet"))
    rewards: dict[str, dict[tuple[str, str, int], float]] = {}
    for row in tables.read_rows(path / "rewards.parquet"):
        rewards.setdefault(row["checkpoint"], {})[row["benchmark"], row["item"], row["response"]] = row["reward"]
    found = {}
    for checkpoint, reward in rewards.items():
        for benchmark in dict.fromkeys(row["benchmark"] for row in preferences):
            mine = [row for row in preferences if row["benchmark"] == benchmark]
            ends = [[(benchmark, row["item"], row[side]) for row in mine] for side in ("chosen", "rejected")]
            values = [np.array([reward[key] for key in side]) for side in ends]
            lengths = [np.array([items[key]["characters"] for key in side]) for side in ends]
            numbers = [np.array([row[key] for row in mine], dtype=np.float64) for key in ("strength", "weight")]
            clusters = [items[key]["prompt_id"] for key in ends[0]]
            found[checkpoint, benchmark] = Pairs(
                chosen=values[0], rejected=values[1], strength=numbers[0], weight=numbers[1],
                length_gap=(lengths[0] - lengths[1]).astype(np.float64), cluster=clusters,
            )  # fmt: skip
    return found


def _pair_figures(benchmark: str, pairs: Pairs) -> list[Shown]:
    import numpy as np
    import torch

    from worldpm.field import bradley_terry
    from worldpm.parts import figures

    margin = pairs.chosen - pairs.rejected
    credit = bradley_terry.pair_credits(torch.from_numpy(margin)).numpy()
    shown = [
        Shown(
            figures.histogram(f"Rewards on {benchmark}", pairs.chosen.tolist(), pairs.rejected.tolist()),
            "One count per pair; only differences at one prompt mean anything.",
        )
    ]
    if len(np.unique(pairs.strength)) > 1:
        gaps = [(str(g), pairs.strength == g) for g in (1, 2)] + [("3-4", (pairs.strength >= 3) & (pairs.strength <= 4))]
        gaps += [("5-9", (pairs.strength >= 5) & (pairs.strength <= 9)), ("10+", pairs.strength >= 10)]
        bins = _bins(gaps, margin, pairs)
        shown.append(
            Shown(
                figures.binned(f"Margin against vote gap on {benchmark}", bins, x="vote gap", y="reward margin (logits)", chance=0.0),
                "Mean margin with its 95 % interval: a clearer vote should give a wider margin.",
            )
        )
    edges = np.quantile(pairs.length_gap, [0.2, 0.4, 0.6, 0.8])
    place = np.searchsorted(edges, pairs.length_gap, side="right")
    labels = [f"<{edges[0]:+.0f}", *(f"<{edge:+.0f}" for edge in edges[1:]), f">={edges[-1]:+.0f}"]
    bins = _bins([(label, place == i) for i, label in enumerate(labels)], credit, pairs)
    shown.append(
        Shown(
            figures.binned(
                f"Accuracy against length on {benchmark}", bins, x="characters of the chosen minus the rejected", y="accuracy", chance=0.5
            ),
            "A model that only likes long answers fails on the left.",
        )
    )
    return shown


def _bins(masks: "Sequence[tuple[str, NDArray[np.bool_]]]", values: "NDArray[np.float64]", pairs: Pairs) -> list[Any]:
    import numpy as np

    from worldpm.field.uncertainty import clustered_interval
    from worldpm.parts.figures import Bin

    clusters = np.array(pairs.cluster)
    return [
        Bin(
            label,
            float(np.average(values[mask], weights=pairs.weight[mask])),
            clustered_interval(values[mask], pairs.weight[mask], clusters[mask], resamples=2000),
            int(mask.sum()),
        )
        for label, mask in masks
        if mask.any()
    ]


def _truth(path: Path, manifest: Json) -> list[Section]:
    from worldpm.parts import figures

    found = folders.read_json(path / "metrics.json")
    rows: list[list[str]] = []
    dots: dict[str, list[figures.Dot]] = {}
    for against, domains in found.items():
        for domain, row in domains.items():
            model, others = row["model"], row["others"]
            dots.setdefault(against, []).append(figures.Dot(domain, model["accuracy"], model["interval"], others, row["ceiling"]))
            numbers = [f"{model['accuracy']:.3f}", _interval(model), f"{row['ceiling']:.3f}", f"{row['way_to_ceiling']:.0%}"]
            rows.append([f"{domain}, by {against}", f"{model['n']:,}", *numbers, *(f"{value:.3f}" for value in others.values())])
    others = list(next(iter(found.values()))["overall"]["others"])
    head = ("pairs", "n", "model", "95 % interval", "ceiling", "way from coin", *others)
    titles = {"votes": "Against votes", "quality": "Against planted quality"}
    caption = "The bar is the ceiling: what a reader of the text alone can reach who knows exactly what the crowd likes."
    return [
        Section(
            title="Against the planted truth",
            text="The forum's votes come from a known quality with an adversarial part (on topic, whole), an objective part "
            "(a fact or sum) and a subjective part (style), from a crowd that likes long answers, and from a head start for early "
            "ones. So the best possible accuracy is known.",
            figures=[Shown(figures.accuracy_dots(titles[against], some, width=5.2), caption) for against, some in dots.items()],
            tables=[Grid("", head, rows)],
        )
    ]


def _how(manifests: Mapping[Path, Json]) -> Section:
    commands = [_command(path, manifest) for path, manifest in manifests.items() if manifest["step"] != "demo"]
    versions = {name: version for manifest in manifests.values() for name, version in manifest["versions"].items()}
    inputs = [
        [path.name, entry["name"], f"{entry['bytes']:,}" if "bytes" in entry else "-", entry["sha256"][:16]]
        for path, manifest in manifests.items()
        for entry in manifest["inputs"]
    ]
    return Section(
        title="How this was made",
        text="The commands with every setting spelled out, folders and files by their last names, the versions, and the inputs.",
        code="\n".join([*commands, "", ", ".join(f"{name} {version}" for name, version in versions.items())]),
        tables=[Grid("Inputs", ("folder", "input", "bytes", "sha256"), inputs)],
    )


def _command(path: Path, manifest: Json) -> str:
    config: Json = dict(manifest["config"])
    names = [entry["name"] for entry in manifest["inputs"]]
    if manifest["step"] == "evaluate":
        names = names[: len(names) - len(config["on"])]
    if manifest["step"] == "train":
        names = [name for name in names if name != config["model"]]
    options = [_option(key, value) for key, value in config.items() if value is not None and value is not False]
    return " ".join(["worldpm", manifest["step"], *names, *options, "--out", path.name])


def _option(key: str, value: object) -> str:
    name = f"--{key.replace('_', '-')}"
    return name if value is True else f"{name} {shlex.join(map(str, value if isinstance(value, list) else [value]))}"


SHOW: dict[str, Callable[[Path, Json], list[Section]]] = {
    "ingest": _threads,
    "simulate": _threads,
    "group": _groups,
    "train": _checkpoint,
    "evaluate": _results,
    "demo": _truth,
}
