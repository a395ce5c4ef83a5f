"""Threads become preference groups: filters with counted reasons, votes to preferences, splits by thread."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import xxhash
from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.field.records import Answer, Message, PreferenceGroup, Response, Thread
from worldpm.formats import console, folders

logger = logging.getLogger(__name__)

SPLIT_BUCKETS = 10_000


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How threads become groups; part of the manifest."""

    rule: Literal["default", "worldpm"] = "default"
    """Which pairs of a thread's answers become training preferences. Validation and test always use `default`."""
    max_responses: int = 16
    """Of a larger thread, so many responses are drawn, spread over the votes."""
    validation_share: float = 0.1
    """Share of threads for validation."""
    test_share: float = 0.2
    """Share of threads for testing."""
    seed: int = 0
    """Of the draws; the split does not depend on it."""

    def __post_init__(self) -> None:
        if self.max_responses < 2:
            raise ConfigError(f"--max-responses is {self.max_responses}; a preference needs at least 2")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; it must not be negative")
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            raise ConfigError(f"--validation-share {self.validation_share} and --test-share {self.test_share} must leave room for training")


@dataclass(frozen=True, kw_only=True)
class Config(Rules):
    """Make preference groups of threads."""

    threads: Positional[tuple[Path, ...]]
    """Folders written by `worldpm ingest` or `worldpm simulate`."""
    out: Path
    """Folder to write."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threads:
            raise ConfigError("no threads given: name a folder that `worldpm ingest` wrote")


def run(config: Config) -> None:
    """Write one table of groups per table of threads, and what was counted and dropped on the way."""
    from worldpm.formats import tables

    for folder in config.threads:
        folders.manifest(folder, made_by="ingest|simulate")
    paths = tables.paths_of(*config.threads)
    names = Counter(path.name for path in paths)
    if twice := [name for name, n in names.items() if n > 1]:
        raise ConfigError(f"{', '.join(twice)} stands in more than one folder of threads; one site may come in only once")
    rules = {name: value for name, value in asdict(config).items() if name in Rules.__dataclass_fields__}
    output = folders.begin(config.out, step="group", config=rules, inputs=[folders.describe(path) for path in config.threads])
    if output is None:
        return
    with output:
        counts, drops = {}, {}
        for path in paths:
            kept = output.part(path.name, partial(_group_table, path, config))
            counts[path.stem], drops[path.stem] = kept["counts"], kept["drops"]
        _report(counts)
        output.finish(counts=counts, drops=drops)


def group_thread(thread: Thread, rules: Rules, drops: Counter[str]) -> PreferenceGroup | None:
    """The thread as a preference group, or None with the reason counted; answers left out are counted likewise."""
    from worldpm.parts import votes

    if not (thread.title.strip() or thread.body.strip()):
        drops["thread without a question text"] += 1
        return None
    answers = [answer for answer in thread.responses if answer.body.strip()]
    drops["response without text"] += len(thread.responses) - len(answers)
    if len(answers) < 2:
        drops["thread with fewer than two responses"] += 1
        return None
    key = xxhash.xxh64_intdigest(thread.thread_id.encode())
    chosen = votes.spread_sample(answers, at_most=rules.max_responses, seed=[rules.seed, key])
    drops["response beyond --max-responses"] += len(answers) - len(chosen)
    split = split_of(key, rules)
    preferences = votes.preferences(chosen, rule=rules.rule if split == "train" else "default", seed=[rules.seed, key])
    if not preferences:
        drops["thread whose responses have equal votes"] += 1
        return None
    return PreferenceGroup(
        group_id=thread.thread_id,
        source=thread.source,
        site=thread.site,
        split=split,
        prompt=(Message("user", f"Title: {thread.title}\n\n{thread.body}".strip()),),
        responses=tuple(Response(a.body, a.votes, a.created, _origin(thread, a)) for a in chosen),
        preferences=preferences,
    )


def split_of(key: int, rules: Rules) -> Literal["train", "validation", "test"]:
    """The split of a thread by the hash of its id: the same everywhere, and a larger share only takes from training."""
    bucket = key % SPLIT_BUCKETS
    if bucket < rules.test_share * SPLIT_BUCKETS:
        return "test"
    return "validation" if bucket >= (1 - rules.validation_share) * SPLIT_BUCKETS else "train"


def _origin(thread: Thread, answer: Answer) -> dict[str, str]:
    """What a derived set must keep to give credit."""
    origin = {"response_id": answer.response_id, "author": answer.author, "licence": answer.licence, "url": thread.url}
    return {name: value for name, value in origin.items() if value is not None}


def _group_table(path: Path, config: Config, aside: Path) -> folders.Json:
    from worldpm.formats import schema, tables

    drops: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    rows = (schema.group_to_row(group) for group in _groups(path, config, drops, counts))
    tables.write_parquet(aside, tables.rows_to_batches(rows, schema.GROUPS), schema.GROUPS)
    return {"counts": dict(sorted(counts.items())), "drops": {reason: n for reason, n in sorted(drops.items()) if n}}


def _groups(path: Path, config: Config, drops: Counter[str], counts: Counter[str]) -> Iterator[PreferenceGroup]:
    from worldpm.formats import schema, tables

    rows = tables.read_rows(path, schema.THREADS)
    for row in console.track(rows, f"group {path.stem}", total=tables.count_rows(path)):
        counts["threads"] += 1
        group = group_thread(schema.thread_from_row(row), config, drops)
        if group is not None:
            counts[f"{group.split} groups"] += 1
            counts[f"{group.split} responses"] += len(group.responses)
            counts[f"{group.split} pairs"] += len(group.preferences)
            yield group


def _report(counts: dict[str, dict[str, int]]) -> None:
    for site, count in counts.items():
        made = sum(n for name, n in count.items() if name.endswith(" groups"))
        pairs = sum(n for name, n in count.items() if name.endswith(" pairs"))
        logger.info("%s: %d threads became %d groups with %d pairs", site, count.get("threads", 0), made, pairs)
    if not any(name.endswith(" groups") for count in counts.values() for name in count):
        raise ConfigError("no thread has two responses of different votes: there is nothing to learn from; add other sites")
