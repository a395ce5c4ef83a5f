"""Codidact: the table `posts` of its software QPixel as XML, with a column in each element.

    <resultset><row><id>2</id><post_type_id>2</post_type_id><parent_id>1</parent_id>
     <created_at>2021-01-19 20:37:24</created_at><upvote_count>12</upvote_count>
     <downvote_count>1</downvote_count><body>&lt;p&gt;Yes.&lt;/p&gt;</body></row></resultset>

`mysql --xml` and `mysqldump --xml`, which export a published dump after it is loaded into MySQL,
have `<field name="id">2</field>` instead. Votes are up minus down. `score` is a share in today's
dumps, and the number of votes only in imports from Stack Exchange.

Source: https://github.com/codidact/qpixel, `db/schema.rb`, `db/seeds/post_types.yml` and
`scripts/import/dump_import.rb`.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa

from worldpm.errors import DataError
from worldpm.forums import dates
from worldpm.forums.counts import Drops
from worldpm.forums.forum_format import EVERYTHING, ForumFormat, Post, Selection, batches_of
from worldpm.forums.markdown import from_html
from worldpm.forums.xml_rows import CheckedXml

ROOTS = ("resultset", "mysqldump")
QUESTION, ANSWER = "1", "2"
"""Values of `post_type_id`."""
HOST = re.compile(r"(?:.+\.)?codidact\.(?:com|org)")
"""Names of sites that are also their addresses."""
TAG = re.compile(r"^- (.+)$", re.MULTILINE)
"""A tag in `tags_cache`, which is YAML."""


def site_of(path: Path) -> str:
    """The file's name without its ending: `software.codidact.com`."""
    return path.name.removesuffix(".xml")


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
        DataError: If the file is not such XML, is damaged, or could do harm.
    """

    def posts() -> Iterator[Post]:
        reported = 0
        with path.open("rb") as file:
            stream = CheckedXml(path, file, ROOTS)
            for row in _rows(path, stream):
                advance(stream.offset - reported)
                reported = stream.offset
                post = _post(row, site)
                if isinstance(post, str):
                    drops[site][post] += 1
                else:
                    yield post

    return batches_of(posts())


def _rows(path: Path, stream: CheckedXml) -> Iterator[dict[str, str]]:
    """The columns of every row; empty and null ones are left out."""
    try:
        for _, element in ElementTree.iterparse(stream, events=("end",)):
            if element.tag == "row":
                columns = {child.get("name", child.tag): child.text for child in element}
                yield {name: text for name, text in columns.items() if text}
                element.clear()
    except ElementTree.ParseError as error:
        raise DataError(
            path, f"not well-formed XML ({error}). Export it again.", line=error.position[0]
        ) from error


def _post(row: dict[str, str], site: str) -> Post | str:
    """The row as a post, or the first reason to drop it."""
    kind, name = row.get("post_type_id"), row.get("id")
    if kind not in (QUESTION, ANSWER):
        return "not a question or answer"
    if row.get("deleted") == "1" or "deleted_at" in row:
        return "deleted or removed"
    if name is None or (kind == ANSWER) != ("parent_id" in row):
        return "row without id"

    votes, created = _votes(row), dates.from_iso(row.get("created_at"))
    if votes is None or created is None:
        return "row without votes or date"
    parent = row.get("parent_id")
    url = f"https://{site}/posts/{name if parent is None else f'{parent}/{name}'}"
    return Post(
        post_id=name,
        parent_id=parent,
        title=row.get("title", "") if parent is None else None,
        body=row.get("body", ""),
        tags=TAG.findall(row.get("tags_cache", "")) if parent is None else None,
        votes=votes,
        created=created,
        closed=dates.from_iso(row.get("closed_at")),
        author=row.get("user_id"),
        url=row.get("att_source") or (url if HOST.fullmatch(site) else None),
        licence=row.get("att_license_name"),
    )


def _votes(row: dict[str, str]) -> int | None:
    """Up minus down; None if the row has neither these nor a whole score."""
    ups, downs = row.get("upvote_count"), row.get("downvote_count")
    try:
        if ups is not None and downs is not None:
            return int(ups) - int(downs)
        return int(row["score"])
    except (KeyError, ValueError):
        return None


CODIDACT = ForumFormat(
    name="codidact",
    source="codidact",
    to_markdown=from_html,
    site_of=site_of,
    read_posts=read_posts,
)
"""The table of posts as XML."""
