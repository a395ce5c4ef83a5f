"""Stack Exchange data dumps: `SITE.7z`, `SITE-Posts.7z` or a plain `Posts.xml`, streamed, never
unpacked whole.

Source: the dump's schema, https://meta.stackexchange.com/questions/2677.
"""

import io
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast
from xml.parsers import expat

import py7zr
import pyarrow as pa
import pyarrow.compute as pc
from py7zr.io import Py7zIO, WriterFactory
from xml2arrow import Xml2ArrowError, XmlToArrowParser

from worldpm.errors import DataError
from worldpm.forums.markdown import from_html
from worldpm.storage.schema import POSTS

SOURCE = "stackexchange"
TO_MARKDOWN = from_html
PROLOG = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*)?<!DOCTYPE\s+posts\s+SYSTEM\s+(?:'[^'<>]*'|\"[^\"<>]*\")\s*>"
)
"""Some dumps of 2011 to 2012 begin so. The file that it names is never read, so it can define
nothing."""
MEMBER = "Posts.xml"

MAX_ENTRIES, MAX_BYTES, MAX_RATIO = 1_000, 1 << 40, 100
"""An archive may list so many entries, unpack to so many bytes, and to so many times its own
size."""

ATTRIBUTES = (
    "Id",
    "PostTypeId",
    "ParentId",
    "AcceptedAnswerId",
    "CreationDate",
    "Score",
    "Body",
    "Title",
    "Tags",
    "OwnerUserId",
    "OwnerDisplayName",
    "ContentLicense",
    "ClosedDate",
)
QUESTION, ANSWER = "1", "2"
INTEGER, INSTANT = r"^-?\d{1,18}$", r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?$"
LICENCES = (
    ("2011-04-08", "CC BY-SA 2.5"),
    ("2018-05-02", "CC BY-SA 3.0"),
    ("9999-12-31", "CC BY-SA 4.0"),
)
"""The licence of a post written before the date. Source:
https://stackoverflow.com/help/licensing."""


def site_of(path: Path) -> str:
    """The site's name, from the archive's name or, for a plain `Posts.xml`, its folder's:
    `beer.stackexchange.com`."""
    name = path.resolve().parent.name if path.name == MEMBER else path.stem.removesuffix("-Posts")
    return re.sub(r"\.\d{4}-\d\d(-\d\d)?$", "", name)


def size_of(path: Path) -> int:
    """Bytes of the dump's XML.

    Raises:
        DataError: If the archive is damaged or could do harm when unpacked.
    """
    return _check_archive(path) if path.suffix == ".7z" else path.stat().st_size


def read_posts(
    path: Path, *, site: str, drops: Counter[str], advance: Callable[[int], object] = int
) -> Iterator[pa.RecordBatch]:
    """Questions and answers of a dump as batches of `schema.POSTS`, bodies in HTML; rows left out
    are counted in `drops`.

    `advance` is told the bytes of XML that each batch took.

    Raises:
        DataError: If the file is not such a dump, is damaged, is not UTF-8, or could do harm when
            unpacked.
    """
    told = 0
    with _open(path) as stream:
        for rows in _parse(path, stream):
            advance(stream.offset - told)
            told = stream.offset
            kept = _readable(rows, drops)
            if kept.num_rows:
                yield _posts(kept, site)


def _readable(rows: pa.RecordBatch, drops: Counter[str]) -> pa.RecordBatch:
    """The questions and answers that can be read."""
    is_answer = pc.equal(rows["PostTypeId"], ANSWER)
    checks = (
        ("not a question or answer", pc.is_in(rows["PostTypeId"], pa.array([QUESTION, ANSWER]))),
        ("row without Id", _present(rows["Id"])),
        ("answer without ParentId", pc.or_(pc.invert(is_answer), _present(rows["ParentId"]))),
        ("Score is not a number", pc.match_substring_regex(rows["Score"], INTEGER)),
        ("CreationDate is not a date", _is_instant(rows["CreationDate"])),
        (
            "ClosedDate is not a date",
            pc.or_(pc.is_null(rows["ClosedDate"]), _is_instant(rows["ClosedDate"])),
        ),
    )
    good = pa.array([True] * rows.num_rows)
    for reason, passes in checks:
        passes = pc.fill_null(passes, False)
        drops[reason] += pc.sum(pc.and_(good, pc.invert(passes))).as_py() or 0
        good = pc.and_(good, passes)
    return rows.filter(good)


def _present(column: pa.Array) -> pa.Array:
    return pc.fill_null(pc.greater(pc.utf8_length(column), 0), False)


