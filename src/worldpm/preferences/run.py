"""Make preference groups from threads in two passes: the first learns from all threads, the second
makes the groups of each table."""

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from worldpm import console
from worldpm.benchmarks import catalogue
from worldpm.errors import ConfigError
from worldpm.model import sources
from worldpm.options.group import GroupOptions, GroupRules
from worldpm.options.shared import Engine, command_of
from worldpm.preferences import (
    cleaning,
    dataset_card,
    filter_rewards,
    near_duplicates,
    repeats,
    splits,
    thread_batches,
    vote_noise,
)
from worldpm.preferences.contamination import Index, texts_in
from worldpm.preferences.grouping import Learned, controversial_kept
from worldpm.preferences.outcomes import FittedNoise, GroupCounts
from worldpm.preferences.thread_batches import BatchEvidence, BatchGroups, Sieves
from worldpm.preferences.vote_noise import VoteNoise
from worldpm.scoring.peers import Peers, launched
from worldpm.storage import folders, parquet, schema, tables
from worldpm.storage.json_files import Plain
from worldpm.storage.manifest import PROGRESS, Input, describe, read_manifest
from worldpm.storage.workers import workers_for

logger = logging.getLogger(__name__)

META = re.compile(
    r"(?:^|\.)meta\.(?:stackexchange|stackoverflow|serverfault|superuser|askubuntu)\.com$"
    r"|(?:^|\.)meta\.mathoverflow\.net$"
)
"""Names of sites about the policy of another site."""
THREADS_TO_LEARN_FROM = 20_000
"""The noise of a site's votes is learned from about this number of threads, up to twice of it."""

PROMPTS_OF_LANGUAGES = 300
"""Prompts of each table whose language is detected for the card."""


@dataclass(frozen=True)
class FirstPass:
    """Findings of the first pass in a table of threads."""

    texts: int
    """Rows of its table of bands."""
    noise: VoteNoise | None
    """Noise of its votes; None under rules that give no probabilities."""
    closeness: dict[str, int]
    """Pairs by the closeness of their votes; empty without --controversial-share."""


@dataclass(frozen=True)
class TableRecord:
    """Entry of the manifest for a table of groups."""

    counts: GroupCounts
    drops: dict[str, int]
    """Dropped threads, answers and pairs by reason; reasons without any are omitted."""


class SideFiles(NamedTuple):
    """Files of a table beside its groups, which are joined when all tables are done."""

    credits: Path
    """Authors to credit, as CSV without a header."""
    overlaps: Path
    """Overlaps with benchmarks, as lines of JSON."""
    rejects: Path
    """Dropped threads and answers, as lines of JSON."""

    @classmethod
    def of(cls, output: folders.Output, table: Path) -> "SideFiles":
        """The files of a table of threads."""
        return cls(*(output.progress / f"{table.stem}.{kind}" for kind in cls._fields))


def run(options: GroupOptions) -> None:
    """Write one table of groups per table of threads, with the credits due, and with counts and
    drops."""
    paths = _tables(options)
    site_splits: dict[str, splits.Split] = {}
    if options.split_by == "site":
        site_splits = splits.of_sites((path.stem for path in paths), options)
    peers = _peers(options)
    sieves, inputs = _sieves(options)
    output = _begin(options, inputs) if peers.is_first else None
    if not peers.of_first(output is not None):
        return
    if output is None:
        output = folders.beside(options.out)

    with output:
        learned: dict[str, Learned] = {}
        if peers.is_first:
            learned = {
                name: replace(facts, site_split=site_splits.get(name))
                for name, facts in _learn(output, paths, options).items()
            }
        if options.filter_with:
            learned = peers.of_first(learned)
            filter_rewards.score(output, paths, options, _rules(options), learned, sieves, peers)
            peers.wait()
        if peers.is_first:
            _make(output, paths, options, learned, sieves)


def _peers(options: GroupOptions) -> Peers:
    """The processes that share the work of --filter-with."""
    if launched() > 1 and not options.filter_with:
        raise ConfigError(
            f"{launched()} processes share only the work of --filter-with. Run `worldpm group`"
            " without a launcher, or set --workers."
        )
    return Peers.here()


def _begin(options: GroupOptions, inputs: Sequence[Input]) -> folders.Output | None:
    return folders.begin(
        options.out,
        step="group",
        config=_settings(options),
        inputs=[*(describe(path) for path in options.threads), *inputs],
        command=command_of("group", options),
    )


