"""Stack Exchange data dumps: `SITE.7z`, `SITE-Posts.7z` or a plain `Posts.xml`, streamed instead of
unpacked.

An answer in `Posts.xml`; a question has PostTypeId 1, a Title and Tags:

    <row Id="3" PostTypeId="2" ParentId="1" CreationDate="2016-08-02T15:39:14.947" Score="5"
     Body="&lt;p&gt;Yes.&lt;/p&gt;" OwnerUserId="8" ContentLicense="CC BY-SA 3.0" />

Source: the dump's schema, https://meta.stackexchange.com/questions/2677.
"""

import io
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from xml.parsers import expat

import py7zr
import pyarrow as pa
import pyarrow.compute as pc
from py7zr.io import Py7zIO, WriterFactory
from xml2arrow import Xml2ArrowError, XmlToArrowParser

from worldpm.errors import DataError
from worldpm.forums.forum_format import ForumFormat
from worldpm.forums.markdown import from_html
from worldpm.storage.schema import POSTS

PROLOG = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*)?"
    rb"<!DOCTYPE\s+posts\s+SYSTEM\s+(?:'[^'<>]*'|\"[^\"<>]*\")\s*>"
)
"""The beginning of some dumps of 2011 to 2012. It is harmless: the file that it names is never
read."""
MEMBER = "Posts.xml"

MAX_ENTRIES = 1_000
"""Most entries of an archive."""
MAX_BYTES = 1 << 40
"""Most bytes that an archive may unpack to."""
MAX_RATIO = 100
"""Largest ratio of an archive's unpacked size to its packed size."""

BLOCK_BYTES = 1 << 20
"""XML that is read at a time, unless the reader asks for another size."""
HEAD_BYTES = 4096
"""Beginning of the XML that is searched for the root element."""
TAIL_BYTES = 64
"""End of a block that is kept, so that a tag across two blocks is found."""

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
"""Values of PostTypeId."""
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
    """Questions and answers of a dump as batches of `schema.POSTS`, bodies in HTML; dropped rows
    are counted in `drops`.

    `advance` is called with the bytes of XML of each batch.

    Raises:
        DataError: If the file is not such a dump, is damaged, is not UTF-8, or could do harm when
            unpacked.
    """
    # The stream's offset is ahead of the rows by the parser's buffer.
    reported = 0
    with _open(path) as stream:
        for rows in _parse(path, stream):
            advance(stream.offset - reported)
            reported = stream.offset

            readable = _readable(rows, drops)
            if readable.num_rows:
                yield _posts(readable, site)


def _readable(rows: pa.RecordBatch, drops: Counter[str]) -> pa.RecordBatch:
    """The readable questions and answers; other rows are counted by the first check that they
    fail."""
    is_answer = pc.equal(rows["PostTypeId"], ANSWER)
    not_closed = pc.is_null(rows["ClosedDate"])
    checks = (
        ("not a question or answer", pc.is_in(rows["PostTypeId"], pa.array([QUESTION, ANSWER]))),
        ("row without Id", _present(rows["Id"])),
        ("answer without ParentId", pc.or_(pc.invert(is_answer), _present(rows["ParentId"]))),
        ("Score is not a number", pc.match_substring_regex(rows["Score"], INTEGER)),
        ("CreationDate is not a date", _is_instant(rows["CreationDate"])),
        ("ClosedDate is not a date", pc.or_(not_closed, _is_instant(rows["ClosedDate"]))),
    )

    good = pa.array([True] * rows.num_rows)
    for reason, passes in checks:
        # A check of an absent value is null, which counts as a failure.
        passes = pc.fill_null(passes, False)
        drops[reason] += pc.sum(pc.and_(good, pc.invert(passes))).as_py() or 0
        good = pc.and_(good, passes)

    return rows.filter(good)


def _present(column: pa.Array) -> pa.Array:
    return pc.fill_null(pc.greater(pc.utf8_length(column), 0), False)


def _is_instant(column: pa.Array) -> pa.Array:
    """Whether a text is a date with a time of day that exists."""
    shaped = pc.fill_null(pc.match_substring_regex(column, INSTANT), False)
    hours = pc.match_substring_regex(column, r"T([01]\d|2[0-3]):[0-5]\d:[0-5]\d")

    # strptime lets 30 February roll over into March. A day that exists is the same text after both
    # conversions.
    days = pc.if_else(shaped, pc.utf8_slice_codeunits(column, 0, 10), None)
    parsed = pc.strptime(days, format="%Y-%m-%d", unit="s", error_is_null=True)
    unchanged = pc.equal(pc.strftime(parsed, format="%Y-%m-%d"), days)
    exists = pc.and_(unchanged, pc.greater_equal(days, "0001"))  # the year 0 does not

    return pc.and_(pc.fill_null(hours, False), pc.fill_null(exists, False))


