"""The only code that speaks to the data engine: Parquet in and out, and the relational expressions of the road."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from worldpm.errors import DataError
from worldpm.storage.engine import Engine, spark_session
from worldpm.storage.schema import ANSWERS, POSTS, THREADS
from worldpm.storage.workers import cores, in_order

Json = dict[str, Any]

ROWS_PER_GROUP, ROWS_AT_ONCE, POSTS_AT_ONCE = 8192, 1024, 4096
MEMORY, MOST_THREADS = "1GB", 8
"""What DuckDB may hold before it goes on on the disk; each thread needs a share of it to go on at all."""

PLACE = pa.field("place", pa.int64())
"""Where a post stands in the dump: of two with one id the first is kept."""

Result = TypeVar("Result")
Text = Callable[[str], str]


def write_parquet(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
    """Write the batches as one file and give its number of rows; the same rows always make the same bytes."""
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _regrouped(batches, schema):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _regrouped(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of ROWS_PER_GROUP rows, however the batches were cut."""
    held: list[pa.Table] = []
    rows = 0
    for batch in batches:
        held.append(pa.Table.from_batches([batch]).cast(schema))
        rows += batch.num_rows
        if rows >= ROWS_PER_GROUP:
            table = pa.concat_tables(held)
            while table.num_rows >= ROWS_PER_GROUP:
                yield table.slice(0, ROWS_PER_GROUP).combine_chunks()
                table = table.slice(ROWS_PER_GROUP)
            held, rows = [table], table.num_rows
    if rows:
        yield pa.concat_tables(held).combine_chunks()


def rows_to_batches(rows: Iterable[Json], schema: pa.Schema, *, size: int = 1024) -> Iterator[pa.RecordBatch]:
    """Python rows as record batches of at most `size` rows."""
    held: list[Json] = []
    for row in rows:
        held.append(row)
        if len(held) == size:
            yield pa.RecordBatch.from_pylist(held, schema=schema)
            held = []
    if held:
        yield pa.RecordBatch.from_pylist(held, schema=schema)


def paths_of(*places: Path) -> list[Path]:
    """The tables of several folders, by name, in the order given; a Parquet file stands for itself."""
    return [path for place in places for path in ([place] if place.is_file() else sorted(place.glob("*.parquet")))]


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(_open(path).metadata.num_rows)


def columns_of(path: Path) -> list[str]:
    """Names of a Parquet file's columns.

    Raises:
        DataError: If the file is not Parquet.
    """
    return list(_open(path).schema_arrow.names)


