"""What a folder of results shows: domains, models against each other, and each benchmark with its
conditions and worst items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worldpm import plots
from worldpm.benchmarks.metrics import NULLS
from worldpm.console import interval, number
from worldpm.plots import Bin, Dot
from worldpm.report.layout import Example, Fold, Grid, Section, Shown
from worldpm.stats import bradley_terry
from worldpm.stats.uncertainty import clustered_interval
from worldpm.storage import folders, parquet

Json = dict[str, Any]
Array = NDArray[np.float64]

WORST = 5
"""So many of the worst-judged items are shown."""
SHOWN_CHARACTERS = 700
CONDITIONS = (
    "template_hash",
    "end_token",
    "dtype",
    "device",
    "attention",
    "max_length",
    "prompt_length",
    "truncated_share",
    "raw_rewards",
    "without_files",
)
"""What changes a reward, or a number made of rewards: checkpoints in which it differs are not
compared without saying so."""
HEAD = (
    "pairs of",
    "domain",
    "accuracy",
    "95 % interval",
    "unweighted",
    "loss, nats",
    "pairs",
    "ties",
    *NULLS,
)


def results(path: Path, manifest: Json) -> list[Section]:
    """An overview of all checkpoints, then each by itself."""
    found = folders.read_json(path / "metrics.json")
    judged = {name: one for name, one in found["checkpoints"].items() if "benchmarks" in one}
    sections = (
        [_win_rates(path, found["checkpoints"])] if len(judged) < len(found["checkpoints"]) else []
    )
    if len(judged) > 1:
        sections.append(_overview(path, judged, found["comparisons"]))
    texts = _Tables.read(path) if judged else None
    return sections + [_checkpoint(name, one, texts) for name, one in judged.items() if texts]


def across(found: Mapping[Path, Json]) -> list[Section]:
    """Several results folders side by side, with what differs in their conditions; nothing for
    one."""
    judged = {
        f"{path.name}: {name}": one
        for path in found
        for name, one in folders.read_json(path / "metrics.json")["checkpoints"].items()
        if "benchmarks" in one
    }
    if len(found) < 2 or len(judged) < 2:
        return []
    benchmarks = list(dict.fromkeys(name for one in judged.values() for name in one["benchmarks"]))
    rows = [
        [name, *(_with_interval(one["benchmarks"].get(name)) for one in judged.values())]
        for name in benchmarks
    ]
    warnings = [
        [text] for text in (*_other_conditions(judged), *_other_sizes(judged), *_other_items(found))
    ]
    text = (
        "Intervals are of single checkpoints. To test a difference, give `worldpm evaluate` both at"
        " once: it compares pair by pair."
    )
    if warnings:
        text += (
            " These folders were made under different conditions; their differences are not the"
            " models' alone."
        )
    grids = [Grid("Accuracy by benchmark", ("benchmark", *judged), rows)]
    if warnings:
        grids.append(Grid("Warnings", ("what differs",), warnings))
    return [Section(title="Results folders side by side", text=text, tables=grids)]


def _other_conditions(judged: Mapping[str, Json]) -> list[str]:
    """What is not the same for all checkpoints, of what changes a reward."""
    found = []
    for key in CONDITIONS:
        values = {name: _plain(one["conditions"].get(key)) for name, one in judged.items()}
        if len(set(values.values())) > 1:
            found.append(
                f"{key.replace('_', ' ')}: "
                + ", ".join(f"{value} in {name}" for name, value in values.items())
            )
    return found


def _other_sizes(judged: Mapping[str, Json]) -> list[str]:
    """Benchmarks of which the checkpoints were not judged on as many items."""
    found = []
    for benchmark in dict.fromkeys(name for one in judged.values() for name in one["benchmarks"]):
        sizes = {
            name: one["benchmarks"][benchmark]["items"]
            for name, one in judged.items()
            if benchmark in one["benchmarks"]
        }
        if len(set(sizes.values())) > 1:
            found.append(
                f"items of {benchmark}: "
                + ", ".join(f"{size:,} in {name}" for name, size in sizes.items())
            )
    return found


def _other_items(found: Mapping[Path, Json]) -> list[str]:
    """Benchmarks whose items differ between folders."""
    seen: dict[str, dict[str, list[str]]] = {}
    for path, manifest in found.items():
        for entry in manifest["inputs"]:
            if "items" in entry:
                seen.setdefault(entry["name"], {}).setdefault(entry["sha256"], []).append(path.name)
    return [
        f"the items of {name} differ: "
        + " against ".join(", ".join(paths) for paths in hashes.values())
        for name, hashes in seen.items()
        if len(hashes) > 1
    ]


def _overview(path: Path, judged: Mapping[str, Json], comparisons: Sequence[Json]) -> Section:
    domains = list(dict.fromkeys(domain for one in judged.values() for domain in one["domains"]))
    benchmarks = list(dict.fromkeys(name for one in judged.values() for name in one["benchmarks"]))
    by_domain = [
        [
            domain,
            *(number(one["domains"].get(domain, {}).get("accuracy")) for one in judged.values()),
        ]
        for domain in domains
    ]
    by_benchmark = [
        [name, *(_with_interval(one["benchmarks"].get(name)) for one in judged.values())]
        for name in benchmarks
    ]
    other = _other_conditions(judged)
    gaps = [
        [
            f"{row['first']} - {row['second']}",
            row["benchmark"],
            f"{row['difference']:+.3f}",
            interval(row["interval"]),
            f"{row['p_value_holm']:.4f}",
            number(row["detectable"]),
        ]
        for row in comparisons
    ]
    return Section(
        title=f"Checkpoints side by side: {path.name}",
        text=(
            "A difference is real where its interval leaves out 0 and its p-value, corrected for"
            " the number of comparisons (Holm), is below 0.05. Detectable is the smallest true"
            " difference that a set of this size would show in 80 % of cases."
        ),
        wide=[
            Shown(
                plots.accuracy_dots(
                    "Accuracy by benchmark",
                    [
                        Dot(
                            f"{benchmark}: {name}",
                            one["benchmarks"][benchmark]["accuracy"],
                            one["benchmarks"][benchmark]["interval"],
                            {},
                        )
                        for benchmark in benchmarks
                        for name, one in judged.items()
                        if benchmark in one["benchmarks"]
                    ],
                    width=9.0,
                ),
                "Dots with their 95 % intervals; overlapping intervals do not say that two are"
                " equal, the table of differences does.",
            ),
            *_style_over_checkpoints(judged, benchmarks),
        ],
        tables=[
            *(
                [Grid("Other conditions", ("what differs",), [[text] for text in other])]
                if other
                else []
            ),
            Grid("Accuracy by domain: plain means over benchmarks", ("domain", *judged), by_domain),
            Grid("Accuracy by benchmark", ("benchmark", *judged), by_benchmark),
            Grid(
                "Differences",
                (
                    "checkpoints",
                    "benchmark",
                    "difference",
                    "95 % interval",
                    "p (Holm)",
                    "detectable",
                ),
                gaps,
            ),
        ],
    )


def _with_interval(metrics: Json | None) -> str:
    return (
        "-" if metrics is None else f"{metrics['accuracy']:.3f} ({interval(metrics['interval'])})"
    )


def _style_over_checkpoints(judged: Mapping[str, Json], benchmarks: Sequence[str]) -> list[Shown]:
    """Phi of length, and accuracy by length, checkpoint by checkpoint in the order given; only
    where there are three or more."""
    phi: dict[str, list[float]] = {}
    by_length: dict[str, list[float]] = {}
    for name in benchmarks:
        styles = [(one["benchmarks"].get(name) or {}).get("style") for one in judged.values()]
        if len(judged) < 3 or not all(styles):
            continue
        known = [style for style in styles if style]
        if all(style["phi"]["length"]["pairs"] for style in known):
            phi[name] = [style["phi"]["length"]["prediction"] for style in known]
        for side in ("chosen longer", "chosen shorter"):
            if all(style["by_length"][side] is not None for style in known):
                by_length[f"{name}, {side}"] = [style["by_length"][side] for style in known]
    order = "The order is the one in which the checkpoints were named."
    shown = []
    if phi:
        svg = plots.lines("Phi of length", list(judged), phi, y="phi")
        shown.append(Shown(svg, f"How far predictions go with length. {order}"))
    if by_length:
        svg = plots.lines("Accuracy by length", list(judged), by_length, y="accuracy")
        shown.append(
            Shown(svg, f"A judge of length gains on one side and loses on the other. {order}")
        )
    return shown


def _checkpoint(name: str, found: Json, texts: "_Tables") -> Section:
    rows: list[tuple[str, str, Json]] = []
    for benchmark, result in found["benchmarks"].items():
        rows.append((benchmark, result["domain"], result))
        if len(result["domains"]) > 1:
            rows += [
                (f"{benchmark}: {domain}", domain, metrics)
                for domain, metrics in result["domains"].items()
            ]
    dots = [
        Dot(label, metrics["accuracy"], metrics["interval"], metrics["nulls"])
        for label, _, metrics in rows
    ]
    domains = [
        [domain, f"{entry['accuracy']:.3f}", ", ".join(entry["benchmarks"])]
        for domain, entry in found["domains"].items()
    ]
    conditions = [
        [key.replace("_", " "), _plain(value)]
        for key, value in found["conditions"].items()
        if value is not None
    ]
    return Section(
        title=f"Results: {name}",
        text=(
            "Accuracy counts each thread about once and a tie half; the interval is a bootstrap"
            " over prompts. Null baselines judge the same pairs: the longer, the shorter, the"
            " earlier response wins, what its set shows first, a coin."
        ),
        wide=[
            Shown(
                plots.accuracy_dots("Accuracy with null baselines", dots, width=9.0),
                "A model that does not beat the open marks has learned nothing that they do not"
                " know.",
            )
        ],
        tables=[
            Grid("", HEAD, [_accuracy_row(*row) for row in rows]),
            Grid(
                "Domains: plain means over benchmarks",
                ("domain", "accuracy", "benchmarks"),
                domains,
            ),
            *[
                grid
                for preset, result in found.get("presets", {}).items()
                for grid in _preset(preset, result)
            ],
            Grid("Conditions", ("condition", "value"), conditions),
        ],
        folds=[
            _benchmark(benchmark, result, texts.pairs(name, benchmark))
            for benchmark, result in found["benchmarks"].items()
        ],
    )


def _preset(name: str, result: Json) -> list[Grid]:
    sets = [
        [
            domain,
            test_set,
            _with_interval(result["test_sets"][test_set]),
            number(result["test_sets"][test_set]["loss_nats"]),
        ]
        for domain, entry in result["domains"].items()
        for test_set in entry["test_sets"]
    ]
    subtasks = [
        [benchmark, number(entry["accuracy"]), ", ".join(entry["test_sets"])]
        for benchmark, entry in result["subtasks"].items()
    ]
    return [
        Grid(
            f"Preset {name}: test sets by domain",
            ("domain", "test set", "accuracy", "loss, nats"),
            sets,
        ),
        Grid(f"Preset {name}: subtasks", ("benchmark", "mean accuracy", "subtasks"), subtasks),
    ]


def _accuracy_row(label: str, domain: str, metrics: Json) -> list[str]:
    nulls = [number(metrics["nulls"].get(null)) for null in NULLS]
    accuracy, unweighted, loss = (
        f"{metrics[key]:.3f}" for key in ("accuracy", "accuracy_unweighted", "loss_nats")
    )
    return [
        label,
        domain,
        accuracy,
        interval(metrics["interval"]),
        unweighted,
        loss,
        f"{metrics['n']:,}",
        f"{metrics['ties']:,}",
        *nulls,
    ]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key.replace('_', ' ')}: {_plain(entry)}" for key, entry in value.items()
        )
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _benchmark(name: str, result: Json, pairs: "Pairs") -> Fold:
    """Everything about one benchmark: its own numbers, subsets, style, calibration, margins, worst
    items."""
    missing = "".join(
        f" {count} of {subset} are missing." for subset, count in result["missing_items"].items()
    )
    subsets = [
        _accuracy_row(subset, metrics["domain"], metrics)
        for subset, metrics in result["subsets"].items()
    ]
    native = [[key, text] for key, text in _flat(result["native"]) if text]
    return Fold(
        title=f"{name}: {result['accuracy']:.3f} ({interval(result['interval'])})",
        text=(
            f"{result['items']:,} items.{missing} Its own aggregates follow its own rule for ties."
        ),
        figures=[
            *_pair_figures(name, pairs),
            *_style_figures(name, result["style"]),
            *_own_figures(name, result),
            _reliability(name, result),
        ],
        tables=[
            Grid("Its own aggregates", ("aggregate", "value"), native),
            *([Grid("Subsets", HEAD, subsets)] if len(subsets) > 1 else []),
            *_style_tables(result["style"]),
        ],
        examples=pairs.worst(),
        heading="Judged wrong by the widest margin",
    )


def _flat(value: Json, prefix: str = "") -> list[tuple[str, str]]:
    """Nested numbers as names with their values; long lists are left to the figures."""
    found: list[tuple[str, str]] = []
    for key, entry in value.items():
        if isinstance(entry, dict):
            found += _flat(entry, f"{prefix}{key}: ")
        elif not isinstance(entry, list):
            found.append(
                (
                    f"{prefix}{key}",
                    (
                        "-"
                        if entry is None
                        else f"{entry:.4f}"
                        if isinstance(entry, float)
                        else str(entry)
                    ),
                )
            )
    return found


def _reliability(name: str, result: Json) -> Shown:
    found = result["calibration"]
    return Shown(
        plots.reliability(
            f"Calibration on {name}",
            [(one["probability"], one["right"], one["pairs"]) for one in found["bins"]],
        ),
        f"Margins divided by {found['temperature']:.3g} ({found['source']}). Loss"
        f" {found['loss_nats']:.3f} nats, {result['loss_nats']:.3f} before; expected calibration"
        f" error {found['expected_error']:.3f}. Compare model families by the calibrated loss"
        " only.",
    )


def _style_figures(name: str, style: Json | None) -> list[Shown]:
    if style is None:
        return []
    phi = {
        feature: (one["label"], one["prediction"])
        for feature, one in style["phi"].items()
        if one["pairs"] >= 10
    }
    levels = style["by_level"]
    return [
        Shown(
            plots.dumbbells(f"Phi with style on {name}", phi),
            "How far labels and predictions go with the response that has more of a feature, -1 to"
            " 1. A judge that only repeats the labels' taste has its mark on theirs.",
        ),
        Shown(
            plots.heat_map(
                f"Accuracy by style on {name}",
                levels["levels"],
                levels["accuracy"],
                rows="chosen",
                columns="rejected",
            ),
            "Above the diagonal the chosen response is the plainer one: the hard cases for a judge"
            " of style.",
        ),
    ]


def _own_figures(name: str, result: Json) -> list[Shown]:
    """The 3 x 3 of RM-Bench, the curves of best of n."""
    native = result["native"]
    shown = [
        Shown(
            plots.heat_map(
                f"{name}: {domain}",
                ["concise", "detailed", "markdown"],
                cells,
                rows="chosen",
                columns="rejected",
            ),
            "Right answers of each style against wrong ones of each.",
        )
        for domain, cells in native.get("matrix", {}).items()
    ]
    if native.get("kl_nats"):
        curves = {key: native[key] for key in ("quality", "oracle")}
        shown.append(
            Shown(
                plots.lines(
                    f"Best of n on {name}", native["n"], curves, y="expected quality", x="n"
                ),
                "By exact counting.",
            )
        )
    return shown


def _style_tables(style: Json | None) -> list[Grid]:
    if style is None:
        return []
    rows, notes = [], []
    for way, found in style["controlled"].items():
        for fitted in ("margin_only", "cross_fitted", "in_sample"):
            rows.append(
                [
                    way,
                    fitted.replace("_", " "),
                    number(found[fitted]["accuracy"]),
                    number(found[fitted]["loss_nats"]),
                ]
            )
        notes += [[way, warning] for warning in found["warnings"]]
    weights = [
        [way, name, f"{one['per_deviation']:+.3f}", interval(one["interval"])]
        for way, found in style["controlled"].items()
        for name, one in found["coefficients"].items()
    ]
    split = [[name, number(value)] for name, value in style["by_length"].items()]
    split += [
        [f"{name} by level", number(style["by_level"][name])] for name in ("within", "hard", "easy")
    ]
    title = "Style control: this fits style beside the margin, it does not remove it"
    return [
        Grid(title, ("normalised as", "fit", "accuracy", "loss, nats"), rows),
        Grid(
            "Its coefficients, per standard deviation",
            ("normalised as", "feature", "coefficient", "95 % interval"),
            weights,
        ),
        *(
            [Grid("What forbids reading them", ("normalised as", "warning"), notes)]
            if notes
            else []
        ),
        Grid("Accuracy by style", ("pairs", "accuracy"), split),
    ]


@dataclass(frozen=True)
class Pairs:
    """The pairs of one checkpoint on one benchmark; every array has shape (pairs,)."""

    chosen: Array
    rejected: Array
    strength: Array
    weight: Array
    length_gap: Array | None
    """Characters of the chosen minus those of the rejected; None where the texts are not known."""
    cluster: list[str]
    texts: list[tuple[str, str, str, str]] | None
    """Item, prompt, chosen and rejected text."""

    def worst(self) -> list[Example]:
        """The pairs that were judged wrong by the widest margin, one of an item."""
        if self.texts is None:
            return []
        found: dict[str, Example] = {}
        for place in np.argsort(self.chosen - self.rejected, kind="stable"):
            item, prompt, chosen, rejected = self.texts[place]
            if self.chosen[place] >= self.rejected[place] or len(found) == WORST:
                break
            title = (
                f"{item}: the better response has {self.chosen[place]:+.2f}, the worse"
                f" {self.rejected[place]:+.2f}"
            )
            found.setdefault(
                item, Example(title, _short(prompt, end=True), _short(chosen), _short(rejected))
            )
        return list(found.values())


def _short(text: str, *, end: bool = False) -> str:
    """The beginning of a text, or its end."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"... {text[-SHOWN_CHARACTERS:]}" if end else f"{text[:SHOWN_CHARACTERS]} ..."