def _posts(rows: pa.RecordBatch, site: str) -> pa.RecordBatch:
    """The columns of `schema.POSTS`. An author is the user's id, or the name if the account was
    deleted."""
    is_answer = pc.equal(rows["PostTypeId"], ANSWER)
    licences = pa.array([_licence(date) for date in rows["CreationDate"].to_pylist()])

    columns = {
        "post_id": rows["Id"],
        "parent_id": pc.if_else(is_answer, rows["ParentId"], pa.scalar(None, pa.string())),
        "accepted_id": rows["AcceptedAnswerId"],
        "title": pc.fill_null(rows["Title"], ""),
        "body": pc.fill_null(rows["Body"], ""),
        "tags": pa.array(map(_tags, rows["Tags"].to_pylist()), pa.list_(pa.string())),
        "votes": pc.cast(rows["Score"], pa.int64()),
        "created": pc.cast(rows["CreationDate"], pa.timestamp("us")),
        "closed": pc.cast(rows["ClosedDate"], pa.timestamp("us")),
        "author": pc.coalesce(rows["OwnerUserId"], rows["OwnerDisplayName"]),
        "url": pa.array(_urls(site, rows["Id"].to_pylist(), is_answer.to_pylist())),
        "licence": pc.coalesce(rows["ContentLicense"], licences),
    }
    return pa.RecordBatch.from_pydict(columns, schema=POSTS)


def _tags(text: str | None) -> list[str]:
    """The tags of `<a><b>` in older dumps, and of `|a|b|` in newer ones."""
    return re.findall(r"[^<>|]+", text or "")


def _urls(site: str, ids: Sequence[str], is_answer: Sequence[bool]) -> list[str]:
    kinds = ["a" if answer else "q" for answer in is_answer]
    return [f"https://{site}/{kind}/{post_id}" for kind, post_id in zip(kinds, ids, strict=True)]


def _licence(date: str) -> str:
    return next((name for before, name in LICENCES if date < before), LICENCES[-1][1])


def _parse(path: Path, stream: "_CheckedXml") -> Iterator[pa.RecordBatch]:
    """The attributes of every row, all as strings, null if absent."""
    parser = _parser()
    try:
        for _, batch in parser.parse_batches(cast(IO[bytes], stream)):
            yield batch
    except Xml2ArrowError as error:
        # A truncated file also has bad XML, and `finish` reports that cause.
        stream.finish()
        raise DataError(
            path, f"not well-formed XML ({error}). Get the dump again.", line=_line_of_fault(path)
        ) from error
    stream.finish()


def _parser() -> XmlToArrowParser:
    """A parser of the attributes of `Posts.xml`. The library reads its settings only from a
    file."""
    fields = [
        f"      - {{name: {name}, xml_path: /posts/row/@{name}, data_type: Utf8, nullable: true}}\n"
        for name in ATTRIBUTES
    ]
    settings = "tables:\n  - name: posts\n    xml_path: /posts\n    levels: []\n    fields:\n"

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(settings + "".join(fields))
        file.flush()
        return XmlToArrowParser(file.name)


def _line_of_fault(path: Path) -> int | None:
    """The line of the fault, from a second, slower parser, because the fast parser does not report
    lines."""
    parser = expat.ParserCreate()
    try:
        with _open(path) as stream:
            while block := stream.read(BLOCK_BYTES):
                parser.Parse(block, False)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        return error.lineno
    return None


