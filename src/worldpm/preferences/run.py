"""Threads become preference groups: two passes, the first learns from all threads, the second makes
the groups of each table."""

import csv
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from worldpm import console
from worldpm.benchmarks import catalogue
from worldpm.errors import ConfigError
from worldpm.model import sources
from worldpm.options.group import GroupOptions, GroupRules
from worldpm.options.shared import Engine
from worldpm.preferences import near_duplicates, splits, thread_batches, vote_noise
from worldpm.preferences.contamination import Index, texts_in
from worldpm.preferences.grouping import Learned, controversial_kept
from worldpm.preferences.model_filter import ModelFilter
from worldpm.preferences.thread_batches import Made, Seen, Sieves
from worldpm.preferences.vote_noise import VoteNoise
from worldpm.scoring.scorer import Scorer
from worldpm.storage import folders, parquet, schema, tables
from worldpm.storage.workers import workers_for

logger = logging.getLogger(__name__)
Json = dict[str, Any]

THREADS_TO_LEARN_FROM = 20_000
"""Of a site, for the noise of its votes: one thread in so many, about this number to twice it."""
BESIDE = ("credits", "overlaps", "rejects")
"""What is written of each table beside its groups."""


def run(options: GroupOptions) -> None:
    """Write one table of groups per table of threads, the credits due, and what was counted and
    dropped on the way."""

    for folder in options.threads:
        folders.manifest(folder, made_by="ingest|simulate")
    paths = parquet.paths_of(*options.threads)
    names = Counter(path.name for path in paths)
    if twice := [name for name, n in names.items() if n > 1]:
        raise ConfigError(
            f"{', '.join(twice)} stands in more than one folder of threads; one site may come in"
            " only once"
        )
    sieves, inputs = _sieves(options)
    inputs = [folders.describe(path) for path in options.threads] + inputs
    output = folders.begin(options.out, step="group", config=_settings(options), inputs=inputs)
    if output is None:
        return
    with output:
        learned = _learn(output, paths, options)
        counts, drops = {}, {}
        for path in paths:
            kept = output.part(
                path.name, partial(_group_table, output, path, options, learned[path.stem], sieves)
            )
            counts[path.stem], drops[path.stem] = kept["counts"], kept["drops"]
        wanted = {"ATTRIBUTION.csv": "credits"} | (
            {"contamination.jsonl": "overlaps"} if options.decontaminate else {}
        )
        for name, what in (
            wanted | ({"rejects.jsonl": "rejects"} if options.rejects else {})
        ).items():
            output.part(
                name, partial(_joined, what, [_beside(output, path, what) for path in paths])
            )
        _report(counts, drops, output)
        output.finish(counts=counts, drops=drops)


def _settings(options: GroupOptions) -> Json:
    rules = {
        name: value
        for name, value in asdict(options).items()
        if name in GroupRules.__dataclass_fields__
    }
    if options.decontaminate:
        rules |= {
            "decontaminate": list(options.decontaminate),
            "contaminated": options.contaminated,
        }
    if options.filter_with:
        rules |= {
            "filter_with": Path(options.filter_with).name,
            "filter_margin": options.filter_margin,
            "filter_keep": options.filter_keep,
        }
    return rules | ({"rejects": True} if options.rejects else {})


def _sieves(options: GroupOptions) -> tuple[Sieves, list[Json]]:
    """The index of benchmarks and the reward model, where they are asked for, and their
    descriptions as inputs."""
    index, of_index = _index(options) if options.decontaminate else (None, [])
    model_filter, of_model = (
        _model_filter(options, options.filter_with) if options.filter_with else (None, [])
    )
    return (
        Sieves(index, options.contaminated == "drop", model_filter, options.rejects),
        of_index + of_model,
    )


def _index(options: GroupOptions) -> tuple[Index, list[Json]]:
    """The texts of --decontaminate, and their descriptions as inputs."""
    files = [Path(word) for word in options.decontaminate if Path(word).is_file()]
    if twice := [name for name, n in Counter(path.name for path in files).items() if n > 1]:
        raise ConfigError(
            f"--decontaminate: two files are called {twice[0]}, by which overlaps are told;"
            " rename one"
        )
    named = catalogue.find(
        [word for word in options.decontaminate if not Path(word).is_file()], options.benchmarks
    )
    benchmarks = {benchmark.name: benchmark.items() for benchmark in named}
    index = Index({**benchmarks, **{path.name: texts_in(path) for path in files}})
    inputs = [catalogue.describe(name, items) for name, items in benchmarks.items()]
    return index, inputs + [folders.describe(path) for path in files]


def _model_filter(options: GroupOptions, model: str) -> tuple[ModelFilter, list[Json]]:
    """The reward model of --filter-with, and its description as an input."""
    source = sources.find(model)
    found = ModelFilter(
        Scorer.load(source, cut=True), options.filter_margin, options.filter_keep == "contradicted"
    )
    return found, [sources.fingerprint(source)]