@dataclass(frozen=True)
class _Tables:
    """The tables of a results folder, by benchmark, item and response."""

    items: dict[tuple[str, str, str], dict[int, Json]]
    preferences: dict[str, list[Json]]
    rewards: dict[tuple[str, str], dict[tuple[str, str, int], float]]

    @classmethod
    def read(cls, path: Path) -> "_Tables":
        items: dict[tuple[str, str, str], dict[int, Json]] = {}
        for row in parquet.read_rows(path / "items.parquet"):
            items.setdefault((row["benchmark"], row["subset"], row["item"]), {})[
                row["response"]
            ] = row
        preferences: dict[str, list[Json]] = {}
        for row in parquet.read_rows(path / "preferences.parquet"):
            preferences.setdefault(row["benchmark"], []).append(row)
        rewards: dict[tuple[str, str], dict[tuple[str, str, int], float]] = {}
        for row in parquet.read_rows(path / "rewards.parquet"):
            rewards.setdefault((row["checkpoint"], row["benchmark"]), {})[
                row["subset"], row["item"], row["response"]
            ] = row["reward"]
        return cls(items, preferences, rewards)

    def pairs(self, checkpoint: str, benchmark: str) -> Pairs:
        mine, reward = self.preferences[benchmark], self.rewards[checkpoint, benchmark]
        values = [
            np.array([reward[row["subset"], row["item"], row[side]] for row in mine])
            for side in ("chosen", "rejected")
        ]
        strength, weight = (
            np.array([row[key] for row in mine], dtype=np.float64) for key in ("strength", "weight")
        )
        known = [self.items[benchmark, row["subset"], row["item"]] for row in mine]
        clusters = [item[0]["prompt_id"] for item in known]
        if any(item[0]["text"] is None for item in known):
            return Pairs(values[0], values[1], strength, weight, None, clusters, None)
        sides = [
            [item[row[side]] for item, row in zip(known, mine, strict=True)]
            for side in ("chosen", "rejected")
        ]
        texts = [
            (row["item"], item[0]["prompt"], a["text"], b["text"])
            for row, item, a, b in zip(mine, known, *sides, strict=True)
        ]
        gap = np.array(
            [a["characters"] - b["characters"] for a, b in zip(*sides, strict=True)],
            dtype=np.float64,
        )
        return Pairs(values[0], values[1], strength, weight, gap, clusters, texts)