def _make(
    output: folders.Output,
    paths: Sequence[Path],
    options: GroupOptions,
    learned: Mapping[str, Learned],
    sieves: Sieves,
) -> None:
    """Write the groups of all tables, and the files about them."""
    records: dict[str, TableRecord] = {}
    for path in paths:
        build = partial(_group_table, output, path, options, learned[path.stem], sieves)
        records[path.stem] = msgspec.convert(output.part(path.name, build), TableRecord)

    _join_side_files(output, paths, options)
    _log(records)
    _check_groups(records, output)
    _warn_of_empty_splits(records, options)
    output.write(dataset_card.FILE, _card(output, records).encode())
    counts = {site: asdict(record.counts) for site, record in records.items()}
    output.finish(counts=counts, drops={site: record.drops for site, record in records.items()})


def _tables(options: GroupOptions) -> list[Path]:
    """The tables of threads, each site once, after --meta."""
    for folder in options.threads:
        read_manifest(folder, made_by="ingest|simulate")

    paths = parquet.paths_of(*options.threads)
    repeated = _repeated(path.name for path in paths)
    if repeated:
        raise ConfigError(
            f"{', '.join(repeated)}: in more than one folder of threads. Give each site once."
        )

    if options.meta != "keep":
        only = options.meta == "only"
        paths = [path for path in paths if (META.search(path.stem) is not None) == only]
    if not paths:
        raise ConfigError(f"--meta {options.meta}: no site is left. Name other threads.")
    return paths


def _repeated(names: Iterator[str]) -> list[str]:
    return [name for name, number in Counter(names).items() if number > 1]


def _settings(options: GroupOptions) -> Plain:
    """Settings for the manifest: the rules, and the sieves in use."""
    settings: dict[str, object] = asdict(_rules(options))
    if options.decontaminate:
        settings["decontaminate"] = list(options.decontaminate)
        settings["contaminated"] = options.contaminated
    if options.filter_with:
        settings["filter_with"] = Path(options.filter_with).name
        settings["filter_margin"] = options.filter_margin
        settings["filter_keep"] = options.filter_keep
    if options.rejects:
        settings["rejects"] = True
    if options.meta != "keep":
        settings["meta"] = options.meta
    return settings


def _rules(options: GroupOptions) -> GroupRules:
    """The rules alone, which workers need."""
    return GroupRules(**{field.name: getattr(options, field.name) for field in fields(GroupRules)})


def _sieves(options: GroupOptions) -> tuple[Sieves, list[Input]]:
    """The index of benchmarks, if the user named some, and the descriptions of benchmarks and of
    the reward model as inputs."""
    index, inputs = _index(options) if options.decontaminate else (None, [])
    if options.filter_with:
        inputs = [*inputs, sources.fingerprint(sources.find(options.filter_with))]
    drops = options.contaminated == "drop"
    return Sieves(index, drops, rejects=options.rejects), inputs


def _index(options: GroupOptions) -> tuple[Index, list[Input]]:
    """The texts of --decontaminate, and their descriptions as inputs."""
    files = [Path(name) for name in options.decontaminate if Path(name).is_file()]
    repeated = _repeated(path.name for path in files)
    if repeated:
        raise ConfigError(
            f"--decontaminate: two files are called {repeated[0]}, and overlaps are reported under"
            " that name. Rename one."
        )

    names = [name for name in options.decontaminate if not Path(name).is_file()]
    benchmarks = {
        benchmark.name: benchmark.items() for benchmark in catalogue.find(names, options.benchmarks)
    }
    index = Index({**benchmarks, **{path.name: texts_in(path) for path in files}})
    inputs = [catalogue.describe(name, items) for name, items in benchmarks.items()]
    return index, inputs + [describe(path) for path in files]