def _open(path: Path, schema: pa.Schema | None = None) -> pq.ParquetFile:
    """The file, after a look that it has the columns of the schema."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"not a readable Parquet file ({' '.join(str(error).split())})") from error
    found = file.schema_arrow.names
    missing = [name for name in (schema.names if schema is not None else ()) if name not in found]
    if missing:
        raise DataError(path, f"lacks the column(s) {', '.join(missing)}; it has {', '.join(found)}")
    return file


def read_rows(path: Path, schema: pa.Schema | None = None) -> Iterator[Json]:
    """The rows of a Parquet file, in order, a bounded number in memory at a time; the columns of the schema, or all.

    Raises:
        DataError: If the file is not Parquet, is damaged or lacks a column of the schema.
    """
    for batch in read_batches(path, schema):
        yield from batch.to_pylist()


def read_batches(path: Path, schema: pa.Schema | None = None, *, row_groups: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
    """The same as batches of ROWS_AT_ONCE rows, of all row groups of the file or of some.

    Raises:
        DataError: As `read_rows`.
    """
    file = _open(path, schema)
    try:
        yield from file.iter_batches(batch_size=ROWS_AT_ONCE, columns=None if schema is None else schema.names, row_groups=row_groups)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"damaged ({' '.join(str(error).split())}); get or make it again") from error


def map_batches(
    path: Path, schema: pa.Schema, work: Callable[[pa.RecordBatch], Result], *, workers: int, engine: Engine = "duckdb"
) -> Iterator[Result]:
    """What `work` makes of each batch of at most ROWS_AT_ONCE rows of a Parquet file, in order; by so many processes, or by Spark's.

    A batch never spans two row groups of the file. `work` and what it gives must be picklable.

    Raises:
        DataError: If the file is not Parquet or lacks a column of the schema.
    """
    row_groups = range(_open(path, schema).metadata.num_row_groups)
    if engine == "spark":
        yield from _map_in_spark(path, work)
        return
    for results in in_order(partial(_map_row_group, path, work), row_groups, workers=workers):
        yield from results


def _map_row_group(path: Path, work: Callable[[pa.RecordBatch], Result], row_group: int) -> list[Result]:
    return [work(batch) for batch in read_batches(path, row_groups=[row_group])]


def _map_in_spark(path: Path, work: Callable[[pa.RecordBatch], Result]) -> Iterator[Result]:
    def pickled(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            result = pickle.dumps(work(batch.drop_columns("row_index")))
            yield pa.RecordBatch.from_pydict({"place": [batch["row_index"][0].as_py()], "result": [result]})

    rows = spark_session().read.parquet(str(path)).select("*", "_metadata.row_index")
    results = rows.mapInArrow(pickled, "place long, result binary").persist()  # to put them in order Spark goes over them twice
    for row in results.orderBy("place").toLocalIterator():
        yield pickle.loads(row.result)
    results.unpersist()


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
            yield batch.append_column(PLACE, pa.array(range(start, start + batch.num_rows), PLACE.type))
            start += batch.num_rows

    return write_parquet(path, placed(), POSTS.append(PLACE))


def join_threads(
    posts: Path, *, source: str, site: str, text: Text | None, spill: Path, engine: Engine = "duckdb", workers: int = 0
) -> Joined:
    """Threads of a file that `write_posts` wrote, ordered by date and id; answers ordered likewise.

    Of posts with one id the first is kept; an answer whose opening post is absent is left out. Both are counted.
    `text`, where given, is what becomes of every body, by so many processes or by Spark's. `spill` is a folder that the engine may use
    when memory runs out.
    """
    connection = _connect(engine, spill)
    table = connection.read_parquet(str(posts), table_name="posts")
    # only keys are joined and ranked; the posts themselves go through one sort, which the engine can do on the disk
    keys = table.select("place", "post_id", "parent_id", "created")
    firsts = keys.group_by("post_id").aggregate(place=keys.place.min())
    first = _kept(connection, "first", keys.semi_join(firsts, "place"), engine)
    openings = first.filter(first.parent_id.isnull())
    number = ibis.row_number().over(ibis.window(order_by=["created", "post_id"]))
    openings = openings.select("place", opened=openings.post_id, thread=number)
    answers = first.filter(first.parent_id.notnull())
    answered = answers.inner_join(openings.select("opened", "thread"), answers.parent_id == openings.opened)
    placed = _kept(connection, "placed", ibis.union(openings.select("place", "thread"), answered.select("place", "thread")), engine)
    duplicates, orphans = _count(table) - _count(first), _count(first) - _count(placed)
    if engine == "spark" and text is not None:
        table, text = _rewritten_in_spark(connection, posts, text), None
    rows = table.inner_join(placed, "place").order_by("thread", table.parent_id.notnull(), "created", "post_id")
    batches = connection.to_pyarrow_batches(rows, chunk_size=POSTS_AT_ONCE)
    made = in_order(partial(_as_threads, source=source, site=site, text=text), _whole_threads(batches), workers=workers)
    return Joined(made, duplicates, orphans)


def not_first_of_band(paths: Sequence[str], *, spill: Path, engine: Engine = "duckdb") -> set[str]:
    """The names that share a band with a name of more votes, or of as many and an earlier name.

    The tables hold `name, thread, votes, bands`. Threads come first; an answer of a thread that is one of those names ousts no other.
    """
    if not paths:
        return set()
    connection = _connect(engine, spill)
    read = [connection.read_parquet(path, table_name=f"bands{number}") for number, path in enumerate(paths)]
    table = ibis.union(read[0], *read[1:]) if len(read) > 1 else read[0]
    single = table.select("name", "thread", "votes", band=table.bands.unnest())
    threads = _kept(connection, "later_threads", _later(single.filter(single.name == single.thread)), engine)
    answers = _later(single.filter(single.name != single.thread).anti_join(threads, [("thread", "name")]))
    return {name for found in (threads, answers) for name in found.to_pyarrow()["name"].to_pylist()}


def _later(single: Any) -> Any:
    """The names that are not the first of some band."""
    # most bands stand once: counting them needs little memory, and few are left to be ranked
    met = single.group_by("band").aggregate(texts=single.count()).filter(ibis._.texts > 1)
    window = ibis.window(group_by="band", order_by=[ibis.desc("votes"), "name"])
    ranked = single.semi_join(met, "band").mutate(rank=ibis.row_number().over(window))
    return ranked.filter(ibis._.rank > 0).select("name").distinct()


def _connect(engine: Engine, spill: Path) -> Any:
    if engine == "duckdb":
        threads = min(cores() or 1, MOST_THREADS)
        return ibis.duckdb.connect(temp_directory=str(spill), memory_limit=MEMORY, threads=threads, preserve_insertion_order=False)
    session = spark_session()  # first: it says what is missing
    return ibis.pyspark.connect(session)


def _count(table: Any) -> int:
    return int(table.count().to_pyarrow().as_py())


def _kept(connection: Any, name: str, expression: Any, engine: Engine) -> Any:
    """The expression, computed once."""
    return connection.create_table(name, expression, temp=True) if engine == "duckdb" else expression.cache()


def _rewritten_in_spark(connection: Any, posts: Path, text: Text) -> Any:
    def rewritten(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            place = batch.schema.get_field_index("body")
            yield batch.set_column(place, "body", _rewritten(batch["body"], text))

    rows = spark_session().read.parquet(str(posts))
    rows.mapInArrow(rewritten, rows.schema).persist().createOrReplaceTempView("rewritten")
    return connection.table("rewritten")


def _whole_threads(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The posts of sorted batches, cut between threads."""
    held: pa.Table | None = None
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        held = rows if held is None else pa.concat_tables([held, rows])
        end = pa.compute.index(held["thread"], held["thread"][-1]).as_py()  # where the last thread begins: it may go on
        if end:
            yield held.slice(0, end).combine_chunks()
            held = held.slice(end)
    if held is not None and len(held):
        yield held.combine_chunks()