def _pair_figures(benchmark: str, pairs: Pairs) -> list[Shown]:
    margin = pairs.chosen - pairs.rejected
    credit = bradley_terry.pair_credits(torch.from_numpy(margin)).numpy()
    shown = [
        Shown(
            plots.histogram(
                f"Rewards on {benchmark}", pairs.chosen.tolist(), pairs.rejected.tolist()
            ),
            "One count per pair; only differences at one prompt mean anything.",
        )
    ]
    if len(np.unique(pairs.strength)) > 1:
        gaps = _strengths(pairs.strength)
        bins = _bins(gaps, margin, pairs, shares=False)
        shown.append(
            Shown(
                plots.binned(
                    f"Margin against strength on {benchmark}",
                    bins,
                    x="gap of votes or ratings",
                    y="reward margin",
                    chance=0.0,
                ),
                "Mean margin with its 95 % interval: a clearer vote should give a wider margin.",
            )
        )
    if pairs.length_gap is None:
        return shown
    edges = np.unique(np.quantile(pairs.length_gap, [0.2, 0.4, 0.6, 0.8]))
    place = np.searchsorted(edges, pairs.length_gap, side="right")
    labels = [f"<{edges[0]:+.0f}", *(f"<{edge:+.0f}" for edge in edges[1:]), f">={edges[-1]:+.0f}"]
    bins = _bins(
        [(label, place == i) for i, label in enumerate(labels)], credit, pairs, shares=True
    )
    x = "characters of the chosen minus the rejected"
    shown.append(
        Shown(
            plots.binned(
                f"Accuracy against length on {benchmark}", bins, x=x, y="accuracy", chance=0.5
            ),
            "A model that only likes long answers fails on the left.",
        )
    )
    return shown