def _learn(
    output: folders.Output, paths: Sequence[Path], options: GroupOptions
) -> dict[str, Learned]:
    """Facts that only all threads together show, for each table: the noise of its votes, its
    near-duplicates, the dates of splits, the share of close votes."""
    bands = {path.stem: f"{PROGRESS}/first/{path.stem}.bands" for path in paths}
    first: dict[str, FirstPass] = {}
    for path in paths:
        answers = _answers_of(output, path)
        result = output.part(bands[path.stem], partial(_first_pass, path, answers, options))
        first[path.stem] = msgspec.convert(result, FirstPass)

    duplicates: set[str] = set()
    if options.near_duplicates:
        duplicates = near_duplicates.duplicates(
            [output.path / name for name in bands.values()],
            spill=output.progress,
            engine=options.engine,
        )

    dates = splits.cuts(_dates(paths), options) if options.split_by == "time" else None
    kept_share = 1.0
    if options.controversial_share:
        closeness = [learned.closeness for learned in first.values()]
        kept_share = controversial_kept(closeness, options.controversial_share)

    repeated = frozenset[int]()
    if not options.keep_bots:
        answers_of_all = [_answers_of(output, path) for path in paths]
        repeated = repeats.among(answers_of_all, spill=output.progress, engine=options.engine)

    # Each table gets its own duplicates only: the set is sent to every worker.
    return {
        name: Learned(
            noise=learned.noise,
            duplicates=near_duplicates.among(duplicates, output.path / bands[name]),
            repeats=repeated,
            dates=dates,
            controversial_kept=kept_share,
        )
        for name, learned in first.items()
    }


def _answers_of(output: folders.Output, path: Path) -> Path:
    """The file with the answers of a table, as `repeats.SCHEMA`."""
    return output.progress / "first" / f"{path.stem}.answers"


