"""Threads become preference groups: two passes, the first learns from all threads, the second makes the groups of each table."""

import csv
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.formats import console, folders
from worldpm.formats.engine import Engine
from worldpm.parts.group_rules import GroupRules

if TYPE_CHECKING:
    import pyarrow as pa

    from worldpm.parts.grouping import Learned
    from worldpm.parts.thread_batches import Made, Seen, Sieves

logger = logging.getLogger(__name__)
Json = dict[str, Any]

THREADS_TO_LEARN_FROM = 20_000
"""Of a site, for the noise of its votes: one thread in so many, about this number to twice it."""
BESIDE = ("credits", "overlaps", "rejects")
"""What is written of each table beside its groups."""


@dataclass(frozen=True, kw_only=True)
class Config(GroupRules):
    """Make preference groups of threads."""

    threads: Positional[tuple[Path, ...]]
    """Folders written by `worldpm ingest` or `worldpm simulate`."""
    out: Path
    """Folder to write."""
    decontaminate: tuple[str, ...] = ()
    """Benchmarks by name or NAME=PLACE, or files of JSON, CSV or Parquet rows: groups with 13 words in a row of theirs are told."""
    contaminated: Literal["drop", "report"] = "drop"
    """What happens to such groups; `contamination.jsonl` names them all."""
    benchmarks: Path = Path("benchmarks")
    """Folder that holds one folder per benchmark."""
    filter_with: str | None = None
    """A reward model; training pairs that it contradicts are dropped. It injects that model's taste: the paper advises against it."""
    filter_margin: float = 0.0
    """Logits by which it must prefer the rejected response."""
    filter_keep: Literal["agreed", "contradicted"] = "agreed"
    """`contradicted` keeps the pairs that would be dropped, and no others: trained on them, a model shows what the filter injects."""
    engine: Engine = "duckdb"
    """What works on the texts and finds near-duplicates among them; the rows are the same."""
    workers: int | None = None
    """Processes that work on the texts; 0 does it in this one, as --filter-with always does. One a core for large tables unless set."""
    rejects: bool = False
    """Also write what was dropped, with the reason, to `rejects.jsonl`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threads:
            raise ConfigError("no threads given: name a folder that `worldpm ingest` wrote")
        if self.filter_margin < 0:
            raise ConfigError(f"--filter-margin is {self.filter_margin}; it must not be negative")
        if (self.workers or 0) < 0:
            raise ConfigError(f"--workers is {self.workers}; it must not be negative")
        if (self.filter_margin or self.filter_keep != "agreed") and not self.filter_with:
            raise ConfigError("--filter-margin and --filter-keep say how --filter-with filters; name its model")
        if self.contaminated != "drop" and not self.decontaminate:
            raise ConfigError("--contaminated says what becomes of overlaps with --decontaminate; name its texts")


def run(config: Config) -> None:
    """Write one table of groups per table of threads, the credits due, and what was counted and dropped on the way."""
    from worldpm.formats import tables

    for folder in config.threads:
        folders.manifest(folder, made_by="ingest|simulate")
    paths = tables.paths_of(*config.threads)
    names = Counter(path.name for path in paths)
    if twice := [name for name, n in names.items() if n > 1]:
        raise ConfigError(f"{', '.join(twice)} stands in more than one folder of threads; one site may come in only once")
    sieves, inputs = _sieves(config)
    inputs = [folders.describe(path) for path in config.threads] + inputs
    output = folders.begin(config.out, step="group", config=_settings(config), inputs=inputs)
    if output is None:
        return
    with output:
        learned = _learn(output, paths, config)
        counts, drops = {}, {}
        for path in paths:
            kept = output.part(path.name, partial(_group_table, output, path, config, learned[path.stem], sieves))
            counts[path.stem], drops[path.stem] = kept["counts"], kept["drops"]
        wanted = {"ATTRIBUTION.csv": "credits"} | ({"contamination.jsonl": "overlaps"} if config.decontaminate else {})
        for name, what in (wanted | ({"rejects.jsonl": "rejects"} if config.rejects else {})).items():
            output.part(name, partial(_joined, what, [_beside(output, path, what) for path in paths]))
        _report(counts, drops, output)
        output.finish(counts=counts, drops=drops)


def _settings(config: Config) -> Json:
    rules = {name: value for name, value in asdict(config).items() if name in GroupRules.__dataclass_fields__}
    if config.decontaminate:
        rules |= {"decontaminate": list(config.decontaminate), "contaminated": config.contaminated}
    if config.filter_with:
        rules |= {"filter_with": Path(config.filter_with).name, "filter_margin": config.filter_margin, "filter_keep": config.filter_keep}
    return rules | ({"rejects": True} if config.rejects else {})


def _sieves(config: Config) -> "tuple[Sieves, list[Json]]":
    """The index of benchmarks and the reward model, where they are asked for, and their descriptions as inputs."""
    from worldpm.parts.thread_batches import Sieves

    inputs: list[Json] = []
    index, scorer = None, None
    if config.decontaminate:
        from worldpm.parts.benchmarks import catalogue
        from worldpm.parts.contamination import Index, texts_in, texts_of

        files = [Path(word) for word in config.decontaminate if Path(word).is_file()]
        if twice := [name for name, n in Counter(path.name for path in files).items() if n > 1]:
            raise ConfigError(f"--decontaminate: two files are called {twice[0]}, by which overlaps are told; rename one")
        named = catalogue.find([word for word in config.decontaminate if not Path(word).is_file()], config.benchmarks)
        read = {one.name: one.items() for one in named}
        index = Index({**{name: texts_of(items) for name, items in read.items()}, **{path.name: texts_in(path) for path in files}})
        inputs += [catalogue.describe(name, items) for name, items in read.items()]
        inputs += [folders.describe(path) for path in files]
    if config.filter_with:
        from worldpm.parts import model_sources
        from worldpm.parts.scorer import Scorer

        inputs.append(model_sources.fingerprint(model_sources.find(config.filter_with)))
        scorer = Scorer.load(config.filter_with, cut=True)
    contradicted = config.filter_keep == "contradicted"
    return Sieves(index, config.contaminated == "drop", scorer, config.filter_margin, contradicted, config.rejects), inputs


def _learn(output: folders.Output, paths: Sequence[Path], config: Config) -> "dict[str, Learned]":
    """What only all threads together tell: the noise of votes, near-duplicates, the dates of splits, the share of close votes."""
    from worldpm.parts import near_duplicates, splits
    from worldpm.parts.grouping import Learned, controversial_kept
    from worldpm.parts.vote_noise import VoteNoise

    first = {path.stem: output.part(f"{folders.PROGRESS}/first/{path.stem}.bands", partial(_first_pass, path, config)) for path in paths}
    again: set[str] = set()
    if config.near_duplicates:
        again = near_duplicates.duplicates(
            [output.progress / "first" / f"{path.stem}.bands" for path in paths], spill=output.progress, engine=config.engine
        )
    dates = None
    if config.split_by == "time":
        dates = splits.cuts((date for path in paths for date in _dates(path)), config)
    kept = (
        controversial_kept([found["closeness"] for found in first.values()], config.controversial_share)
        if config.controversial_share
        else 1.0
    )
    own = {name: near_duplicates.among(again, output.progress / "first" / f"{name}.bands") for name in first}
    return {name: Learned(VoteNoise(**found["noise"]) if found["noise"] else None, own[name], dates, kept) for name, found in first.items()}


def _first_pass(path: Path, config: Config, aside: Path) -> Json:
    """The bands of a table's threads and answers into the file, and what its votes say."""
    from worldpm.formats import schema, tables
    from worldpm.parts import near_duplicates, thread_batches, vote_noise

    dated: list[vote_noise.Dated] = []
    closeness: Counter[str] = Counter()

    def bands() -> "Iterator[pa.RecordBatch]":
        see = partial(thread_batches.see, rules=_rules(config), one_in=max(1, tables.count_rows(path) // THREADS_TO_LEARN_FROM))
        found: Iterator[Seen] = tables.map_batches(path, schema.THREADS, see, workers=_workers(path, config), engine=config.engine)
        with console.progress(f"learn from {path.stem}", total=tables.count_rows(path)) as advance:
            for seen in found:
                dated.extend(seen.dated)
                closeness.update(seen.closeness)
                advance(seen.threads)
                yield seen.bands

    count = tables.write_parquet(aside, bands(), near_duplicates.SCHEMA)
    noise = vote_noise.fit(dated)._asdict() if config.rule == "default" else None
    return {"texts": count, "noise": noise, "closeness": dict(closeness)}


def _rules(config: Config) -> GroupRules:
    return GroupRules(**{name: getattr(config, name) for name in GroupRules.__dataclass_fields__})


def _workers(path: Path, config: Config) -> int:
    from worldpm.formats.workers import workers_for

    return 0 if config.filter_with else workers_for(path.stat().st_size, config.workers)


def _dates(path: Path) -> Iterator[float]:
    from worldpm.formats import schema, tables

    return (row["created"].timestamp() for row in tables.read_rows(path, schema.only(schema.THREADS, ["created"])))


def _beside(output: folders.Output, path: Path, what: str) -> Path:
    """Where a table's credits, overlaps and rejects wait to be joined with the others'."""
    return output.progress / f"{path.stem}.{what}"


def _group_table(output: folders.Output, path: Path, config: Config, learned: "Learned", sieves: "Sieves", aside: Path) -> Json:
    """The groups of one table into the file, and beside it who is to be credited, what overlaps, and what was dropped."""
    from worldpm.formats import schema, tables
    from worldpm.parts import thread_batches

    counts: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    make = partial(thread_batches.make, rules=_rules(config), learned=learned, sieves=sieves)
    engine: Engine = "duckdb" if config.filter_with else config.engine  # a model stays in this process
    found: Iterator[Made] = tables.map_batches(path, schema.THREADS, make, workers=_workers(path, config), engine=engine)

    def groups() -> "Iterator[pa.RecordBatch]":
        with ExitStack() as stack:
            beside = {what: stack.enter_context(_beside(output, path, what).open("w", encoding="utf-8", newline="")) for what in BESIDE}
            advance = stack.enter_context(console.progress(f"group {path.stem}", total=tables.count_rows(path)))
            for made in found:
                counts.update(made.counts)
                drops.update(made.drops)
                for what, file in beside.items():
                    file.write(getattr(made, what))
                advance(made.counts["threads"])
                yield made.groups

    tables.write_parquet(aside, groups(), schema.GROUPS)
    noise = {f"vote noise: {name}": value for name, value in learned.noise._asdict().items() if name != "now"} if learned.noise else {}
    return {"counts": dict(sorted(counts.items())) | noise, "drops": {reason: n for reason, n in sorted(drops.items()) if n}}


def _joined(what: str, pieces: Sequence[Path], aside: Path) -> Json:
    from worldpm.parts import thread_batches

    with aside.open("w", encoding="utf-8", newline="") as file:
        if what == "credits":
            csv.writer(file).writerow(thread_batches.CREDIT)
        for piece in pieces:
            with piece.open(encoding="utf-8", newline="") as lines:
                file.writelines(lines)
    return {"bytes": aside.stat().st_size}


def _report(counts: dict[str, dict[str, int]], drops: dict[str, dict[str, int]], output: folders.Output) -> None:
    for site, count in counts.items():
        made = sum(n for name, n in count.items() if name.endswith(" groups"))
        pairs = sum(n for name, n in count.items() if name.endswith(" pairs"))
        logger.info("%s: %d threads became %d groups with %d pairs", site, count.get("threads", 0), made, pairs)
    if not any(name.endswith(" groups") for count in counts.values() for name in count):
        reasons: Counter[str] = Counter()
        for one in drops.values():
            reasons.update(one)
        output.discard()
        told = "; ".join(f"{reason}: {number:,}" for reason, number in reasons.most_common(3)) or "no thread came"
        raise ConfigError(f"no group is left, so there is nothing to learn from ({told}); add other sites, or loosen the rules")