def _is_instant(column: pa.Array) -> pa.Array:
    shaped = pc.fill_null(pc.match_substring_regex(column, INSTANT), False)
    days = pc.if_else(shaped, pc.utf8_slice_codeunits(column, 0, 10), None)
    parsed = pc.strptime(days, format="%Y-%m-%d", unit="s", error_is_null=True)
    # strptime lets 30 February roll over into March; a real day comes back as it went in
    hours = pc.fill_null(
        pc.match_substring_regex(column, r"T([01]\d|2[0-3]):[0-5]\d:[0-5]\d"), False
    )
    real = pc.and_(
        pc.equal(pc.strftime(parsed, format="%Y-%m-%d"), days), pc.greater_equal(days, "0001")
    )
    return pc.and_(hours, pc.fill_null(real, False))


def _posts(rows: pa.RecordBatch, site: str) -> pa.RecordBatch:
    """The columns of `schema.POSTS`. An author is the user's id, or the name where the account is
    gone."""
    ids, dates = rows["Id"].to_pylist(), rows["CreationDate"].to_pylist()
    answers = pc.equal(rows["PostTypeId"], ANSWER)
    kinds = ["a" if is_answer else "q" for is_answer in answers.to_pylist()]
    columns = {
        "post_id": rows["Id"],
        "parent_id": pc.if_else(answers, rows["ParentId"], pa.scalar(None, pa.string())),
        "accepted_id": rows["AcceptedAnswerId"],
        "title": pc.fill_null(rows["Title"], ""),
        "body": pc.fill_null(rows["Body"], ""),
        "tags": pa.array(
            [re.findall(r"[^<>|]+", tags or "") for tags in rows["Tags"].to_pylist()],
            pa.list_(pa.string()),
        ),
        "votes": pc.cast(rows["Score"], pa.int64()),
        "created": pc.cast(rows["CreationDate"], pa.timestamp("us")),
        "closed": pc.cast(rows["ClosedDate"], pa.timestamp("us")),
        "author": pc.coalesce(rows["OwnerUserId"], rows["OwnerDisplayName"]),
        "url": pa.array(
            [f"https://{site}/{kind}/{post_id}" for kind, post_id in zip(kinds, ids, strict=True)]
        ),
        "licence": pc.coalesce(
            rows["ContentLicense"], pa.array([_licence(date) for date in dates])
        ),
    }
    return pa.RecordBatch.from_pydict(columns, schema=POSTS)


def _licence(date: str) -> str:
    return next((name for before, name in LICENCES if date < before), LICENCES[-1][1])


def _parse(path: Path, stream: "_CheckedXml") -> Iterator[pa.RecordBatch]:
    """The attributes of every row, all as strings, null where absent."""
    fields = "".join(
        f"      - {{name: {name}, xml_path: /posts/row/@{name}, data_type: Utf8, nullable: true}}\n"
        for name in ATTRIBUTES
    )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(
            f"tables:\n  - name: posts\n    xml_path: /posts\n    levels: []\n    fields:\n{fields}"
        )
        config.flush()
        parser = XmlToArrowParser(config.name)
    try:
        for _, batch in parser.parse_batches(cast(IO[bytes], stream)):
            yield batch
    except Xml2ArrowError as error:
        stream.finish()
        raise DataError(
            path, f"not well-formed XML ({error}); get the dump again", line=_line_of_fault(path)
        ) from error
    stream.finish()


def _line_of_fault(path: Path) -> int | None:
    """Where a second, slower parser finds the fault that the fast one reported without a place."""
    parser = expat.ParserCreate()
    try:
        with _open(path) as stream:
            while block := stream.read(1 << 20):
                parser.Parse(block, False)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        return error.lineno
    return None