def _strengths(strength: Array) -> list[tuple[str, NDArray[np.bool_]]]:
    """Bins of gaps: of votes or whole ratings as they are, else fifths."""
    if np.all(strength == np.round(strength)):
        edges = [(1, 2, "1"), (2, 3, "2"), (3, 5, "3-4"), (5, 10, "5-9"), (10, np.inf, "10+")]
        return [(name, (strength >= low) & (strength < high)) for low, high, name in edges]
    cuts = [-np.inf, *np.unique(np.quantile(strength, [0.2, 0.4, 0.6, 0.8])), np.inf]
    return [
        (f"<{high:.2g}" if high < np.inf else f">={low:.2g}", (strength >= low) & (strength < high))
        for low, high in pairwise(cuts)
    ]


def _bins(
    masks: Sequence[tuple[str, NDArray[np.bool_]]], values: Array, pairs: Pairs, *, shares: bool
) -> list[Bin]:
    clusters = np.array(pairs.cluster)
    return [
        Bin(
            label,
            float(np.average(values[mask], weights=pairs.weight[mask])),
            clustered_interval(
                values[mask], pairs.weight[mask], clusters[mask], shares=shares, resamples=2000
            ),
            int(mask.sum()),
        )
        for label, mask in masks
        if mask.any()
    ]


def _win_rates(path: Path, found: Mapping[str, Json]) -> Section:
    rows = []
    for generator, one in found.items():
        for benchmark, result in one.get("win_rates", {}).items():
            controlled = result["length_controlled"] or {}
            numbers = [number(result["style_controlled"]), number(controlled.get("win_rate"))]
            rows.append(
                [
                    generator,
                    benchmark,
                    number(result["win_rate"]),
                    interval(result["interval"]),
                    *numbers,
                    f"{result['verdicts']:,}",
                ]
            )
    head = (
        "generator",
        "judged on",
        "win rate",
        "95 % interval",
        "style-controlled",
        "length-controlled",
        "verdicts",
    )
    text = (
        "Win rates against the judge's baseline; a tie counts half, and Arena-Hard's strong"
        " verdicts three times."
    )
    return Section(title=f"Win rates: {path.name}", text=text, tables=[Grid("", head, rows)])
