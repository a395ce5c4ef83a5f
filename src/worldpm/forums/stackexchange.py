"""Stack Exchange data dumps: `SITE.7z`, `SITE-Posts.7z`, `Posts.xml` or `Posts.xml.gz`, streamed
instead of unpacked.

An answer in `Posts.xml`; a question has PostTypeId 1, a Title and Tags:

    <row Id="3" PostTypeId="2" ParentId="1" CreationDate="2016-08-02T15:39:14.947" Score="5"
     Body="&lt;p&gt;Yes.&lt;/p&gt;" OwnerUserId="8" ContentLicense="CC BY-SA 3.0" />

A comment in `Comments.xml`, whose text is not HTML:

    <row Id="7" PostId="1" Score="2" Text="Which one?" CreationDate="2016-08-02T16:00:00.000"
     UserId="8" ContentLicense="CC BY-SA 3.0" />

Source: the dump's schema, https://meta.stackexchange.com/questions/2677.
"""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.compute as pc

from worldpm.errors import DataError
from worldpm.forums import archives, xml_rows
from worldpm.forums.counts import Drops
from worldpm.forums.forum_format import EVERYTHING, ForumFormat, Selection
from worldpm.forums.markdown import from_html
from worldpm.storage.schema import POSTS

MEMBER, COMMENTS_MEMBER = "Posts.xml", "Comments.xml"

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
COMMENT_ATTRIBUTES = (
    "Id",
    "PostId",
    "Score",
    "Text",
    "CreationDate",
    "UserId",
    "UserDisplayName",
    "ContentLicense",
)
QUESTION, ANSWER = "1", "2"
"""Values of PostTypeId."""
HOST = re.compile(
    r"(?:.+\.)?(?:stackexchange|stackoverflow|serverfault|superuser|askubuntu|stackapps)\.com"
    r"|(?:.+\.)?mathoverflow\.net"
)
"""Names of sites that are also their addresses."""
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
    if path.name.startswith(MEMBER):
        name = path.resolve().parent.name
    else:
        name = path.stem.removesuffix("-Posts")
    return re.sub(r"\.\d{4}-\d\d(-\d\d)?$", "", name)


def size_of(path: Path) -> int:
    """Bytes of the dump's XML; of a gzipped file, its own bytes.

    Raises:
        DataError: If the archive is damaged or could do harm when unpacked.
    """
    return archives.size_of(path, MEMBER) if path.suffix == ".7z" else path.stat().st_size


def read_posts(
    path: Path,
    *,
    site: str,
    selection: Selection = EVERYTHING,
    drops: Drops,
    advance: Callable[[int], object] = int,
) -> Iterator[pa.RecordBatch]:
    """Questions and answers of a dump as batches of `schema.POSTS`, bodies in HTML; then the
    comments, if they are selected. Dropped rows are counted in `drops`.

    `advance` is called with the bytes of XML of each batch.

    Raises:
        DataError: If the file is not such a dump, is damaged, is not UTF-8, could do harm when
            unpacked, or has no comments although they are selected.
    """
    comments = _open_comments(path) if selection.comments else None
    total = size_of(path)

    open_posts = partial(_open, path)
    for rows in xml_rows.read(path, open_posts, root="posts", attributes=ATTRIBUTES):
        # The XML of a gzipped file is longer than the file, whose size is the total.
        advance(min(total, rows.read_bytes))
        total -= min(total, rows.read_bytes)
        readable = readable_posts(rows.batch, drops[site])
        if readable.num_rows:
            yield to_posts(readable, site)

    if comments is not None:
        stream = xml_rows.read(path, comments, root="comments", attributes=COMMENT_ATTRIBUTES)
        for rows in stream:
            yield _comments(_readable_comments(rows.batch, drops[site]))


def readable_posts(rows: pa.RecordBatch, drops: Counter[str]) -> pa.RecordBatch:
    """The readable questions and answers of rows with ATTRIBUTES; other rows are counted by the
    first check that they fail."""
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
    return _passing(rows, checks, drops)


def _readable_comments(rows: pa.RecordBatch, drops: Counter[str]) -> pa.RecordBatch:
    has_names = pc.and_(_present(rows["Id"]), _present(rows["PostId"]))
    has_votes = pc.match_substring_regex(rows["Score"], INTEGER)
    checks = (
        ("comment without Id or PostId", has_names),
        ("comment without text", _present(rows["Text"])),
        ("comment whose Score is not a number", has_votes),
        ("comment whose CreationDate is not a date", _is_instant(rows["CreationDate"])),
    )
    return _passing(rows, checks, drops)