class _CheckedXml(io.RawIOBase):
    """A stream of a dump's XML that refuses, as it is read, what a dump never holds."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._path, self._raw = path, raw
        self.offset, self._head, self._tail, self._pending = 0, b"", b"", b""
        self._prolog_bytes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self._raw.read(size if size > 0 else 1 << 20)
        self._check_text(block)
        if len(self._head) < 4096:
            self._head += block
            self._check_head(final=not block)
        seen = self._tail + block
        if seen.find(b"<!DOCTYPE", max(0, self._prolog_bytes - (self.offset - len(seen)))) >= 0:
            raise DataError(
                self._path,
                "holds a DOCTYPE that defines entities, which no data dump does and which can be"
                " used for attacks; refused",
            )
        self._tail = seen[-64:]
        return block

    def _check_text(self, block: bytes) -> None:
        """UTF-8 over block borders: an unfinished character at the end waits for the next block."""
        data = self._pending + block
        try:
            data.decode("utf-8")
            self._pending = b""
        except UnicodeDecodeError as error:
            if block and error.reason == "unexpected end of data" and len(data) - error.start < 4:
                self._pending = data[error.start :]
            else:
                at = self.offset - len(self._pending) + error.start
                raise DataError(
                    self._path,
                    f"not UTF-8 at byte offset {at} ({error.reason}); get the dump again",
                ) from error
        self.offset += len(block)

    def _check_head(self, *, final: bool) -> None:
        if prolog := PROLOG.match(self._head):
            self._prolog_bytes = prolog.end()
        head = self._head.removeprefix(b"\xef\xbb\xbf").lstrip()
        head = head.split(b"?>", 1)[-1].lstrip() if head.startswith(b"<?xml") else head
        if (final or len(head) > 16) and not head.startswith((b"<posts", b"<!DOCTYPE")):
            found = head[:40].decode("utf-8", "replace") if head else "nothing"
            raise DataError(
                self._path, f"not a dump's {MEMBER}: it should begin with <posts>, found {found!r}"
            )

    def finish(self) -> None:
        """Read to the end and check that the document was closed, which the fast parser does
        not."""
        while self.read(1 << 20):
            pass
        if not self._tail.rstrip().endswith((b"</posts>", b"/>")) or (
            b"</posts>" not in self._tail and b"<posts/>" not in self._tail
        ):
            raise DataError(
                self._path,
                f"the XML stops before </posts>, after {self.offset} bytes; the file is cut short,"
                " get it again",
            )


@contextmanager
def _open(path: Path) -> Iterator[_CheckedXml]:
    """The dump's XML, decompressed in a thread of its own while it is read."""
    if path.suffix != ".7z":
        with path.open("rb") as file:
            yield _CheckedXml(path, file)
        return
    size = _check_archive(path)
    reading, writing = os.pipe()
    failure: list[Exception] = []
    worker = threading.Thread(target=_unpack, args=(path, writing, size, failure), daemon=True)
    worker.start()
    try:
        with os.fdopen(reading, "rb") as pipe:
            try:
                yield _CheckedXml(path, pipe)
            except DataError:
                # a damaged archive also makes bad XML: the cause is the better message
                pipe.close()
                worker.join()
                if failure:
                    raise failure[0] from None
                raise
    finally:
        worker.join()
    if failure:
        raise failure[0]


def _check_archive(path: Path) -> int:
    """Bytes of the archive's Posts.xml, after a look at its list of entries for anything that could
    do harm."""
    try:
        with py7zr.SevenZipFile(path) as archive:
            if archive.needs_password():
                raise DataError(path, "is encrypted; data dumps are not")
            entries = archive.list()
    except (
        py7zr.exceptions.ArchiveError,
        EOFError,
        OSError,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(path, error) from error
    total = sum(entry.uncompressed for entry in entries)
    if len(entries) > MAX_ENTRIES:
        raise DataError(
            path, f"lists {len(entries)} entries; a data dump has at most {MAX_ENTRIES}; refused"
        )
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise DataError(
                path, f"holds an entry outside its folder ({entry.filename!r}); refused"
            )
    if total > MAX_BYTES or total > MAX_RATIO * path.stat().st_size:
        raise DataError(
            path,
            f"would unpack to {total} bytes from {path.stat().st_size}: more than {MAX_RATIO}:1 or"
            " 1 TiB; refused",
        )
    found = [entry for entry in entries if entry.filename == MEMBER]
    if not found:
        names = ", ".join(sorted(entry.filename for entry in entries)[:5]) or "nothing"
        raise DataError(path, f"has no {MEMBER} (it holds {names}); a site's own archive is needed")
    return int(found[0].uncompressed)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        path, f"the archive is damaged or cut short ({type(error).__name__}: {error}); get it again"
    )


def _unpack(path: Path, writing: int, size: int, failure: list[Exception]) -> None:
    """Decompress Posts.xml into the pipe; what goes wrong is left for the reader to raise."""
    try:
        with os.fdopen(writing, "wb") as pipe, py7zr.SevenZipFile(path) as archive:
            archive.extract(targets=[MEMBER], factory=_ToPipe(path, pipe, size))
    except BrokenPipeError:
        pass  # the reader stopped early and says why itself
    except DataError as error:
        failure.append(error)
    except Exception as error:  # the decompressors raise errors of many kinds for damaged data
        failure.append(_damaged(path, error))


class _ToPipe(WriterFactory):
    def __init__(self, path: Path, pipe: IO[bytes], size: int) -> None:
        self._path, self._pipe, self._size = path, pipe, size

    def create(self, filename: str) -> Py7zIO:
        return _PipeEnd(self._path, self._pipe, self._size)


class _PipeEnd(Py7zIO):
    """Passes on at most the bytes that the archive's list announced."""

    def __init__(self, path: Path, pipe: IO[bytes], size: int) -> None:
        self._path, self._pipe, self._left, self._size = path, pipe, size, size

    def write(self, s: bytes | bytearray) -> int:
        self._left -= len(s)
        if self._left < 0:
            raise DataError(
                self._path,
                f"unpacks to more than the {self._size} bytes that it announces; refused",
            )
        return self._pipe.write(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def flush(self) -> None:
        self._pipe.flush()

    def size(self) -> int:
        return self._size - self._left
