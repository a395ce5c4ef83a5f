"""Parquet files in and out through Arrow, a bounded number of rows in memory at a time."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, get_type_hints

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from worldpm.errors import DataError, first_line
from worldpm.storage.json_files import Json, Plain

Record = TypeVar("Record")

ROWS_PER_GROUP = 8192
"""Rows of a row group in the files that we write."""
ROWS_AT_ONCE = 1024
"""Most rows of a batch that is read."""


def write_parquet(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
    """Write the batches as one file and return its number of rows; the same rows always make the
    same bytes."""
    rows = 0

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _regrouped(batches, schema):
            writer.write_table(table)
            rows += table.num_rows

    return rows


def _regrouped(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of ROWS_PER_GROUP rows, whatever the sizes of the batches."""
    pending: list[pa.Table] = []
    rows = 0

    for batch in batches:
        pending.append(pa.Table.from_batches([batch]).cast(schema))
        rows += batch.num_rows

        if rows >= ROWS_PER_GROUP:
            table = pa.concat_tables(pending)
            while table.num_rows >= ROWS_PER_GROUP:
                # The writer's pages follow the chunks, so a single chunk gives the same bytes for
                # any sizes of batches.
                yield table.slice(0, ROWS_PER_GROUP).combine_chunks()
                table = table.slice(ROWS_PER_GROUP)
            pending, rows = [table], table.num_rows

    if rows:
        yield pa.concat_tables(pending).combine_chunks()


def rows_to_batches(
    rows: Iterable[Plain], schema: pa.Schema, *, size: int = 1024
) -> Iterator[pa.RecordBatch]:
    """Python rows as record batches of at most `size` rows."""
    pending: list[Plain] = []

    for row in rows:
        pending.append(row)
        if len(pending) == size:
            yield pa.RecordBatch.from_pylist(pending, schema=schema)
            pending = []

    if pending:
        yield pa.RecordBatch.from_pylist(pending, schema=schema)


def write_rows(path: Path, rows: Iterable[Plain], schema: pa.Schema) -> int:
    """Write Python rows as one file and return their number."""
    return write_parquet(path, rows_to_batches(rows, schema), schema)


def paths_of(*paths: Path) -> list[Path]:
    """The tables of several folders in the order given, sorted by name within each; a path may also
    be a Parquet file."""
    tables: list[Path] = []
    for path in paths:
        tables += [path] if path.is_file() else sorted(path.glob("*.parquet"))
    return tables


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(open_parquet(path).metadata.num_rows)


def columns_of(path: Path) -> list[str]:
    """Names of a Parquet file's columns.

    Raises:
        DataError: If the file is not Parquet.
    """
    return list(open_parquet(path).schema_arrow.names)


def open_parquet(path: Path, columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a file and check that it has the columns.

    Raises:
        DataError: If the file is not Parquet or lacks a column.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"not a readable Parquet file ({_one_line(error)})") from error

    names = file.schema_arrow.names
    if missing := [name for name in columns if name not in names]:
        raise DataError(
            path, f"lacks the column(s) {', '.join(missing)}; it has {', '.join(names)}"
        )
    return file


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Json]:
    """The rows of a Parquet file, in order, with some columns or with all.

    Raises:
        DataError: If the file is not Parquet, is damaged or lacks a column.
    """
    for batch in read_batches(path, columns):
        yield from batch.to_pylist()


def read_records(
    path: Path, record: type[Record], *, without: Sequence[str] = ()
) -> Iterator[Record]:
    """The rows of a Parquet file as dataclasses, in order. Fields in `without` are not read and
    keep their defaults.

    Raises:
        DataError: If the file is not Parquet, is damaged, lacks a column, or has a value of another
            type.
    """
    columns = [name for name in get_type_hints(record) if name not in without]
    for number, row in enumerate(read_rows(path, columns), start=1):
        try:
            yield msgspec.convert(row, record)
        except msgspec.ValidationError as error:
            raise DataError(path, f"row {number}: {error}. Make the table again.") from error


def read_batches(
    path: Path, columns: Sequence[str] | None = None, *, row_groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file as batches of ROWS_AT_ONCE rows, from some of its row groups or
    from all.

    Raises:
        DataError: As `read_rows`.
    """
    file = open_parquet(path, columns or ())

    try:
        yield from file.iter_batches(
            batch_size=ROWS_AT_ONCE,
            columns=columns,
            row_groups=row_groups,
        )
    except MemoryError:
        # Arrow's memory error is also an ArrowException, but the file is not damaged.
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"damaged ({_one_line(error)}). Get or make it again.") from error


def write_lines(parts: Sequence[Path], target: Path) -> None:
    """Write files of JSON lines, in order, as one Parquet file.

    A column has the type of all its values; integers become floating-point numbers if a value of
    the column is one. Rows without a column have null, and no rows have no columns.

    Raises:
        DataError: If a column cannot hold its values: texts and numbers, empty objects, or numbers
            that are too large.
    """

    def rows_of(part: Path, columns: pa.DataType | None = None) -> pa.Table:
        rows = [msgspec.json.decode(line) for line in part.read_bytes().splitlines()]
        # As structs, because a table of dictionaries takes its columns from the first row alone
        return pa.Table.from_batches([pa.RecordBatch.from_struct_array(pa.array(rows, columns))])

    try:
        # Read twice, so that only one part is in memory
        schemas = [rows_of(part).schema for part in parts]
        schema = pa.unify_schemas([pa.schema([]), *schemas], promote_options="permissive")
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for part in parts:
                writer.write_table(rows_of(part, pa.struct(schema)).cast(schema))
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            target, f"a column cannot hold its values ({first_line(error)}). Write JSON lines."
        ) from error
