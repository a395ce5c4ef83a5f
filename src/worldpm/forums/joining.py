"""Posts of a dump to threads: the data engine joins them, and Arrow puts each opening post and its
answers into one row."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from worldpm.options.shared import Engine
from worldpm.storage.parquet import write_parquet
from worldpm.storage.schema import ANSWERS, POSTS, THREADS
from worldpm.storage.tables import Spark, database
from worldpm.storage.workers import in_order

PLACE = pa.field("place", pa.int64())
"""Where a post stands in the dump: of two with one id the first is kept."""

Text = Callable[[str], str]


class Joined(NamedTuple):
    """Threads joined from posts, and what the join left out."""

    threads: Iterator[pa.RecordBatch]
    duplicate_ids: int
    orphans: int


def write_posts(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write posts (`schema.POSTS`) with their place in the dump, and give their number."""

    def placed() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in batches:
            yield batch.append_column(
                PLACE, pa.array(range(start, start + batch.num_rows), PLACE.type)
            )
            start += batch.num_rows

    return write_parquet(path, placed(), POSTS.append(PLACE))


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
    """Threads of a file that `write_posts` wrote, ordered by date and id; answers ordered likewise.

    Of posts with one id the first is kept; an answer whose opening post is absent is left out. Both
    are counted. `text`, where given, is what becomes of every body, by so many processes or by
    Spark's. `spill` is a folder that the engine may use when memory runs out.
    """
    tables = database(engine, spill)
    tables.read("posts", [posts])
    if isinstance(tables, Spark) and text is not None:
        tables.rewrite("posts", partial(_with_text, text=text))
        text = None
    # only keys are joined and ranked; the posts themselves go through one sort, which the engine
    # can do on the disk
    tables.keep(
        "firsts",
        "SELECT place, post_id, parent_id, created FROM posts WHERE place IN (SELECT min(place)"
        " FROM posts GROUP BY post_id)",
    )
    tables.keep(
        "openings",
        "SELECT place, post_id, row_number() OVER (ORDER BY created NULLS LAST, post_id) AS thread"
        " FROM firsts WHERE parent_id IS NULL",
    )
    tables.keep(
        "placed",
        "SELECT place, thread FROM openings UNION ALL SELECT firsts.place, openings.thread FROM"
        " firsts JOIN openings ON firsts.parent_id = openings.post_id",
    )
    firsts = tables.count("firsts")
    duplicates, orphans = tables.count("posts") - firsts, firsts - tables.count("placed")
    batches = tables.batches(
        "SELECT posts.*, placed.thread FROM posts JOIN placed ON posts.place = placed.place ORDER"
        " BY placed.thread, posts.parent_id IS NOT NULL, posts.created NULLS LAST, posts.post_id"
    )
    made = in_order(
        partial(_as_threads, source=source, site=site, text=text),
        _whole_threads(batches),
        workers=workers,
    )
    return Joined(made, duplicates, orphans)


def _whole_threads(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The posts of sorted batches, cut between threads."""
    held: pa.Table | None = None
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        held = rows if held is None else pa.concat_tables([held, rows])
        end = pa.compute.index(
            held["thread"], held["thread"][-1]
        ).as_py()  # where the last thread begins: it may go on
        if end:
            yield held.slice(0, end).combine_chunks()
            held = held.slice(end)
    if held is not None and len(held):
        yield held.combine_chunks()


def _as_threads(posts: pa.Table, source: str, site: str, text: Text | None) -> pa.RecordBatch:
    """Posts of whole threads, the opening one first and the answers in order, in the schema of
    threads."""
    opens = pa.compute.is_null(posts["parent_id"])
    bodies = _rewritten(posts["body"].combine_chunks(), text)
    posts = posts.set_column(posts.column_names.index("body"), "body", bodies)
    openings, answers = posts.filter(opens), posts.filter(pa.compute.invert(opens))
    starts = np.append(np.flatnonzero(opens.to_numpy()), len(posts))
    offsets = starts - np.arange(len(starts))  # answers that stand before each opening
    parents = np.repeat(np.arange(len(openings)), np.diff(offsets))
    accepted = pa.compute.fill_null(
        pa.compute.equal(answers["post_id"], openings["accepted_id"].take(pa.array(parents))), False
    )
    named = answers.append_column("response_id", answers["post_id"]).append_column(
        "accepted", accepted
    )
    responses = pa.StructArray.from_arrays(
        [named[name].combine_chunks() for name in ANSWERS.names], names=ANSWERS.names
    )
    columns: dict[str, pa.Array] = {
        "thread_id": pa.array([f"{site}/{post_id}" for post_id in openings["post_id"].to_pylist()]),
        "source": pa.array([source] * len(openings)),
        "site": pa.array([site] * len(openings)),
        "responses": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), responses),
    }
    made = pa.table(
        {
            name: columns.get(name, openings[name] if name in openings.column_names else None)
            for name in THREADS.names
        }
    )
    return made.cast(THREADS).combine_chunks().to_batches()[0]


def _with_text(batch: pa.RecordBatch, *, text: Text) -> pa.RecordBatch:
    index = batch.schema.get_field_index("body")
    return batch.set_column(index, "body", _rewritten(batch["body"], text))


def _rewritten(bodies: pa.Array, text: Text | None) -> pa.Array:
    return (
        bodies
        if text is None
        else pa.array([text(body or "") for body in bodies.to_pylist()], pa.string())
    )
