"""The data engine: plain SQL over Parquet files and work on batches of rows, by DuckDB in this
process or by Spark.

No other module uses DuckDB or Spark. Queries use only features of both engines, such as standard
joins and window functions. They always write `NULLS LAST`, because the defaults differ.
"""

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import duckdb
import pyarrow as pa

from worldpm import extras
from worldpm.errors import ConfigError
from worldpm.options.shared import Engine
from worldpm.storage.parquet import open_parquet, read_batches
from worldpm.storage.workers import cores, in_order

ROWS_OF_A_RESULT = 4096
"""Rows of a record batch of a query's result."""
DUCKDB_MEMORY = "1GB"
"""Memory that DuckDB may use before it writes to the disk."""
DUCKDB_MOST_THREADS = 8
"""Every thread needs a share of DuckDB's memory, so more threads would exhaust it."""
SPARK = {
    "spark.master": "local[*]",
    "spark.app.name": "worldpm",
    "spark.ui.enabled": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "16",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "1024",
}
"""Settings of a session, unless `spark-submit` or its files set them."""

Result = TypeVar("Result")
Rewrite = Callable[[pa.RecordBatch], pa.RecordBatch]


class Database(Protocol):
    """Named tables of one engine, and queries over them."""

    def read(self, name: str, paths: Sequence[Path]) -> None:
        """Make a named table of Parquet files that all have the same columns."""

    def keep(self, name: str, query: str) -> None:
        """Compute a query once and make a named table of its rows."""

    def count(self, name: str) -> int:
        """Rows of a named table."""

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query in its order, streamed."""


class DuckDB:
    """The embedded engine. Its tables are temporary: they end with the object."""

    def __init__(self, spill: Path) -> None:
        self._connection = duckdb.connect(
            config={
                "temp_directory": str(spill),
                "memory_limit": DUCKDB_MEMORY,
                "threads": min(cores() or 1, DUCKDB_MOST_THREADS),
                # Queries that need an order have ORDER BY; the others need less memory this way.
                "preserve_insertion_order": False,
            }
        )

    def read(self, name: str, paths: Sequence[Path]) -> None:
        """See `Database`."""
        self._connection.read_parquet([str(path) for path in paths]).create_view(name)

    def keep(self, name: str, query: str) -> None:
        """See `Database`."""
        self._connection.execute(f"CREATE TEMP TABLE {name} AS {query}")

    def count(self, name: str) -> int:
        """See `Database`."""
        rows = self._connection.execute(f"SELECT count(*) FROM {name}").fetchall()
        return int(rows[0][0])

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """See `Database`."""
        yield from self._connection.sql(query).to_arrow_reader(ROWS_OF_A_RESULT)


class Spark:
    """Spark SQL, in the session of `spark-submit` or a local one."""

    def __init__(self) -> None:
        self._session = spark_session()

    def read(self, name: str, paths: Sequence[Path]) -> None:
        """See `Database`."""
        self._session.read.parquet(*map(str, paths)).createOrReplaceTempView(name)

    def keep(self, name: str, query: str) -> None:
        """See `Database`."""
        self._session.sql(query).cache().createOrReplaceTempView(name)

    def rewrite(self, name: str, work: Rewrite) -> None:
        """Replace a named table by the results of `work`, which maps batches to batches with the
        same columns."""

        def rewritten(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return map(work, batches)

        rows = self._session.table(name)
        rows.mapInArrow(rewritten, rows.schema).persist().createOrReplaceTempView(name)

    def count(self, name: str) -> int:
        """See `Database`."""
        return int(self._session.table(name).count())

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """See `Database`. Batches travel as the bytes of Arrow streams, so the driver never holds
        the whole result."""

        def serialised(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                yield pa.RecordBatch.from_pydict({"stream": [sink.getvalue().to_pybytes()]})

        # `toArrow` would be simpler, but it collects all rows in the driver's memory.
        streams = self._session.sql(query).mapInArrow(serialised, "stream binary")
        for row in streams.toLocalIterator():
            yield from pa.ipc.open_stream(row.stream)


def spark_session() -> Any:
    """The session of `spark-submit`, or else a local one.

    Raises:
        ConfigError: If Spark or Java is not installed.
    """
    load = partial(extras.load, extra="spark", needed_by="--engine spark")
    pyspark, errors, sql = map(load, ("pyspark", "pyspark.errors", "pyspark.sql"))

    try:
        settings = pyspark.SparkConf()
        for name, value in SPARK.items():
            settings.setIfMissing(name, value)
        # Spark's workers must run this Python; by default they run the first `python3`
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        return sql.SparkSession.builder.config(conf=settings).getOrCreate()
    except (errors.PySparkException, OSError, RuntimeError) as error:
        raise ConfigError(
            f"Spark does not start ({str(error).splitlines()[0]}). It needs Java 17."
        ) from error


def database(engine: Engine, spill: Path) -> DuckDB | Spark:
    """A new database; `spill` is a folder that DuckDB may use when memory runs out."""
    return Spark() if engine == "spark" else DuckDB(spill)


def map_batches(
    path: Path,
    schema: pa.Schema,
    work: Callable[[pa.RecordBatch], Result],
    *,
    workers: int,
    engine: Engine = "duckdb",
) -> Iterator[Result]:
    """The results of `work` for the batches of rows of a Parquet file, in order, computed in
    `workers` processes or by Spark.

    A batch has at most `parquet.ROWS_AT_ONCE` rows and never spans two row groups of the file.
    `work` and its results must be picklable.

    Raises:
        DataError: If the file is not Parquet or lacks a column of the schema.
    """
    # Open the file first, because Spark's error about a missing column does not name the file.
    row_groups = range(open_parquet(path, schema.names).metadata.num_row_groups)

    if engine == "spark":
        yield from _map_in_spark(path, work)
        return

    # A task is a row group: its number is cheap to send, and no worker reads the rows of another.
    for results in in_order(partial(_map_row_group, path, work), row_groups, workers=workers):
        yield from results


def _map_row_group(
    path: Path, work: Callable[[pa.RecordBatch], Result], row_group: int
) -> list[Result]:
    return [work(batch) for batch in read_batches(path, row_groups=[row_group])]


def _map_in_spark(path: Path, work: Callable[[pa.RecordBatch], Result]) -> Iterator[Result]:
    def pickled(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            result = pickle.dumps(work(batch.drop_columns("row_index")))
            yield pa.RecordBatch.from_pydict(
                {"first_row": [batch["row_index"][0].as_py()], "result": [result]}
            )

    # Spark guarantees no order of rows, but a hidden column has the index of each row in the file.
    rows = spark_session().read.parquet(str(path)).select("*", "_metadata.row_index")

    # Persist the results: sorting reads them twice, and would otherwise compute them twice.
    results = rows.mapInArrow(pickled, "first_row long, result binary").persist()
    for row in results.orderBy("first_row").toLocalIterator():
        yield pickle.loads(row.result)

    results.unpersist()