def _learn(
    output: folders.Output, paths: Sequence[Path], options: GroupOptions
) -> dict[str, Learned]:
    """What only all threads together tell: the noise of votes, near-duplicates, the dates of
    splits, the share of close votes."""

    first = {
        path.stem: output.part(
            f"{folders.PROGRESS}/first/{path.stem}.bands", partial(_first_pass, path, options)
        )
        for path in paths
    }
    again: set[str] = set()
    if options.near_duplicates:
        again = near_duplicates.duplicates(
            [output.progress / "first" / f"{path.stem}.bands" for path in paths],
            spill=output.progress,
            engine=options.engine,
        )
    dates = None
    if options.split_by == "time":
        dates = splits.cuts((date for path in paths for date in _dates(path)), options)
    kept = (
        controversial_kept(
            [found["closeness"] for found in first.values()], options.controversial_share
        )
        if options.controversial_share
        else 1.0
    )
    own = {
        name: near_duplicates.among(again, output.progress / "first" / f"{name}.bands")
        for name in first
    }
    return {
        name: Learned(
            VoteNoise(**found["noise"]) if found["noise"] else None, own[name], dates, kept
        )
        for name, found in first.items()
    }


def _first_pass(path: Path, options: GroupOptions, aside: Path) -> Json:
    """The bands of a table's threads and answers into the file, and what its votes say."""

    dated: list[vote_noise.Dated] = []
    closeness: Counter[str] = Counter()

    def bands() -> Iterator[pa.RecordBatch]:
        see = partial(
            thread_batches.see,
            rules=_rules(options),
            one_in=max(1, parquet.count_rows(path) // THREADS_TO_LEARN_FROM),
        )
        found: Iterator[Seen] = tables.map_batches(
            path, schema.THREADS, see, workers=_workers(path, options), engine=options.engine
        )
        with console.progress(f"learn from {path.stem}", total=parquet.count_rows(path)) as advance:
            for seen in found:
                dated.extend(seen.dated)
                closeness.update(seen.closeness)
                advance(seen.threads)
                yield seen.bands

    count = parquet.write_parquet(aside, bands(), near_duplicates.SCHEMA)
    noise = vote_noise.fit(dated)._asdict() if options.rule == "default" else None
    return {"texts": count, "noise": noise, "closeness": dict(closeness)}


def _rules(options: GroupOptions) -> GroupRules:
    return GroupRules(**{name: getattr(options, name) for name in GroupRules.__dataclass_fields__})


def _workers(path: Path, options: GroupOptions) -> int:

    return 0 if options.filter_with else workers_for(path.stat().st_size, options.workers)


def _dates(path: Path) -> Iterator[float]:

    return (
        row["created"].timestamp()
        for row in parquet.read_rows(path, schema.only(schema.THREADS, ["created"]))
    )


def _beside(output: folders.Output, path: Path, what: str) -> Path:
    """Where a table's credits, overlaps and rejects wait to be joined with the others'."""
    return output.progress / f"{path.stem}.{what}"


def _group_table(
    output: folders.Output,
    path: Path,
    options: GroupOptions,
    learned: Learned,
    sieves: Sieves,
    aside: Path,
) -> Json:
    """The groups of one table into the file, and beside it who is to be credited, what overlaps,
    and what was dropped."""

    counts: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    make = partial(thread_batches.make, rules=_rules(options), learned=learned, sieves=sieves)
    engine: Engine = (
        "duckdb" if options.filter_with else options.engine
    )  # a model stays in this process
    found: Iterator[Made] = tables.map_batches(
        path, schema.THREADS, make, workers=_workers(path, options), engine=engine
    )

    def groups() -> Iterator[pa.RecordBatch]:
        with ExitStack() as stack:
            beside = {
                what: stack.enter_context(
                    _beside(output, path, what).open("w", encoding="utf-8", newline="")
                )
                for what in BESIDE
            }
            advance = stack.enter_context(
                console.progress(f"group {path.stem}", total=parquet.count_rows(path))
            )
            for made in found:
                counts.update(made.counts)
                drops.update(made.drops)
                for what, file in beside.items():
                    file.write(getattr(made, what))
                advance(made.counts["threads"])
                yield made.groups

    parquet.write_parquet(aside, groups(), schema.GROUPS)
    noise = (
        {
            f"vote noise: {name}": value
            for name, value in learned.noise._asdict().items()
            if name != "now"
        }
        if learned.noise
        else {}
    )
    return {
        "counts": dict(sorted(counts.items())) | noise,
        "drops": {reason: n for reason, n in sorted(drops.items()) if n},
    }


def _joined(what: str, pieces: Sequence[Path], aside: Path) -> Json:

    with aside.open("w", encoding="utf-8", newline="") as file:
        if what == "credits":
            csv.writer(file).writerow(thread_batches.CREDIT)
        for piece in pieces:
            with piece.open(encoding="utf-8", newline="") as lines:
                file.writelines(lines)
    return {"bytes": aside.stat().st_size}


def _report(
    counts: dict[str, dict[str, int]], drops: dict[str, dict[str, int]], output: folders.Output
) -> None:
    for site, count in counts.items():
        made = sum(n for name, n in count.items() if name.endswith(" groups"))
        pairs = sum(n for name, n in count.items() if name.endswith(" pairs"))
        logger.info(
            "%s: %d threads became %d groups with %d pairs",
            site,
            count.get("threads", 0),
            made,
            pairs,
        )
    if not any(name.endswith(" groups") for count in counts.values() for name in count):
        reasons: Counter[str] = Counter()
        for one in drops.values():
            reasons.update(one)
        output.discard()
        told = (
            "; ".join(f"{reason}: {number:,}" for reason, number in reasons.most_common(3))
            or "no thread came"
        )
        raise ConfigError(
            f"no group is left, so there is nothing to learn from ({told}); add other sites, or"
            " loosen the rules"
        )