def _first_pass(path: Path, answers_path: Path, options: GroupOptions, aside: Path) -> Plain:
    """Write the bands of a table's threads and answers into the file, and its answers into
    another, and return the findings about its votes."""
    dated: list[vote_noise.Dated] = []
    closeness: Counter[str] = Counter()

    def bands(answers: pq.ParquetWriter) -> Iterator[pa.RecordBatch]:
        rows = parquet.count_rows(path)
        see = partial(
            thread_batches.see,
            rules=_rules(options),
            one_in=max(1, rows // THREADS_TO_LEARN_FROM),
        )
        batches: Iterator[BatchEvidence] = tables.map_batches(
            path, schema.THREADS, see, workers=_workers(path, options), engine=options.engine
        )

        with console.progress(f"learn from {path.stem}", total=rows) as advance:
            for batch in batches:
                dated.extend(batch.dated)
                closeness.update(batch.closeness)
                answers.write_batch(batch.answers)
                advance(batch.threads)
                yield batch.bands

    answers_path.parent.mkdir(exist_ok=True)
    with pq.ParquetWriter(answers_path, repeats.SCHEMA, compression="zstd") as answers:
        texts = parquet.write_parquet(aside, bands(answers), near_duplicates.SCHEMA)
    # The other rules are from papers, which treat every pair as certain.
    noise = vote_noise.fit(dated) if options.rule == "default" else None
    return asdict(FirstPass(texts, noise, dict(closeness)))


def _workers(path: Path, options: GroupOptions) -> int:
    """Processes for a table. A filter reads the groups in order, so one process filters them."""
    return 0 if options.filter_with else workers_for(path.stat().st_size, options.workers)


def _dates(paths: Sequence[Path]) -> Iterator[float]:
    """The dates of all threads, in seconds since the epoch."""
    for path in paths:
        for row in parquet.read_rows(path, ["created"]):
            yield row["created"].timestamp()


def _group_table(
    output: folders.Output,
    path: Path,
    options: GroupOptions,
    learned: Learned,
    sieves: Sieves,
    aside: Path,
) -> Plain:
    """Write the groups of one table into the file `aside`, and its side files."""
    if options.filter_with:
        sieves = replace(sieves, filter=filter_rewards.filter_of(output, path, options))
    make = partial(thread_batches.make, rules=_rules(options), learned=learned, sieves=sieves)
    engine: Engine = "duckdb" if options.filter_with else options.engine
    batches: Iterator[BatchGroups] = tables.map_batches(
        path, schema.THREADS, make, workers=_workers(path, options), engine=engine
    )

    counts, drops = GroupCounts(), Counter[str]()

    def groups() -> Iterator[pa.RecordBatch]:
        for batch in _with_side_files(batches, path, SideFiles.of(output, path)):
            counts.add(batch.counts)
            drops.update(batch.drops)
            yield batch.groups

    parquet.write_parquet(aside, groups(), schema.GROUPS)
    counts.vote_noise = _fitted(learned.noise)
    counts.languages = _languages(aside)
    dropped = {reason: number for reason, number in sorted(drops.items()) if number}
    return asdict(TableRecord(counts, dropped))


def _languages(table: Path) -> dict[str, int]:
    """The languages of a table's first prompts, for the card."""
    detected = Counter[str]()
    for group in islice(schema.read_groups(table), PROMPTS_OF_LANGUAGES):
        language = cleaning.language_of(group.prompt[0].content)
        if language is not None:
            detected[language.code] += 1
    return dict(detected)


def _with_side_files(
    batches: Iterator[BatchGroups], path: Path, files: SideFiles
) -> Iterator[BatchGroups]:
    """Pass the batches of a table on, and write its side files and progress."""
    with ExitStack() as stack:
        # newline="": the lines of CSV have their line ends already.
        credit_lines, overlap_lines, reject_lines = (
            stack.enter_context(file.open("w", encoding="utf-8", newline="")) for file in files
        )
        advance = stack.enter_context(
            console.progress(f"group {path.stem}", total=parquet.count_rows(path))
        )

        for batch in batches:
            credit_lines.write(batch.credits)
            overlap_lines.write(batch.overlaps)
            reject_lines.write(batch.rejects)
            advance(batch.counts.threads)
            yield batch


def _fitted(noise: VoteNoise | None) -> FittedNoise | None:
    if noise is None:
        return None
    return FittedNoise(noise.age_power, noise.delay_power, noise.spread)


def _join_side_files(output: folders.Output, paths: Sequence[Path], options: GroupOptions) -> None:
    """Join the side files of all tables as files of the output."""
    files = [SideFiles.of(output, path) for path in paths]
    credit_files = [side.credits for side in files]
    output.part(dataset_card.CREDITS, partial(_join, thread_batches.CREDIT, credit_files))

    if options.decontaminate:
        overlap_files = [side.overlaps for side in files]
        output.part("contamination.jsonl", partial(_join, None, overlap_files))
    if options.rejects:
        reject_files = [side.rejects for side in files]
        output.part("rejects.jsonl", partial(_join, None, reject_files))


def _join(header: Sequence[str] | None, pieces: Sequence[Path], aside: Path) -> Plain:
    """Write the pieces one after another into the file, after a header of CSV if given."""
    with aside.open("w", encoding="utf-8", newline="") as file:
        if header is not None:
            csv.writer(file).writerow(header)
        for piece in pieces:
            with piece.open(encoding="utf-8", newline="") as lines:
                file.writelines(lines)

    return {"bytes": aside.stat().st_size}


def _log(records: Mapping[str, TableRecord]) -> None:
    for site, record in records.items():
        logger.info(
            "%s: %d threads became %d groups with %d pairs",
            site,
            record.counts.threads,
            record.counts.groups,
            record.counts.pairs,
        )


def _card(output: folders.Output, records: Mapping[str, TableRecord]) -> str:
    """The card of the folder, with which `datasets` and the hub read its tables."""
    drops = Counter[str]()
    for record in records.values():
        drops.update(record.drops)
    rules = dataset_card.Rules(output.run.config, drops)
    counts = [record.counts for record in records.values()]
    facts = dataset_card.facts([output.path], counts, [rules])
    return dataset_card.groups_card(facts)


def _warn_of_empty_splits(records: Mapping[str, TableRecord], options: GroupOptions) -> None:
    shares = {"validation": options.validation_share, "test": options.test_share}
    for split, share in shares.items():
        groups = sum(record.counts.splits[split].groups for record in records.values())
        if share and not groups:
            logger.warning(
                "the %s split is empty: no group of it is left. Add threads, or raise --%s-share.",
                split,
                split,
            )


def _check_groups(records: Mapping[str, TableRecord], output: folders.Output) -> None:
    """Raise an error if no group is left."""
    if any(record.counts.groups for record in records.values()):
        return

    drops: Counter[str] = Counter()
    for record in records.values():
        drops.update(record.drops)
    reasons = [f"{reason}: {number:,}" for reason, number in drops.most_common(3)]

    # A run with other rules or sites may use the folder.
    output.discard()
    raise ConfigError(
        "no group is left, so there is nothing to learn from"
        f" ({'; '.join(reasons) or 'the folder has no threads'}). Add other sites, or relax"
        " the rules."
    )
