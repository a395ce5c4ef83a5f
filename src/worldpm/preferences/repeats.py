"""Answers that their author repeats under many threads, as bots and spammers do."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import xxhash

from worldpm.options.shared import Engine
from worldpm.records import Answer, Thread
from worldpm.storage.dialogues import single_spaced
from worldpm.storage.tables import database

THREADS = 10
"""Answers under at least this number of threads are repeats."""
SCHEMA = pa.schema([("hash", pa.int64()), ("thread", pa.int64())])
"""One row for each answer with an author; both columns are hashes."""


def of(answer: Answer) -> int:
    """A hash of an answer's author and text; case and white space do not count."""
    text = f"{answer.author}\n{single_spaced(answer.body.lower())}"
    return _signed(xxhash.xxh64_intdigest(text.encode()))


def rows(threads: Iterable[Thread]) -> pa.RecordBatch:
    """The answers of threads, as a batch of SCHEMA."""
    hashes: list[int] = []
    names: list[int] = []
    for thread in threads:
        name = _signed(xxhash.xxh64_intdigest(thread.thread_id.encode()))
        of_thread = [of(answer) for answer in thread.responses if answer.author is not None]
        hashes += of_thread
        names += [name] * len(of_thread)
    return pa.RecordBatch.from_arrays([pa.array(hashes), pa.array(names)], schema=SCHEMA)


def _signed(digest: int) -> int:
    # Spark has no unsigned numbers.
    return digest - (1 << 63)


def among(paths: Sequence[Path], *, spill: Path, engine: Engine = "duckdb") -> frozenset[int]:
    """The hashes of answers under THREADS threads or more, in tables with SCHEMA."""
    tables = database(engine, spill)
    tables.read("answers", paths)
    query = f"SELECT hash FROM answers GROUP BY hash HAVING count(DISTINCT thread) >= {THREADS}"
    return frozenset(
        digest for batch in tables.batches(query) for digest in batch["hash"].to_pylist()
    )
