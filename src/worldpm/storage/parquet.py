"""Parquet files in and out through Arrow, a bounded number of rows in memory at a time."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from worldpm.errors import DataError

Json = dict[str, Any]

ROWS_PER_GROUP, ROWS_AT_ONCE = 8192, 1024


def write_parquet(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
    """Write the batches as one file and give its number of rows; the same rows always make the same
    bytes."""
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


def rows_to_batches(
    rows: Iterable[Json], schema: pa.Schema, *, size: int = 1024
) -> Iterator[pa.RecordBatch]:
    """Python rows as record batches of at most `size` rows."""
    held: list[Json] = []
    for row in rows:
        held.append(row)
        if len(held) == size:
            yield pa.RecordBatch.from_pylist(held, schema=schema)
            held = []
    if held:
        yield pa.RecordBatch.from_pylist(held, schema=schema)


def write_rows(path: Path, rows: Iterable[Json], schema: pa.Schema) -> int:
    """Write Python rows as one file and give their number."""
    return write_parquet(path, rows_to_batches(rows, schema), schema)


def paths_of(*places: Path) -> list[Path]:
    """The tables of several folders, by name, in the order given; a Parquet file stands for
    itself."""
    return [
        path
        for place in places
        for path in ([place] if place.is_file() else sorted(place.glob("*.parquet")))
    ]


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(open_parquet(path).metadata.num_rows)


def columns_of(path: Path) -> list[str]:
    """Names of a Parquet file's columns.

    Raises:
        DataError: If the file is not Parquet.
    """
    return list(open_parquet(path).schema_arrow.names)


def open_parquet(path: Path, schema: pa.Schema | None = None) -> pq.ParquetFile:
    """The file, checked to have the columns of the schema.

    Raises:
        DataError: If the file is not Parquet or lacks a column.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            path, f"not a readable Parquet file ({' '.join(str(error).split())})"
        ) from error
    found = file.schema_arrow.names
    missing = [name for name in (schema.names if schema is not None else ()) if name not in found]
    if missing:
        raise DataError(
            path, f"lacks the column(s) {', '.join(missing)}; it has {', '.join(found)}"
        )
    return file


def read_rows(path: Path, schema: pa.Schema | None = None) -> Iterator[Json]:
    """The rows of a Parquet file, in order; the columns of the schema, or all.

    Raises:
        DataError: If the file is not Parquet, is damaged or lacks a column of the schema.
    """
    for batch in read_batches(path, schema):
        yield from batch.to_pylist()


def read_batches(
    path: Path, schema: pa.Schema | None = None, *, row_groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """The same as batches of ROWS_AT_ONCE rows, of all row groups of the file or of some.

    Raises:
        DataError: As `read_rows`.
    """
    file = open_parquet(path, schema)
    try:
        yield from file.iter_batches(
            batch_size=ROWS_AT_ONCE,
            columns=None if schema is None else schema.names,
            row_groups=row_groups,
        )
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            path, f"damaged ({' '.join(str(error).split())}); get or make it again"
        ) from error
