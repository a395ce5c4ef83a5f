"""Join posts of a dump into threads: the data engine joins them, and Arrow puts each opening post
and its answers into one row."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worldpm.options.shared import Engine
from worldpm.storage.parquet import write_parquet
from worldpm.storage.schema import ANSWERS, POSTS, THREADS
from worldpm.storage.tables import DuckDB, Spark, database
from worldpm.storage.workers import in_order

INDEX = pa.field("post_index", pa.int64())
"""Index of a post in its dump: of posts with the same id the first is kept."""

Text = Callable[[str], str]


class Joined(NamedTuple):
    """Threads joined from posts, and the numbers of dropped posts."""

    threads: Iterator[pa.RecordBatch]
    """As `schema.THREADS`, by date and id."""
    duplicate_ids: int
    """Posts with the id of an earlier post."""
    orphans: int
    """Answers whose opening post is missing."""


def write_posts(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write posts (`schema.POSTS`) with their index in the dump, and return their number."""

    def indexed() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in batches:
            # Write the index, because the engine does not keep the order of rows.
            indices = pa.array(range(start, start + batch.num_rows), INDEX.type)
            yield batch.append_column(INDEX, indices)
            start += batch.num_rows

    return write_parquet(path, indexed(), POSTS.append(INDEX))


def join_threads(
    posts: Path,
    *,
    source: str,
    site: str,
    text: Text | None,
    spill: Path,
    engine: Engine = "duckdb",
    workers: int = 0,
) -> Joined:
    """Threads of a file that `write_posts` wrote, and their answers, both by date and id.

    Of posts with the same id the first is kept, and answers whose opening post is missing are
    dropped. Both are counted. `text`, if given, converts every body, in `workers` processes or in
    Spark. `spill` is a folder that the engine may use when memory runs out.
    """
    tables = database(engine, spill)
    tables.read("posts", [posts])
    # Spark converts the texts where the rows are. With DuckDB, our workers convert them after the
    # join.
    if isinstance(tables, Spark) and text is not None:
        tables.rewrite("posts", partial(_with_text, text=text))
        text = None

    _rank_posts(tables)
    firsts = tables.count("firsts")
    duplicate_ids = tables.count("posts") - firsts
    orphans = firsts - tables.count("ranked")

    batches = tables.batches(
        "SELECT posts.*, ranked.thread FROM posts JOIN ranked"
        " ON posts.post_index = ranked.post_index"
        " ORDER BY ranked.thread, posts.parent_id IS NOT NULL, posts.created NULLS LAST,"
        " posts.post_id"
    )
    threads = in_order(
        partial(_as_threads, source=source, site=site, text=text),
        _cut_between_threads(batches),
        workers=workers,
    )
    return Joined(threads, duplicate_ids, orphans)


def _rank_posts(tables: DuckDB | Spark) -> None:
    """Make the tables `firsts`, with the first post of each id, and `ranked`, with the posts that
    belong to a thread and the thread's number."""
    # Only keys are joined and ranked. The posts themselves go through one sort, which the engine
    # can do on the disk.
    tables.keep(
        "firsts",
        "SELECT post_index, post_id, parent_id, created FROM posts WHERE post_index IN"
        " (SELECT min(post_index) FROM posts GROUP BY post_id)",
    )
    tables.keep(
        "openings",
        "SELECT post_index, post_id,"
        " row_number() OVER (ORDER BY created NULLS LAST, post_id) AS thread"
        " FROM firsts WHERE parent_id IS NULL",
    )
    tables.keep(
        "ranked",
        "SELECT post_index, thread FROM openings UNION ALL"
        " SELECT firsts.post_index, openings.thread FROM firsts"
        " JOIN openings ON firsts.parent_id = openings.post_id",
    )


def _cut_between_threads(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The posts of sorted batches, cut between threads."""
    pending: pa.Table | None = None

    for batch in batches:
        rows = pa.Table.from_batches([batch])
        pending = rows if pending is None else pa.concat_tables([pending, rows])

        # The last thread may continue in the next batch, so it waits.
        start = pc.index(pending["thread"], pending["thread"][-1]).as_py()
        if start:
            yield pending.slice(0, start).combine_chunks()
            pending = pending.slice(start)

    if pending is not None and len(pending):
        yield pending.combine_chunks()


def _as_threads(posts: pa.Table, source: str, site: str, text: Text | None) -> pa.RecordBatch:
    """Rows of `schema.THREADS` from posts of complete threads, each with its opening post first and
    its answers in order."""
    bodies = _converted(posts["body"].combine_chunks(), text)
    posts = posts.set_column(posts.column_names.index("body"), "body", bodies)
    opens = pc.is_null(posts["parent_id"])
    openings = posts.filter(opens)

    # Columns that a thread does not share with its opening post.
    columns: dict[str, pa.Array] = {
        "thread_id": pa.array([f"{site}/{post_id}" for post_id in openings["post_id"].to_pylist()]),
        "source": pa.array([source] * len(openings)),
        "site": pa.array([site] * len(openings)),
        "responses": _responses(posts, opens),
    }
    for name in THREADS.names:
        if name not in columns:
            columns[name] = openings[name]

    threads = pa.table({name: columns[name] for name in THREADS.names})
    return threads.cast(THREADS).combine_chunks().to_batches()[0]


def _responses(posts: pa.Table, opens: pa.ChunkedArray) -> pa.ListArray:
    """The lists of answers of the threads; `opens` marks the posts that open a thread."""
    openings, answers = posts.filter(opens), posts.filter(pc.invert(opens))

    # Before the k-th opening post there are k opening posts and all answers of earlier threads.
    starts = np.append(np.flatnonzero(opens.to_numpy()), len(posts))
    offsets = starts - np.arange(len(starts))

    parents = pa.array(np.repeat(np.arange(len(openings)), np.diff(offsets)))
    # The comparison is null, not false, in threads without an accepted answer.
    accepted = pc.equal(answers["post_id"], openings["accepted_id"].take(parents))
    columns = {
        **{name: answers[name] for name in answers.column_names},
        "response_id": answers["post_id"],
        "accepted": pc.fill_null(accepted, False),
    }
    values = [columns[name].combine_chunks() for name in ANSWERS.names]
    structs = pa.StructArray.from_arrays(values, names=ANSWERS.names)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)


def _with_text(batch: pa.RecordBatch, *, text: Text) -> pa.RecordBatch:
    index = batch.schema.get_field_index("body")
    return batch.set_column(index, "body", _converted(batch["body"], text))


def _converted(bodies: pa.Array, text: Text | None) -> pa.Array:
    if text is None:
        return bodies
    return pa.array([text(body or "") for body in bodies.to_pylist()], pa.string())
