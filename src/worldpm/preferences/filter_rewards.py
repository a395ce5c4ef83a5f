"""Rewards of `worldpm group --filter-with` on disk, in parts that a killed run does not score
again, and that several processes share."""

import itertools
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import msgspec
import pyarrow as pa

from worldpm import console
from worldpm.model import sources
from worldpm.options.group import GroupOptions, GroupRules
from worldpm.preferences import model_filter, thread_batches
from worldpm.preferences.grouping import Learned
from worldpm.preferences.model_filter import GroupRewards, ModelFilter
from worldpm.preferences.thread_batches import Sieves
from worldpm.scoring.peers import Peers
from worldpm.scoring.scorer import Scorer
from worldpm.storage import folders, parquet, schema
from worldpm.storage.manifest import PROGRESS


def score(
    output: folders.Output,
    paths: Sequence[Path],
    options: GroupOptions,
    rules: GroupRules,
    learned: Mapping[str, Learned],
    sieves: Sieves,
    peers: Peers,
) -> None:
    """Build the parts of this process: rewards of the groups of a batch of threads each."""
    assert options.filter_with is not None
    model = options.filter_with

    # Loaded when it is first called: a finished part needs no model
    @cache
    def scorer() -> Scorer:
        return Scorer.load(sources.find(model), cut=True)

    def write(batch: pa.RecordBatch, site: Learned, aside: Path) -> None:
        groups = thread_batches.candidates(batch, rules=rules, learned=site, sieves=sieves)
        rows = model_filter.score(scorer(), groups)
        aside.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))

    # One count over all tables, so that small tables are shared too
    turn = itertools.count()
    for path in paths:
        with console.progress(f"score {path.stem}", total=parquet.count_rows(path)) as advance:
            for number, batch in enumerate(parquet.read_batches(path, schema.THREADS.names)):
                if peers.has(next(turn)):
                    build = partial(write, batch, learned[path.stem])
                    output.part(f"{_folder(path)}/{number:06}.jsonl", build)
                advance(batch.num_rows)


def filter_of(output: folders.Output, path: Path, options: GroupOptions) -> ModelFilter:
    """The filter of a table, once all its parts are built."""
    parts = sorted((output.path / _folder(path)).glob("*.jsonl"))
    rewards = (
        msgspec.json.decode(line, type=GroupRewards)
        for part in parts
        for line in part.read_bytes().splitlines()
    )
    return ModelFilter(
        rewards=rewards,
        margin=options.filter_margin,
        keep_contradicted=options.filter_keep == "contradicted",
    )


def _folder(path: Path) -> str:
    return f"{PROGRESS}/rewards/{path.stem}"