class _CheckedXml(io.RawIOBase):
    """A stream of a dump's XML that rejects content which dumps never have, as it is read."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self._path, self._raw = path, raw
        self.offset = 0
        """Bytes that were read."""
        self._head = b""
        self._tail = b""
        self._pending = b""
        """Bytes of an unfinished character at the end of the last block."""
        self._prolog_bytes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self._raw.read(size if size > 0 else BLOCK_BYTES)
        self._check_text(block)

        if len(self._head) < HEAD_BYTES:
            self._head += block
            self._check_head(final=not block)

        self._check_doctype(self._tail + block)
        self._tail = (self._tail + block)[-TAIL_BYTES:]
        return block

    def _check_text(self, block: bytes) -> None:
        """Check for UTF-8; an unfinished character at the end waits for the next block."""
        data = self._pending + block
        try:
            data.decode("utf-8")
            self._pending = b""
        except UnicodeDecodeError as error:
            if block and error.reason == "unexpected end of data" and len(data) - error.start < 4:
                self._pending = data[error.start :]
            else:
                offset = self.offset - len(self._pending) + error.start
                raise DataError(
                    self._path,
                    f"not UTF-8 at byte offset {offset} ({error.reason}). Get the dump again.",
                ) from error
        self.offset += len(block)

    def _check_head(self, *, final: bool) -> None:
        """Check that the XML begins like a dump; `final` if all of it was read."""
        prolog = PROLOG.match(self._head)
        if prolog:
            self._prolog_bytes = prolog.end()

        head = self._head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"<?xml"):
            head = head.split(b"?>", 1)[-1].lstrip()

        # Below 17 bytes the root element may be incomplete.
        if (final or len(head) > 16) and not head.startswith((b"<posts", b"<!DOCTYPE")):
            beginning = head[:40].decode("utf-8", "replace") if head else "nothing"
            raise DataError(
                self._path,
                f"not a dump's {MEMBER}: it begins with {beginning!r}, not <posts>. Name a dump.",
            )

    def _check_doctype(self, recent: bytes) -> None:
        """Reject a DOCTYPE in the last bytes that were read, unless it is the harmless prolog."""
        start = max(0, self._prolog_bytes - (self.offset - len(recent)))
        if recent.find(b"<!DOCTYPE", start) >= 0:
            raise DataError(
                self._path,
                "contains a DOCTYPE that defines entities, which attacks use and data dumps do not"
                " have. Get the dump again.",
            )

    def finish(self) -> None:
        """Read to the end and check that the document is closed, because the fast parser does not
        check it."""
        while self.read(BLOCK_BYTES):
            pass

        closed = self._tail.rstrip().endswith((b"</posts>", b"/>"))
        has_end_tag = b"</posts>" in self._tail or b"<posts/>" in self._tail
        if not (closed and has_end_tag):
            raise DataError(
                self._path,
                f"truncated: the XML stops before </posts>, after {self.offset} bytes. Get the dump"
                " again.",
            )


@contextmanager
def _open(path: Path) -> Iterator[_CheckedXml]:
    """The dump's XML. XML in an archive is decompressed in another thread while it is read."""
    if path.suffix != ".7z":
        with path.open("rb") as file:
            yield _CheckedXml(path, file)
        return

    # py7zr writes the decompressed XML and the parser reads it, so a pipe connects them.
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
                # A damaged archive also gives bad XML, and the archive's error is the better
                # message. Close the pipe first, because the thread would wait for a reader.
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
    """Bytes of the archive's Posts.xml, after a check that its list of entries is harmless."""
    entries = _entries(path)
    if len(entries) > MAX_ENTRIES:
        raise DataError(
            path,
            f"lists {len(entries)} entries, but a data dump has at most {MAX_ENTRIES}. Get the dump"
            " again.",
        )

    for entry in entries:
        # Paths of Windows have backslashes and drive letters.
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise DataError(
                path,
                f"contains an entry outside its folder ({entry.filename!r}). Get the dump again.",
            )

    # Checking the announced sizes is enough: `_PipeEnd` stops an archive that unpacks to more.
    total, packed = sum(entry.uncompressed for entry in entries), path.stat().st_size
    if total > MAX_BYTES or total > MAX_RATIO * packed:
        raise DataError(
            path,
            f"would unpack to {total} bytes from {packed}, more than {MAX_RATIO}:1 or 1 TiB. Get"
            " the dump again.",
        )

    sizes = [entry.uncompressed for entry in entries if entry.filename == MEMBER]
    if not sizes:
        names = ", ".join(sorted(entry.filename for entry in entries)[:5]) or "nothing"
        raise DataError(
            path, f"has no {MEMBER} (it contains {names}). Get the archive with the site's posts."
        )
    return int(sizes[0])


def _entries(path: Path) -> list[Any]:
    """The list of an archive's entries."""
    try:
        with py7zr.SevenZipFile(path) as archive:
            if archive.needs_password():
                raise DataError(path, "is encrypted, but data dumps are not. Get the dump again.")
            return list(archive.list())
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
        # The decompressors raise OSError without a number; an error with a number is the disk's.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        path,
        f"the archive is damaged or truncated ({type(error).__name__}: {error}). Get it again.",
    )


def _unpack(path: Path, writing: int, size: int, failure: list[Exception]) -> None:
    """Decompress Posts.xml into the pipe; an error is added to `failure`, and the reader raises
    it."""
    try:
        with os.fdopen(writing, "wb") as pipe, py7zr.SevenZipFile(path) as archive:
            archive.extract(targets=[MEMBER], factory=_ToPipe(path, pipe, size))
    except BrokenPipeError:
        pass  # the reader stopped early and raises its own error
    except DataError as error:
        failure.append(error)
    except Exception as error:  # the decompressors raise errors of many kinds for damaged data
        failure.append(_damaged(path, error))


class _ToPipe(WriterFactory):
    """Factory that makes py7zr write to a pipe instead of a file."""

    def __init__(self, path: Path, pipe: IO[bytes], size: int) -> None:
        self._path, self._pipe, self._size = path, pipe, size

    def create(self, filename: str) -> Py7zIO:
        return _PipeEnd(self._path, self._pipe, self._size)


class _PipeEnd(Py7zIO):
    """Writer to a pipe of at most the bytes that the archive's list announced."""

    def __init__(self, path: Path, pipe: IO[bytes], size: int) -> None:
        self._path, self._pipe, self._remaining, self._size = path, pipe, size, size

    def write(self, s: bytes | bytearray) -> int:
        self._remaining -= len(s)
        if self._remaining < 0:
            raise DataError(
                self._path,
                f"unpacks to more than the {self._size} bytes that it announces. Get the dump"
                " again.",
            )
        return self._pipe.write(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def flush(self) -> None:
        self._pipe.flush()

    def size(self) -> int:
        return self._size - self._remaining


STACKEXCHANGE = ForumFormat(
    name="stackexchange",
    source="stackexchange",
    to_markdown=from_html,
    site_of=site_of,
    size_of=size_of,
    read_posts=read_posts,
)
"""Archives of a site and plain `Posts.xml` files."""
