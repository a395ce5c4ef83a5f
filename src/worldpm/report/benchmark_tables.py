"""Sections of a results folder: a comparison of all checkpoints, then each checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from worldpm import plots
from worldpm.benchmarks.measures import Comparison, Measures, PresetResult
from worldpm.benchmarks.metrics import NULLS
from worldpm.console import interval, number, probability
from worldpm.evaluation.console_tables import plain
from worldpm.evaluation.results import (
    CheckpointResult,
    Conditions,
    ResultTables,
    read_results,
)
from worldpm.plots import Dot
from worldpm.report.benchmark_details import accuracy_row, benchmark_fold
from worldpm.report.layout import Grid, Section, Shown
from worldpm.storage.manifest import Manifest

CONDITIONS = (
    "template_hash",
    "end_token",
    "dtype",
    "device",
    "attention",
    "max_length",
    "prompt_length",
    "refused_items",
    "truncated_share",
    "raw_rewards",
    "without_files",
)
"""Conditions that affect rewards, or numbers computed from them. Differences in them are shown."""
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
Checkpoints = Mapping[str, CheckpointResult]


def results(path: Path, manifest: Manifest) -> list[Section]:
    """An overview of all checkpoints, then a section for each."""
    content = read_results(path)
    sections = []
    if len(content.scored) < len(content.checkpoints):
        # Win rates come from files of judges, which have no rewards.
        sections.append(_win_rates(path, content.checkpoints))
    if len(content.scored) > 1:
        sections.append(_overview(path, content.scored, content.comparisons))

    if content.scored:
        # Read the tables once, because those of a large benchmark take seconds.
        tables = ResultTables.read(path)
        for name, checkpoint in content.scored.items():
            sections.append(_checkpoint(name, checkpoint, tables))
    return sections


def across(manifests: Mapping[Path, Manifest]) -> list[Section]:
    """A comparison of several results folders, with the differences in their conditions."""
    checkpoints = {
        f"{path.name}: {name}": checkpoint
        for path in manifests
        for name, checkpoint in read_results(path).scored.items()
    }
    # Checkpoints of a single folder are compared in its own section.
    if len(manifests) < 2 or len(checkpoints) < 2:
        return []

    warnings = [
        *_other_conditions(checkpoints),
        *_other_sizes(checkpoints),
        *_other_items(manifests),
    ]
    text = (
        "Intervals are those of single checkpoints. To test a difference, pass both checkpoints to"
        " one `worldpm evaluate`, which compares them pair by pair."
    )
    grids = [_by_benchmark(checkpoints)]
    if warnings:
        text += (
            " These folders were made under different conditions, so their differences are not only"
            " differences of models."
        )
        grids.append(Grid("Warnings", ("difference",), [[warning] for warning in warnings]))
    return [Section(title="Results folders side by side", text=text, tables=grids)]


def _benchmarks(checkpoints: Checkpoints) -> list[str]:
    """The benchmarks of all checkpoints, in order."""
    names = [name for checkpoint in checkpoints.values() for name in checkpoint.benchmarks]
    return list(dict.fromkeys(names))


def _other_conditions(checkpoints: Checkpoints) -> list[str]:
    """Conditions that affect rewards and differ between checkpoints."""
    differences = []
    # Compare as text, so that floats that differ only by rounding are equal.
    for key in CONDITIONS:
        values = {
            name: plain(getattr(checkpoint.conditions, key))
            for name, checkpoint in checkpoints.items()
        }
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{value} in {name}" for name, value in values.items())
            differences.append(f"{key.replace('_', ' ')}: {listed}")
    return differences


def _other_sizes(checkpoints: Checkpoints) -> list[str]:
    """Benchmarks whose numbers of items differ between checkpoints."""
    differences = []
    for benchmark in _benchmarks(checkpoints):
        sizes = {
            name: checkpoint.benchmarks[benchmark].items
            for name, checkpoint in checkpoints.items()
            if benchmark in checkpoint.benchmarks
        }
        # A part of the items gives another accuracy, even for the same model.
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{size:,} in {name}" for name, size in sizes.items())
            differences.append(f"items of {benchmark}: {listed}")
    return differences


def _other_items(manifests: Mapping[Path, Manifest]) -> list[str]:
    """Benchmarks whose items differ between folders."""
    folders_by_hash: dict[str, dict[str, list[str]]] = {}
    for path, manifest in manifests.items():
        for source in manifest.inputs:
            # Only benchmarks have items. The other inputs are models.
            if source.items is not None:
                hashes = folders_by_hash.setdefault(source.name, {})
                hashes.setdefault(source.sha256, []).append(path.name)

    differences = []
    for name, hashes in folders_by_hash.items():
        if len(hashes) > 1:
            sides = " against ".join(", ".join(names) for names in hashes.values())
            differences.append(f"the items of {name} differ: {sides}")
    return differences


def _overview(path: Path, checkpoints: Checkpoints, comparisons: Iterable[Comparison]) -> Section:
    benchmarks = _benchmarks(checkpoints)
    differences = _other_conditions(checkpoints)
    warnings = [Grid("Different conditions", ("difference",), [[text] for text in differences])]
    return Section(
        title=f"Checkpoints side by side: {path.name}",
        text=(
            "A difference is significant if its interval does not contain 0, and its p-value,"
            " corrected for the number of comparisons (Holm), is below 0.05. The correction for"
            " false discoveries finds more: about one in twenty of those below 0.05 is expected to"
            " be false. Detectable is the smallest true difference that a set of this size shows in"
            " 80 % of cases."
        ),
        wide=[
            _dots(checkpoints, benchmarks),
            *_style_over_checkpoints(checkpoints, benchmarks),
        ],
        tables=[
            *(warnings if differences else []),
            _by_domain(checkpoints),
            _by_benchmark(checkpoints),
            _differences(comparisons),
        ],
    )


def _dots(checkpoints: Checkpoints, benchmarks: Sequence[str]) -> Shown:
    dots = []
    for benchmark in benchmarks:
        for name, checkpoint in checkpoints.items():
            if result := checkpoint.benchmarks.get(benchmark):
                dots.append(Dot(f"{benchmark}: {name}", result.accuracy, result.interval, {}))
    return Shown(
        plots.accuracy_dots("Accuracy by benchmark", dots, width=9.0),
        "Dots with their 95 % intervals. Intervals of different checkpoints can overlap; the table"
        " of differences has the tests.",
    )


def _by_domain(checkpoints: Checkpoints) -> Grid:
    domains = [name for checkpoint in checkpoints.values() for name in checkpoint.domains]
    rows = []
    for domain in dict.fromkeys(domains):
        results = [checkpoint.domains.get(domain) for checkpoint in checkpoints.values()]
        # A checkpoint may lack a domain that another checkpoint has.
        cells = [number(result.accuracy if result else None) for result in results]
        rows.append([domain, *cells])
    title = "Accuracy by domain: plain means over benchmarks"
    return Grid(title, ("domain", *checkpoints), rows)


def _by_benchmark(checkpoints: Checkpoints) -> Grid:
    rows = []
    for name in _benchmarks(checkpoints):
        cells = [_cell(checkpoint.benchmarks.get(name)) for checkpoint in checkpoints.values()]
        rows.append([name, *cells])
    return Grid("Accuracy by benchmark", ("benchmark", *checkpoints), rows)


def _cell(measures: Measures | None) -> str:
    """The accuracy with its interval."""
    if measures is None:
        return "-"
    return f"{measures.accuracy:.3f} ({interval(measures.interval)})"


def _differences(comparisons: Iterable[Comparison]) -> Grid:
    head = (
        *("checkpoints", "benchmark", "difference", "95 % interval"),
        *("p (Holm)", "p (false discovery)", "detectable"),
    )
    rows = [
        [
            f"{comparison.first} - {comparison.second}",
            comparison.benchmark,
            f"{comparison.difference:+.3f}",
            interval(comparison.interval),
            probability(comparison.p_value_holm),
            probability(comparison.p_value_fdr),
            number(comparison.detectable),
        ]
        for comparison in comparisons
    ]
    return Grid("Differences", head, rows)


def _style_over_checkpoints(checkpoints: Checkpoints, benchmarks: Sequence[str]) -> list[Shown]:
    """Phi of length, and accuracy by length, over three or more checkpoints, in the user's
    order."""
    phi: dict[str, list[float]] = {}
    by_length: dict[str, list[float]] = {}
    for benchmark in benchmarks:
        results = [checkpoint.benchmarks.get(benchmark) for checkpoint in checkpoints.values()]
        styles = [result.style for result in results if result and result.style]
        # Two points show a difference, not a trend, and a gap would break the line.
        if len(checkpoints) < 3 or len(styles) < len(checkpoints):
            continue

        predictions = [style.phi["length"].prediction for style in styles]
        measured = [prediction for prediction in predictions if prediction is not None]
        # An unknown value would end the line early, so leave the line out.
        if len(measured) == len(predictions):
            phi[benchmark] = measured
        for side in ("chosen longer", "chosen shorter"):
            accuracies = [style.by_length[side] for style in styles]
            measured = [accuracy for accuracy in accuracies if accuracy is not None]
            if len(measured) == len(accuracies):
                by_length[f"{benchmark}, {side}"] = measured

    order = "Checkpoints are in the order in which they were named."
    names = list(checkpoints)
    shown = []
    if phi:
        svg = plots.lines("Phi of length", names, phi, y="phi")
        shown.append(Shown(svg, f"Correlation of predictions with length. {order}"))
    if by_length:
        svg = plots.lines("Accuracy by length", names, by_length, y="accuracy")
        caption = "A model that judges by length gains on one side and loses on the other. " + order
        shown.append(Shown(svg, caption))
    return shown


def _checkpoint(name: str, checkpoint: CheckpointResult, tables: ResultTables) -> Section:
    rows: list[tuple[str, str, Measures]] = []
    for benchmark, result in checkpoint.benchmarks.items():
        rows.append((benchmark, result.domain, result))
        # A single domain would repeat the row of the benchmark.
        if len(result.domains) > 1:
            for domain, measures in result.domains.items():
                rows.append((f"{benchmark}: {domain}", domain, measures))

    dots = [
        Dot(label, measures.accuracy, measures.interval, measures.nulls)
        for label, _, measures in rows
    ]
    presets = []
    for preset, preset_result in checkpoint.presets.items():
        presets += _preset(preset, preset_result)
    return Section(
        title=f"Results: {name}",
        text=(
            "In the accuracy, each thread counts about once, and a tie counts half. The interval is"
            " a bootstrap over prompts. Null baselines judge the same pairs: they prefer the longer"
            " response, the shorter, the earlier, the first in the set's order, or flip a coin."
            + "".join(
                f" Warning: {warning}." for warning in checkpoint.conditions.cut_warnings.values()
            )
        ),
        wide=[
            Shown(
                plots.accuracy_dots("Accuracy with null baselines", dots, width=9.0),
                "Open marks are null baselines. A model that does not beat them has learned nothing"
                " more than they know.",
            )
        ],
        tables=[
            Grid("", HEAD, [accuracy_row(*row) for row in rows]),
            _domains(checkpoint),
            *presets,
            _conditions(checkpoint.conditions),
        ],
        folds=[
            benchmark_fold(benchmark, HEAD, result, tables.pairs(name, benchmark))
            for benchmark, result in checkpoint.benchmarks.items()
        ],
    )


def _domains(checkpoint: CheckpointResult) -> Grid:
    rows = [
        [domain, f"{result.accuracy:.3f}", ", ".join(result.benchmarks)]
        for domain, result in checkpoint.domains.items()
    ]
    return Grid("Domains: plain means over benchmarks", ("domain", "accuracy", "benchmarks"), rows)


def _conditions(conditions: Conditions) -> Grid:
    rows = [
        [name.replace("_", " "), plain(value)]
        for name, value in vars(conditions).items()
        if value is not None
    ]
    return Grid("Conditions", ("condition", "value"), rows)


def _preset(name: str, result: PresetResult) -> list[Grid]:
    sets = []
    for domain, mean in result.domains.items():
        for test_set in mean.test_sets:
            measures = result.test_sets[test_set]
            sets.append([domain, test_set, _cell(measures), number(measures.loss_nats)])
    subtasks = [
        [benchmark, number(mean.accuracy), ", ".join(mean.test_sets)]
        for benchmark, mean in result.subtasks.items()
    ]
    set_head = ("domain", "test set", "accuracy", "loss, nats")
    return [
        Grid(f"Preset {name}: test sets by domain", set_head, sets),
        Grid(f"Preset {name}: subtasks", ("benchmark", "mean accuracy", "subtasks"), subtasks),
    ]


def _win_rates(path: Path, checkpoints: Checkpoints) -> Section:
    rows = []
    for generator, checkpoint in checkpoints.items():
        for benchmark, rate in checkpoint.win_rates.items():
            controlled = rate.length_controlled
            rows.append(
                [
                    generator,
                    benchmark,
                    number(rate.win_rate),
                    interval(rate.interval),
                    number(rate.style_controlled),
                    number(controlled.win_rate if controlled else None),
                    f"{rate.verdicts:,}",
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
        "Win rates against the judge's baseline. A tie counts half. Strong verdicts of Arena-Hard"
        " count three times."
    )
    return Section(title=f"Win rates: {path.name}", text=text, tables=[Grid("", head, rows)])
