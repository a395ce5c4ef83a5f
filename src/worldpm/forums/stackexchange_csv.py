"""Stack Exchange as CSV: results of its Data Explorer (`SELECT * FROM Posts`), the tables
`Questions` and `Answers` of StackSample, and the tables of the public dataset in BigQuery.

    "Id","PostTypeId","AcceptedAnswerId","ParentId","CreationDate","Score","Body","OwnerUserId",...
    "4","1","7","","2008-07-31 21:42:52","794","<p>How?</p>","8",...

    Id,OwnerUserId,CreationDate,ParentId,Score,Body
    497,50,2008-08-02T16:56:53Z,469,4,"<p>Like this.</p>"

Columns may have any order and more than these. BigQuery's have other cases (`post_type_id`).
StackSample is encoded in Latin-1, and names neither types nor accepted answers.

Source: https://github.com/StackExchange/StackExchange.DataExplorer, `Helpers/CsvResult.cs`;
https://www.kaggle.com/datasets/stackoverflow/stacksample.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from worldpm.errors import DataError
from worldpm.forums import stackexchange
from worldpm.forums.counts import Drops
from worldpm.forums.forum_format import EVERYTHING, ForumFormat, Selection, name_of
from worldpm.forums.markdown import from_html

BLOCK_BYTES = 1 << 26
"""Bytes that are read at a time; a row must fit."""
NEEDED = ("Id", "CreationDate", "Score", "Body")
GENERIC_NAMES = ("posts", "questions", "answers", "queryresults")
"""Names of files that do not name a site."""


def site_of(path: Path) -> str:
    """The file's name without its ending, or the name of its folder if the file is called after the
    table (`Questions.csv`)."""
    if path.stem.lower() in GENERIC_NAMES:
        return path.resolve().parent.name
    return re.sub(r"[-_](?:posts|questions|answers)$", "", path.stem, flags=re.IGNORECASE)


def read_posts(
    path: Path,
    *,
    site: str,
    selection: Selection = EVERYTHING,
    drops: Drops,
    advance: Callable[[int], object] = int,
) -> Iterator[pa.RecordBatch]:
    """Questions and answers as batches of `schema.POSTS`, bodies in HTML; dropped rows are counted
    in `drops`.

    Raises:
        DataError: If the file is not CSV of posts, or is damaged.
    """
    read_bytes = 0
    reader = _reader(path)
    names = _names(reader.schema.names)
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise DataError(
            path,
            f"not a table of posts: it has no column {', '.join(missing)}. Name another file.",
            line=1,
        )

    while (batch := _next(path, reader)) is not None:
        advance(batch.nbytes)
        read_bytes += batch.nbytes
        rows = _rows(batch, names)
        readable = stackexchange.readable_posts(rows, drops[site])
        if readable.num_rows:
            yield stackexchange.to_posts(readable, site)


def _reader(path: Path) -> csv.CSVStreamingReader:
    encoding = "utf8" if _is_utf8(path) else "latin-1"
    try:
        with path.open("rb") as file:
            header = file.readline().decode(encoding).lstrip("\ufeff").strip()
        names = [name.strip().strip('"') for name in header.split(",")]
        return csv.open_csv(
            path,
            read_options=csv.ReadOptions(encoding=encoding, block_size=BLOCK_BYTES),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _next(path: Path, reader: csv.CSVStreamingReader) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except pa.ArrowInvalid as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else "empty"
    return DataError(path, f"not CSV ({reason[:200]}). Export it again.")


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _names(columns: list[str]) -> dict[str, str]:
    """The columns by the names of the dump's attributes, whatever their case and underscores."""
    plain = {name.lower().replace("_", "").strip("\ufeff"): name for name in columns}
    attributes = {name: plain.get(name.lower()) for name in stackexchange.ATTRIBUTES}
    return {name: column for name, column in attributes.items() if column is not None}


def _rows(batch: pa.RecordBatch, names: dict[str, str]) -> pa.RecordBatch:
    """The batch with the attributes of `Posts.xml` and its forms of dates."""
    columns = {
        name: _present(batch[names[name]])
        if name in names
        else pa.nulls(batch.num_rows, pa.string())
        for name in stackexchange.ATTRIBUTES
    }
    for name in ("CreationDate", "ClosedDate"):
        columns[name] = _as_in_xml(columns[name])
    if "PostTypeId" not in names:
        is_question = pc.is_null(columns["ParentId"])
        question, answer = map(pa.scalar, (stackexchange.QUESTION, stackexchange.ANSWER))
        columns["PostTypeId"] = pc.if_else(is_question, question, answer)
    return pa.RecordBatch.from_pydict(columns)


def _present(column: pa.Array) -> pa.Array:
    """The values; null for an empty text, and for R's mark of a missing value."""
    absent = pc.is_in(column, pa.array(["", "NA", "null"]))
    return pc.if_else(absent, pa.scalar(None, pa.string()), column)


def _as_in_xml(dates: pa.Array) -> pa.Array:
    """Dates such as `2008-07-31 21:42:52 UTC` as `2008-07-31T21:42:52`."""
    without_zone = pc.replace_substring_regex(dates, r"(?: UTC|\+00:00|Z)$", "")
    return pc.replace_substring_regex(without_zone, r"^(\d{4}-\d\d-\d\d) ", r"\1T")


STACKEXCHANGE_CSV = ForumFormat(
    name="stackexchange-csv",
    source="stackexchange",
    to_markdown=from_html,
    site_of=site_of,
    read_posts=read_posts,
    part_of=name_of,
)
"""Tables of posts, questions and answers."""
