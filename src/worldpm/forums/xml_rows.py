"""Rows of XML dumps (`<posts><row Id="1" ... /></posts>`) as Arrow batches, streamed, with checks
against files that are truncated, of another kind, or harmful."""

import io
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, NamedTuple, cast
from xml.parsers import expat

import pyarrow as pa
from xml2arrow import Xml2ArrowError, XmlToArrowParser

from worldpm.errors import DataError

PROLOG = (
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*)?"
    rb"<!DOCTYPE\s+(?:%s)\s+SYSTEM\s+(?:'[^'<>]*'|\"[^\"<>]*\")\s*>"
)
"""The beginning of some dumps of 2011 to 2012. It is harmless: the file that it names is never
read."""
BLOCK_BYTES = 1 << 20
"""XML that is read at a time, unless the reader asks for another size."""
HEAD_BYTES = 4096
"""Beginning of the XML that is searched for the root element."""
TAIL_BYTES = 64
"""End of a block that is kept, so that a tag across two blocks is found."""
ROW_LIMIT_BYTES = 1 << 26
"""Longest row: a parser keeps a row in memory."""

Open = Callable[[], AbstractContextManager[IO[bytes]]]
"""Opens the XML from its beginning."""


class Rows(NamedTuple):
    """Some rows of a dump."""

    batch: pa.RecordBatch
    """The attributes as strings; null if absent."""
    read_bytes: int
    """Bytes of XML that were read since the rows before."""


def read(path: Path, open_xml: Open, *, root: str, attributes: Sequence[str]) -> Iterator[Rows]:
    """The attributes of every row of the XML whose root element is `root`.

    Raises:
        DataError: If the XML is not such a dump, is damaged, is not UTF-8, or could do harm.
    """
    # The stream's offset is ahead of the rows by the parser's buffer.
    reported = 0
    with open_xml() as raw:
        stream = CheckedXml(path, raw, (root,))
        parser = _parser(root, attributes)
        try:
            for _, batch in parser.parse_batches(cast(IO[bytes], stream)):
                yield Rows(batch, stream.offset - reported)
                reported = stream.offset
        except Xml2ArrowError as error:
            # A truncated file also has bad XML, and `finish` reports that cause.
            stream.finish()
            raise DataError(
                path,
                f"not well-formed XML ({error}). Get the dump again.",
                line=_line_of_fault(open_xml),
            ) from error
        stream.finish()


def _parser(root: str, attributes: Sequence[str]) -> XmlToArrowParser:
    """A parser of the attributes of rows. The library reads its settings only from a file."""
    text = "data_type: Utf8, nullable: true"
    fields = [
        f"      - {{name: {name}, xml_path: /{root}/row/@{name}, {text}}}\n" for name in attributes
    ]
    settings = f"tables:\n  - name: rows\n    xml_path: /{root}\n    levels: []\n    fields:\n"

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(settings + "".join(fields))
        file.flush()
        return XmlToArrowParser(file.name)


def _line_of_fault(open_xml: Open) -> int | None:
    """The line of the fault, from a second, slower parser, because the fast parser does not report
    lines."""
    parser = expat.ParserCreate()
    try:
        with open_xml() as stream:
            while block := stream.read(BLOCK_BYTES):
                parser.Parse(block, False)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        return error.lineno
    return None


class CheckedXml(io.RawIOBase):
    """A stream of a dump's XML that rejects content which dumps never have, as it is read."""

    def __init__(self, path: Path, raw: IO[bytes], roots: Sequence[str]) -> None:
        self._path, self._raw = path, raw
        self._roots = [root.encode() for root in roots]
        """Names of the root element that are expected."""
        self.offset = 0
        """Bytes that were read."""
        self._head = b""
        self._tail = b""
        self._pending = b""
        """Bytes of an unfinished character at the end of the last block."""
        self._prolog_bytes = 0
        self._tag_bytes = 0
        """Bytes since the last tag began."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self._raw.read(size if size > 0 else BLOCK_BYTES)
        self._check_text(block)

        if len(self._head) < HEAD_BYTES:
            self._head += block
            self._check_head(final=not block)

        self._check_row(block)
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
        prolog = re.match(PROLOG % b"|".join(self._roots), self._head)
        if prolog:
            self._prolog_bytes = prolog.end()

        head = self._head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"<?xml"):
            head = head.split(b"?>", 1)[-1].lstrip()

        # Below 17 bytes the root element may be incomplete.
        starts = tuple(b"<" + root for root in self._roots)
        if (final or len(head) > 16) and not head.startswith((*starts, b"<!DOCTYPE")):
            beginning = head[:40].decode("utf-8", "replace") if head else "nothing"
            raise DataError(
                self._path,
                f"not a dump's XML: it begins with {beginning!r}, not {starts[0].decode()}>. Name a"
                " dump.",
            )

    def _check_row(self, block: bytes) -> None:
        """Reject a row over the limit, before the parser keeps all of it."""
        # A tag begins with the only unescaped `<`.
        last = block.rfind(b"<")
        longest = self._tag_bytes + (block.find(b"<") if last >= 0 else len(block))
        if longest > ROW_LIMIT_BYTES:
            raise DataError(
                self._path,
                f"a row is longer than {ROW_LIMIT_BYTES >> 20} MiB, which no post is. Get the dump"
                " again.",
            )
        self._tag_bytes = len(block) - last if last >= 0 else longest

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

        end_tag = b"</" + self._roots[0] + b">"
        empty = b"<" + self._roots[0] + b"/>"
        closed = self._tail.rstrip().endswith((end_tag, b"/>"))
        if not (closed and (end_tag in self._tail or empty in self._tail)):
            raise DataError(
                self._path,
                f"truncated: the XML stops before {end_tag.decode()}, after {self.offset} bytes."
                " Get the dump again.",
            )
