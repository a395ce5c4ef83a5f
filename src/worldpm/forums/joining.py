"""Join posts of a dump into threads: the data engine joins them, and Arrow puts each opening post
and its answers into one row."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from worldpm.options.shared import Engine
from worldpm.storage.parquet import write_parquet
from worldpm.storage.schema import ANSWERS, COMMENTS, POSTS, THREADS
from worldpm.storage.tables import DuckDB, Spark, database
from worldpm.storage.workers import in_order

INDEX = pa.field("post_index", pa.int64())
"""Index of a post in its dump: of posts with the same id the first is kept."""
POSTS_OF_A_FILE = 1 << 40
"""Indices of a file begin at its number times this."""
OLDER_FILE = 1 << 20
"""Number of the file with the posts of older threads, which come after all others."""
OLDER_INDEX = OLDER_FILE * POSTS_OF_A_FILE
"""Posts of older threads have this index or a larger one."""

Text = Callable[[str], str]


class Joined(NamedTuple):
    """Threads joined from posts, and the numbers of dropped posts."""

    threads: Iterator[pa.RecordBatch]
    """As `schema.THREADS`, by site, date and id. A batch may have several sites."""
    duplicate_ids: int
    """Posts with the id of an earlier post."""
    orphans: int
    """Answers whose opening post is missing."""
    comments_on_answers: int
    """Comments on other posts than opening posts."""
    in_small_sites: int
    """Posts of sites with too few threads."""


def write_posts(path: Path, batches: Iterable[pa.RecordBatch], *, number: int = 0) -> int:
    """Write the posts of a file (`schema.POSTS`) with their indices, and return how many there are.
    `number` is that of the file in its dump."""

    def indexed() -> Iterator[pa.RecordBatch]:
        start = number * POSTS_OF_A_FILE
        for batch in batches:
            # Write the index, because the engine does not keep the order of rows.
            indices = pa.array(range(start, start + batch.num_rows), INDEX.type)
            yield batch.append_column(INDEX, indices)
            start += batch.num_rows

    return write_parquet(path, indexed(), POSTS.append(INDEX))


def join_threads(
    posts: Sequence[Path],
    *,
    source: str,
    site: str,
    text: Text | None,
    spill: Path,
    min_threads: int = 0,
    engine: Engine = "duckdb",
    workers: int = 0,
) -> Joined:
    """Threads of files that `write_posts` wrote, and their answers, both by date and id.

    Of posts with the same id the first is kept, and answers whose opening post is missing are
    dropped. Both are counted. `site` is the site of opening posts that name none. Sites with fewer
    than `min_threads` threads are left out. `text`, if given, converts the bodies of new posts, in
    `workers` processes or in Spark. `spill` is a folder that the engine may use when memory runs
    out.
    """
    tables = database(engine, spill)
    tables.read("posts", posts)
    # Spark converts the texts where the rows are. With DuckDB, our workers convert them after the
    # join.
    if isinstance(tables, Spark) and text is not None:
        tables.rewrite("posts", partial(_with_text, text=text))
        text = None

    _rank_posts(tables, site, min_threads)
    firsts = tables.count("firsts")
    joined = tables.count("joined")
    stray_comments = tables.count("stray_comments")

    threads = in_order(
        partial(_as_threads, source=source, text=text),
        _cut_between_threads(tables.batches(_sorted_posts())),
        workers=workers,
    )
    return Joined(
        threads,
        # A post of an older thread is not a duplicate of its newer version.
        duplicate_ids=tables.count("new_posts") + tables.count("older_only") - firsts,
        orphans=firsts - joined - stray_comments,
        comments_on_answers=stray_comments,
        in_small_sites=joined - tables.count("ranked"),
    )


def _rank_posts(tables: DuckDB | Spark, site: str, min_threads: int) -> None:
    """Make the tables `firsts`, with the first post of each id, `joined`, with the posts that
    belong to a thread, and `ranked`, with the number and the site of their thread in sites of
    enough threads."""
    # Only keys are joined and ranked. The posts themselves go through one sort, which the engine
    # can do on the disk.
    tables.keep(
        "firsts",
        "SELECT post_index, post_id, parent_id, is_comment, created,"
        f" coalesce(site, '{site}') AS site FROM posts WHERE post_index IN"
        " (SELECT min(post_index) FROM posts GROUP BY post_id)",
    )
    tables.keep("new_posts", f"SELECT post_index FROM posts WHERE post_index < {OLDER_INDEX}")
    tables.keep("older_only", f"SELECT post_index FROM firsts WHERE post_index >= {OLDER_INDEX}")
    tables.keep(
        "openings",
        "SELECT post_index, post_id, site,"
        " row_number() OVER (ORDER BY site, created NULLS LAST, post_id) AS thread"
        " FROM firsts WHERE parent_id IS NULL",
    )
    tables.keep(
        "joined",
        "SELECT post_index, thread, site FROM openings UNION ALL"
        " SELECT firsts.post_index, openings.thread, openings.site FROM firsts"
        " JOIN openings ON firsts.parent_id = openings.post_id",
    )
    tables.keep(
        "stray_comments",
        "SELECT post_index FROM firsts WHERE is_comment"
        " AND parent_id NOT IN (SELECT post_id FROM openings)",
    )
    tables.keep(
        "ranked",
        "SELECT * FROM joined WHERE site IN"
        f" (SELECT site FROM openings GROUP BY site HAVING count(*) >= {min_threads})",
    )


def _sorted_posts() -> str:
    """A query for the posts of all threads, each thread with its opening post first. Votes in older
    dumps move from the post of the older thread to its newer version."""
    moved = {"site": "ranked.site", "earlier_votes": "older.earlier_votes"}
    columns = [moved.get(name, f"posts.{name}") + f" AS {name}" for name in POSTS.names]
    return (
        f"SELECT {', '.join(columns)}, posts.post_index, ranked.thread FROM posts"
        " JOIN ranked ON posts.post_index = ranked.post_index"
        " LEFT JOIN (SELECT post_id, earlier_votes FROM posts"
        f" WHERE post_index >= {OLDER_INDEX}) AS older ON posts.post_id = older.post_id"
        " ORDER BY ranked.thread, posts.parent_id IS NOT NULL, posts.created NULLS LAST,"
        " posts.post_id"
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


def _as_threads(posts: pa.Table, source: str, text: Text | None) -> pa.RecordBatch:
    """Rows of `schema.THREADS` from posts of complete threads, each with its opening post first and
    its answers in order."""
    bodies = _converted(posts, text)
    posts = posts.set_column(posts.column_names.index("body"), "body", bodies)
    openings = posts.filter(pc.is_null(posts["parent_id"]))

    # Columns that a thread does not share with its opening post.
    ids = zip(openings["site"].to_pylist(), openings["post_id"].to_pylist(), strict=True)
    comments, answers = _children(posts)
    columns: dict[str, pa.Array] = {
        "thread_id": pa.array([f"{site}/{post_id}" for site, post_id in ids]),
        "source": pa.array([source] * len(openings)),
        "comments": comments,
        "responses": answers,
    }
    for name in THREADS.names:
        if name not in columns:
            columns[name] = openings[name]

    threads = pa.table({name: columns[name] for name in THREADS.names})
    return threads.cast(THREADS).combine_chunks().to_batches()[0]


def _children(posts: pa.Table) -> tuple[pa.ListArray, pa.ListArray]:
    """The lists of comments and of answers of the threads."""
    is_opening = pc.is_null(posts["parent_id"]).to_numpy()
    is_comment = pc.fill_null(posts["is_comment"], False).to_numpy()
    openings = posts.filter(pa.array(is_opening))
    thread = np.cumsum(is_opening) - 1  # index of the thread of each post

    of_comment = is_comment & ~is_opening
    comments = posts.filter(pa.array(of_comment))
    comments = comments.append_column("comment_id", comments["post_id"])
    of_answer = ~is_comment & ~is_opening
    answers = posts.filter(pa.array(of_answer))

    # The comparison is null, not false, in threads without an accepted answer.
    accepted_ids = openings["accepted_id"].take(pa.array(thread[of_answer]))
    accepted = pc.fill_null(pc.equal(answers["post_id"], accepted_ids), False)
    answers = answers.append_column("response_id", answers["post_id"])
    answers = answers.append_column("accepted", accepted)
    return (
        _lists(comments, COMMENTS, thread[of_comment], len(openings)),
        _lists(answers, ANSWERS, thread[of_answer], len(openings)),
    )


def _lists(
    rows: pa.Table, struct: pa.StructType, thread: NDArray[np.intp], threads: int
) -> pa.ListArray:
    """The rows as structs in a list for each thread. `thread` has the index of each row's thread,
    in ascending order."""
    names = [field.name for field in struct]
    structs = pa.StructArray.from_arrays(
        [rows[name].combine_chunks() for name in names], names=names
    )
    offsets = np.searchsorted(thread, np.arange(threads + 1))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)


def _with_text(batch: pa.RecordBatch, *, text: Text) -> pa.RecordBatch:
    index = batch.schema.get_field_index("body")
    return batch.set_column(index, "body", _converted(batch, text))


def _converted(posts: pa.RecordBatch | pa.Table, text: Text | None) -> pa.Array:
    """The bodies as Markdown. Those of comments and of older threads are Markdown already."""
    if text is None:
        return posts["body"]

    columns = (posts[name].to_pylist() for name in ("body", "post_index", "is_comment"))
    converted = [
        body or "" if index >= OLDER_INDEX or is_comment else text(body or "")
        for body, index, is_comment in zip(*columns, strict=True)
    ]
    return pa.array(converted, pa.string())