def _passing(
    rows: pa.RecordBatch, checks: Sequence[tuple[str, pa.Array]], drops: Counter[str]
) -> pa.RecordBatch:
    """The rows that pass all checks; the others are counted by the first check that they fail."""
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


def to_posts(rows: pa.RecordBatch, site: str) -> pa.RecordBatch:
    """Readable rows with ATTRIBUTES as rows of `schema.POSTS`. An author is the user's id, or the
    name if the account was deleted."""
    is_answer = pc.equal(rows["PostTypeId"], ANSWER)
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
        "url": _urls(site, rows["Id"].to_pylist(), is_answer.to_pylist()),
        "licence": _licences(rows),
    }
    return _batch(columns, rows.num_rows)


def _comments(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Comments as rows of `schema.POSTS`."""
    columns = {
        # Posts and comments have ids of their own.
        "post_id": pa.array([f"comment-{row_id}" for row_id in rows["Id"].to_pylist()]),
        "parent_id": rows["PostId"],
        "is_comment": pa.array([True] * rows.num_rows),
        "body": rows["Text"],
        "votes": pc.cast(rows["Score"], pa.int64()),
        "created": pc.cast(rows["CreationDate"], pa.timestamp("us")),
        "author": pc.coalesce(rows["UserId"], rows["UserDisplayName"]),
        "licence": _licences(rows),
    }
    return _batch(columns, rows.num_rows)


def _batch(columns: dict[str, pa.Array], rows: int) -> pa.RecordBatch:
    """A batch of `schema.POSTS`; columns that are not given are null."""
    absent = {
        field.name: pa.nulls(rows, field.type) for field in POSTS if field.name not in columns
    }
    return pa.RecordBatch.from_pydict({**columns, **absent}, schema=POSTS)


def _tags(text: str | None) -> list[str]:
    """The tags of `<a><b>` in older dumps, and of `|a|b|` in newer ones."""
    return re.findall(r"[^<>|]+", text or "")


def _urls(site: str, ids: Sequence[str], is_answer: Sequence[bool]) -> pa.Array:
    """Addresses of posts; null if the name of the site is not an address."""
    if not HOST.fullmatch(site):
        return pa.nulls(len(ids), pa.string())
    kinds = ["a" if answer else "q" for answer in is_answer]
    posts = zip(kinds, ids, strict=True)
    return pa.array([f"https://{site}/{kind}/{post_id}" for kind, post_id in posts], pa.string())


def _licences(rows: pa.RecordBatch) -> pa.Array:
    """The licences of posts, by their dates if the dump does not name them."""
    by_date = pa.array(map(_licence, rows["CreationDate"].to_pylist()), pa.string())
    return pc.coalesce(rows["ContentLicense"], by_date)


def _licence(date: str) -> str:
    return next((name for before, name in LICENCES if date < before), LICENCES[-1][1])


def _open_comments(path: Path) -> xml_rows.Open:
    """A function that opens the comments of a dump, which lie in the same archive, in an archive
    beside it or in the same folder.

    Raises:
        DataError: If there are none.
    """
    if path.suffix == ".7z" and COMMENTS_MEMBER in archives.members(path):
        return partial(archives.open_member, path, COMMENTS_MEMBER)

    beside = path.with_name(f"{site_of(path)}-Comments.7z")
    if path.suffix == ".7z" and beside.exists():
        return partial(archives.open_member, beside, COMMENTS_MEMBER)

    file = path.with_name(COMMENTS_MEMBER + ".gz" * (path.suffix == ".gz"))
    if path.suffix != ".7z" and file.exists():
        return partial(_open, file)
    raise DataError(
        path,
        f"--comments: no {COMMENTS_MEMBER} in it or beside it. Get it, or leave --comments out.",
    )


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """The posts' XML of an archive, or a file of XML. An archive is decompressed in another thread
    while it is read.

    Raises:
        DataError: If the file is damaged.
    """
    if path.suffix == ".7z":
        with archives.open_member(path, MEMBER) as stream:
            yield stream
    elif path.suffix == ".gz":
        try:
            with gzip.open(path) as file:
                yield cast(IO[bytes], file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(path, f"damaged or truncated ({error}). Get it again.") from error
    else:
        with path.open("rb") as file:
            yield file


STACKEXCHANGE = ForumFormat(
    name="stackexchange",
    source="stackexchange",
    to_markdown=from_html,
    site_of=site_of,
    size_of=size_of,
    read_posts=read_posts,
)
"""Archives of a site and plain `Posts.xml` files."""