def _as_threads(posts: pa.Table, source: str, site: str, text: Text | None) -> pa.RecordBatch:
    """Posts of whole threads, the opening one first and the answers in order, in the schema of threads."""
    opens = pa.compute.is_null(posts["parent_id"])
    bodies = _rewritten(posts["body"].combine_chunks(), text)
    posts = posts.set_column(posts.column_names.index("body"), "body", bodies)
    openings, answers = posts.filter(opens), posts.filter(pa.compute.invert(opens))
    starts = np.append(np.flatnonzero(opens.to_numpy()), len(posts))
    offsets = starts - np.arange(len(starts))  # answers that stand before each opening
    parents = np.repeat(np.arange(len(openings)), np.diff(offsets))
    accepted = pa.compute.fill_null(pa.compute.equal(answers["post_id"], openings["accepted_id"].take(pa.array(parents))), False)
    named = answers.append_column("response_id", answers["post_id"]).append_column("accepted", accepted)
    responses = pa.StructArray.from_arrays([named[name].combine_chunks() for name in ANSWERS.names], names=ANSWERS.names)
    columns: dict[str, pa.Array] = {
        "thread_id": pa.array([f"{site}/{post_id}" for post_id in openings["post_id"].to_pylist()]),
        "source": pa.array([source] * len(openings)),
        "site": pa.array([site] * len(openings)),
        "responses": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), responses),
    }
    made = pa.table({name: columns.get(name, openings[name] if name in openings.column_names else None) for name in THREADS.names})
    return made.cast(THREADS).combine_chunks().to_batches()[0]


def _rewritten(bodies: pa.Array, text: Text | None) -> pa.Array:
    return bodies if text is None else pa.array([text(body or "") for body in bodies.to_pylist()], pa.string())
