"""The data engine: plain SQL over Parquet files and work on batches of rows, by DuckDB in this
process or by Spark.

Nothing else speaks to either. A query uses only what both run: standard joins, window functions
with `NULLS LAST` spelled out (their defaults differ), no function of one engine alone.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import duckdb
import pyarrow as pa

from worldpm.errors import ConfigError
from worldpm.options.shared import Engine
from worldpm.storage.parquet import open_parquet, read_batches
from worldpm.storage.workers import cores, in_order

ROWS_OF_A_RESULT = 4096
"""In a record batch of a query's result."""
MEMORY, MOST_THREADS = "1GB", 8
"""What DuckDB may hold before it goes on on the disk; each thread needs a share of it to go on at
all."""
SPARK = {
    "spark.master": "local[*]",
    "spark.app.name": "worldpm",
    "spark.ui.enabled": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "16",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "1024",
}
"""Settings of a session, where `spark-submit` or its files do not say otherwise."""

Result = TypeVar("Result")
Rewrite = Callable[[pa.RecordBatch], pa.RecordBatch]


class Database(Protocol):
    """Named tables of one engine, and queries over them."""

    def read(self, name: str, paths: Sequence[Path]) -> None:
        """Name the rows of Parquet files, all of the same columns."""

    def keep(self, name: str, query: str) -> None:
        """Compute a query once and name its rows."""

    def count(self, name: str) -> int:
        """Rows of a named table."""

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query in its order, streamed."""


class DuckDB:
    """The embedded engine. Names are temporary: they end with the object."""

    def __init__(self, spill: Path) -> None:
        self._connection = duckdb.connect(
            config={
                "temp_directory": str(spill),
                "memory_limit": MEMORY,
                "threads": min(cores() or 1, MOST_THREADS),
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
    """Spark SQL, in the session that `spark-submit` names or a local one."""

    def __init__(self) -> None:
        self._session = spark_session()

    def read(self, name: str, paths: Sequence[Path]) -> None:
        """See `Database`."""
        self._session.read.parquet(*map(str, paths)).createOrReplaceTempView(name)

    def keep(self, name: str, query: str) -> None:
        """See `Database`."""
        self._session.sql(query).cache().createOrReplaceTempView(name)

    def rewrite(self, name: str, work: Rewrite) -> None:
        """Replace a named table by what `work` makes of its batches, which has the same columns."""

        def rewritten(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return map(work, batches)

        rows = self._session.table(name)
        rows.mapInArrow(rewritten, rows.schema).persist().createOrReplaceTempView(name)

    def count(self, name: str) -> int:
        """See `Database`."""
        return int(self._session.table(name).count())

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """See `Database`. A batch travels as the bytes of an Arrow stream, so the driver never
        holds the whole result."""

        def serialised(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                yield pa.RecordBatch.from_pydict({"stream": [sink.getvalue().to_pybytes()]})

        for row in (
            self._session.sql(query).mapInArrow(serialised, "stream binary").toLocalIterator()
        ):
            yield from pa.ipc.open_stream(row.stream)


def spark_session() -> Any:
    """The Spark that `spark-submit` names, or else a local one.

    Raises:
        ConfigError: If Spark or Java is not there.
    """
    try:  # pyspark is an extra
        from pyspark import SparkConf
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ConfigError(
            "--engine spark needs pyspark, and Java 17: pip install 'worldpm[spark]'"
        ) from error
    try:
        settings = SparkConf()
        for name, value in SPARK.items():
            settings.setIfMissing(name, value)
        return SparkSession.builder.config(conf=settings).getOrCreate()
    except (PySparkException, OSError, RuntimeError) as error:
        raise ConfigError(
            f"Spark does not start ({str(error).splitlines()[0]}); it needs Java 17"
        ) from error


def database(engine: Engine, spill: Path) -> DuckDB | Spark:
    """An engine without tables; `spill` is a folder that DuckDB may use when memory runs out."""
    return Spark() if engine == "spark" else DuckDB(spill)


def map_batches(
    path: Path,
    schema: pa.Schema,
    work: Callable[[pa.RecordBatch], Result],
    *,
    workers: int,
    engine: Engine = "duckdb",
) -> Iterator[Result]:
    """What `work` makes of each batch of rows of a Parquet file, in order; by so many processes, or
    by Spark's.

    A batch has at most `parquet.ROWS_AT_ONCE` rows and never spans two row groups of the file.
    `work` and what it gives must be picklable.

    Raises:
        DataError: If the file is not Parquet or lacks a column of the schema.
    """
    row_groups = range(open_parquet(path, schema).metadata.num_row_groups)
    if engine == "spark":
        yield from _map_in_spark(path, work)
        return
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

    rows = spark_session().read.parquet(str(path)).select("*", "_metadata.row_index")
    results = rows.mapInArrow(
        pickled, "first_row long, result binary"
    ).persist()  # to put them in order Spark goes over them twice
    for row in results.orderBy("first_row").toLocalIterator():
        yield pickle.loads(row.result)
    results.unpersist()
