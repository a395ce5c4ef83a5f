"""Threads become preference groups: two passes, the first learns from all threads, the second makes the groups of each table."""

import csv
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.field.records import PreferenceGroup, Thread
from worldpm.formats import console, folders
from worldpm.formats.engine import Engine
from worldpm.parts.group_rules import Rules

if TYPE_CHECKING:
    from worldpm.parts.contamination import Index
    from worldpm.parts.grouping import Learned, Tally
    from worldpm.parts.scorer import Scorer

logger = logging.getLogger(__name__)
Json = dict[str, Any]

THREADS_TO_LEARN_FROM = 20_000
"""Of a site, for the noise of its votes: every so many-th thread by date, fewer than twice this number."""
GROUPS_AT_ONCE = 64
CREDIT = ("site", "group_id", "response_id", "author", "url", "licence")


@dataclass(frozen=True, kw_only=True)
class Config(Rules):
    """Make preference groups of threads."""

    threads: Positional[tuple[Path, ...]]
    """Folders written by `worldpm ingest` or `worldpm simulate`."""
    out: Path
    """Folder to write."""
    decontaminate: tuple[str, ...] = ()
    """Benchmarks by name or NAME=PLACE, or files of any texts: groups that have 13 words in a row in common with them are told."""
    contaminated: Literal["drop", "report"] = "drop"
    """What happens to such groups; `contamination.jsonl` names them all."""
    benchmarks: Path = Path("benchmarks")
    """Folder that holds one folder per benchmark."""
    filter_with: str | None = None
    """A reward model; training pairs that it contradicts are dropped. It injects that model's taste: the paper advises against it."""
    filter_margin: float = 0.0
    """Logits by which it must prefer the rejected response."""
    engine: Engine = "duckdb"
    """What finds near-duplicates among all texts; the rows are the same."""
    rejects: bool = False
    """Also write what was dropped, with the reason, to `rejects.jsonl`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threads:
            raise ConfigError("no threads given: name a folder that `worldpm ingest` wrote")
        if self.filter_margin < 0:
            raise ConfigError(f"--filter-margin is {self.filter_margin}; it must not be negative")


@dataclass(frozen=True)
class Tools:
    """What is loaded once for all tables."""

    index: "Index | None"
    scorer: "Scorer | None"


def run(config: Config) -> None:
    """Write one table of groups per table of threads, the credits due, and what was counted and dropped on the way."""
    from worldpm.formats import tables

    for folder in config.threads:
        folders.manifest(folder, made_by="ingest|simulate")
    paths = tables.paths_of(*config.threads)
    names = Counter(path.name for path in paths)
    if twice := [name for name, n in names.items() if n > 1]:
        raise ConfigError(f"{', '.join(twice)} stands in more than one folder of threads; one site may come in only once")
    tools, inputs = _tools(config)
    inputs = [folders.describe(path) for path in config.threads] + inputs
    output = folders.begin(config.out, step="group", config=_settings(config), inputs=inputs)
    if output is None:
        return
    with output:
        learned = _learn(output, paths, config)
        counts, drops = {}, {}
        for path in paths:
            kept = output.part(path.name, partial(_group_table, output, path, config, learned[path.stem], tools))
            counts[path.stem], drops[path.stem] = kept["counts"], kept["drops"]
        wanted = {"ATTRIBUTION.csv": "credits"} | ({"contamination.jsonl": "overlaps"} if config.decontaminate else {})
        for name, what in (wanted | ({"rejects.jsonl": "rejects"} if config.rejects else {})).items():
            output.part(name, partial(_joined, what, [_beside(output, path, what) for path in paths]))
        _report(counts)
        output.finish(counts=counts, drops=drops)


def _settings(config: Config) -> Json:
    rules = {name: value for name, value in asdict(config).items() if name in Rules.__dataclass_fields__}
    if config.decontaminate:
        rules |= {"decontaminate": list(config.decontaminate), "contaminated": config.contaminated}
    if config.filter_with:
        rules |= {"filter_with": Path(config.filter_with).name, "filter_margin": config.filter_margin}
    return rules | ({"rejects": True} if config.rejects else {})


def _tools(config: Config) -> tuple[Tools, list[Json]]:
    """The index of benchmarks and the reward model, where they are asked for, and their descriptions as inputs."""
    inputs: list[Json] = []
    index, scorer = None, None
    if config.decontaminate:
        from worldpm.parts.benchmarks import catalogue
        from worldpm.parts.contamination import Index, texts_in, texts_of

        files = [Path(word) for word in config.decontaminate if Path(word).is_file()]
        named = catalogue.find([word for word in config.decontaminate if not Path(word).is_file()], config.benchmarks)
        read = {one.name: one.items() for one in named}
        index = Index({**{name: texts_of(items) for name, items in read.items()}, **{path.name: texts_in(path) for path in files}})
        inputs += [{"name": name, "items": len(items), "sha256": catalogue.fingerprint(items)} for name, items in read.items()]
        inputs += [folders.describe(path) for path in files]
    if config.filter_with:
        from worldpm.parts import checkpoint
        from worldpm.parts.scorer import Scorer

        inputs.append(checkpoint.fingerprint(checkpoint.find(config.filter_with)))
        scorer = Scorer.load(config.filter_with, cut=True)
    return Tools(index, scorer), inputs


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
        created = (row["created"].timestamp() for path in paths for row in _read(path, ["created"]))
        dates = splits.cuts(created, config)
    kept = (
        controversial_kept([found["closeness"] for found in first.values()], config.controversial_share)
        if config.controversial_share
        else 1.0
    )
    return {name: Learned(VoteNoise(**found["noise"]) if found["noise"] else None, again, dates, kept) for name, found in first.items()}


def _first_pass(path: Path, config: Config, aside: Path) -> Json:
    """The bands of a table's threads and answers into the file, and what its votes say."""
    from worldpm.formats import schema
    from worldpm.parts import near_duplicates, vote_noise, votes
    from worldpm.parts.grouping import fit_answers, question_of
    from worldpm.parts.near_duplicates import Text

    dated: list[vote_noise.Dated] = []
    closeness: Counter[str] = Counter()
    every = max(1, _rows(path) // THREADS_TO_LEARN_FROM)

    def texts() -> Iterator[Text]:
        rows = _read(path, schema.THREADS.names)
        for number, row in enumerate(console.track(rows, f"learn from {path.stem}", total=_rows(path))):
            thread = schema.thread_from_row(row)
            if number % every == 0 and len(thread.responses) > 1:
                dated.append(vote_noise.Dated.of(thread.responses))
                if config.controversial_share:
                    pairs = votes.preferences(thread.responses[: config.max_responses], rule=config.rule, seed=[0])
                    closeness.update(votes.closeness(thread.responses, pair) for pair in pairs)
            if config.near_duplicates and (fit := fit_answers(thread, config)):  # what is dropped anyway must not oust another
                yield Text(0, thread.thread_id, thread.votes, question_of(thread))
                for answer in fit:
                    yield Text(1, f"{thread.thread_id}#{answer.response_id}", answer.votes, answer.body)

    count = near_duplicates.write_bands(aside, texts())
    noise = vote_noise.fit(dated)._asdict() if config.rule == "default" else None
    return {"texts": count, "noise": noise, "closeness": dict(closeness)}


def _read(path: Path, columns: Sequence[str]) -> Iterator[Json]:
    from worldpm.formats import schema, tables

    yield from tables.read_rows(path, schema.only(schema.THREADS, columns))


def _rows(path: Path) -> int:
    from worldpm.formats import tables

    return tables.count_rows(path)


def _beside(output: folders.Output, path: Path, what: str) -> Path:
    """Where a table's credits, overlaps and rejects wait to be joined with the others'."""
    return output.progress / f"{path.stem}.{what}"


def _group_table(output: folders.Output, path: Path, config: Config, learned: "Learned", tools: Tools, aside: Path) -> Json:
    """The groups of one table into the file, and beside it who is to be credited, what overlaps, and what was dropped."""
    from worldpm.formats import schema, tables
    from worldpm.parts.grouping import Tally

    with ExitStack() as stack:
        credit, overlaps, rejects = (
            stack.enter_context(_beside(output, path, what).open("w", encoding="utf-8", newline=""))
            for what in ("credits", "overlaps", "rejects")
        )
        tally = Tally(reject=_reject_into(rejects) if config.rejects else None)
        asked: dict[str, dict[str, str]] = {}
        groups = _groups(path, config, learned, tally, asked)
        if tools.index is not None:
            groups = _decontaminated(groups, tools.index, config, tally, overlaps)
        if tools.scorer is not None:
            groups = _filtered(groups, tools.scorer, config, tally)
        rows = (schema.group_to_row(group) for group in _counted(groups, asked, tally, credit))
        tables.write_parquet(aside, tables.rows_to_batches(rows, schema.GROUPS), schema.GROUPS)
    noise = {f"vote noise: {name}": value for name, value in learned.noise._asdict().items() if name != "now"} if learned.noise else {}
    return {"counts": dict(sorted(tally.counts.items())) | noise, "drops": {reason: n for reason, n in sorted(tally.drops.items()) if n}}


def _groups(path: Path, config: Config, learned: "Learned", tally: "Tally", asked: dict[str, dict[str, str]]) -> Iterator[PreferenceGroup]:
    """The groups of a table; who asked is written into `asked`, by the group's id."""
    from worldpm.formats import schema
    from worldpm.parts.grouping import group_thread

    for row in console.track(_read(path, schema.THREADS.names), f"group {path.stem}", total=_rows(path)):
        tally.counts["threads"] += 1
        thread: Thread = schema.thread_from_row(row)
        group = group_thread(thread, config, tally, learned)
        if group is not None:
            origin = {"author": thread.author, "url": thread.url, "licence": thread.licence}
            asked[group.group_id] = {name: value for name, value in origin.items() if value is not None}
            yield group


def _decontaminated(
    groups: Iterable[PreferenceGroup], index: "Index", config: Config, tally: "Tally", overlaps: TextIO
) -> Iterator[PreferenceGroup]:
    """The groups that share no run of words with a benchmark, or all; those that do are written down."""
    for group in groups:
        found = index.overlaps(group)
        for one in found:
            row = {"group_id": one.group_id, "split": group.split, **one.place._asdict(), "words": one.words}
            overlaps.write(json.dumps({**row, "dropped": config.contaminated == "drop"}) + "\n")
        if found and config.contaminated == "drop":
            tally.drop("thread that overlaps with a benchmark", group.group_id, group.prompt[0].content)
        else:
            tally.counts["groups that overlap with a benchmark"] += bool(found)
            yield group


def _filtered(groups: Iterable[PreferenceGroup], scorer: "Scorer", config: Config, tally: "Tally") -> Iterator[PreferenceGroup]:
    """Training groups without the pairs that the reward model contradicts."""
    from dataclasses import replace

    from worldpm.parts.scorer import Request

    stream = iter(groups)
    while chunk := list(islice(stream, GROUPS_AT_ONCE)):
        wanted = [group for group in chunk if group.split == "train"]
        requests = [Request(group.group_id, group.prompt, [response.content for response in group.responses]) for group in wanted]
        rewards = {group.group_id: found.rewards for group, found in zip(wanted, scorer.score(requests), strict=True)}
        for group in chunk:
            if group.split == "train":
                reward = rewards[group.group_id]
                kept = [p for p in group.preferences if reward[p.chosen] - reward[p.rejected] >= -config.filter_margin]
                tally.drops["pair that --filter-with contradicts"] += len(group.preferences) - len(kept)
                if not kept:
                    tally.drop("thread whose pairs --filter-with all contradicts", group.group_id)
                    continue
                group = replace(group, preferences=tuple(replace(p, weight=1 / len(kept)) for p in kept))
            yield group


def _counted(
    groups: Iterable[PreferenceGroup], asked: dict[str, dict[str, str]], tally: "Tally", credit: TextIO
) -> Iterator[PreferenceGroup]:
    """The groups as they are written, with what they hold counted, and who is to be credited: who asked, then who answered."""
    writer = csv.writer(credit)
    for group in groups:
        tally.counts[f"{group.split} groups"] += 1
        tally.counts[f"{group.split} responses"] += len(group.responses)
        tally.counts[f"{group.split} pairs"] += len(group.preferences)
        for meta in (asked.pop(group.group_id), *(response.meta for response in group.responses)):
            writer.writerow([group.site, group.group_id, *(meta.get(name, "") for name in CREDIT[2:])])
        yield group


def _reject_into(file: TextIO) -> Callable[[str, str, str], object]:
    return lambda name, reason, text: file.write(json.dumps({"name": name, "reason": reason, "text": text}) + "\n")


def _joined(what: str, pieces: Sequence[Path], aside: Path) -> Json:
    with aside.open("w", encoding="utf-8", newline="") as file:
        if what == "credits":
            csv.writer(file).writerow(CREDIT)
        for piece in pieces:
            with piece.open(encoding="utf-8", newline="") as lines:
                file.writelines(lines)
    return {"bytes": aside.stat().st_size}


def _report(counts: dict[str, dict[str, int]]) -> None:
    for site, count in counts.items():
        made = sum(n for name, n in count.items() if name.endswith(" groups"))
        pairs = sum(n for name, n in count.items() if name.endswith(" pairs"))
        logger.info("%s: %d threads became %d groups with %d pairs", site, count.get("threads", 0), made, pairs)
    if not any(name.endswith(" groups") for count in counts.values() for name in count):
        raise ConfigError("no thread has two responses of different votes: there is nothing to learn from; add other sites")
