"""Hacker News: items of its API, rows of the public dataset in BigQuery, and hits of its search, as
lines of JSON.

A story and a comment of the API or of BigQuery, and a comment of the search:

    {"id": 121003, "type": "story", "by": "tel", "time": 1203647620, "score": 25,
     "title": "Ask HN: Why?", "text": "<i>or</i> how?<p>Tell me."}
    {"id": 121016, "type": "comment", "by": "a", "time": 1203647999, "parent": 121003, "score": 3,
     "text": "Because."}
    {"objectID": "121016", "_tags": ["comment"], "author": "a", "created_at_i": 1203647999,
     "parent_id": 121003, "points": 3, "comment_text": "Because."}

The site shows no votes of comments, and only old rows have them. Comments without votes are dropped
and counted: their order on the page would leak age and the site's ranking.

Source: https://github.com/HackerNews/API and https://github.com/algolia/hn-search,
`app/models/item.rb`.
"""

import html
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from worldpm.forums import dates, json_lines
from worldpm.forums.counts import Drops
from worldpm.forums.forum_format import (
    EVERYTHING,
    ForumFormat,
    Post,
    Selection,
    batches_of,
    name_of,
)
from worldpm.forums.markdown import from_html
from worldpm.storage.rows import Row

SITE = "news.ycombinator.com"
KINDS = ("story", "comment", "poll")
"""Types of rows that are posts; the others are jobs, the options of polls, and ranks."""


def site_of(path: Path) -> str:
    """The only site."""
    return SITE


def read_posts(
    path: Path,
    *,
    site: str,
    selection: Selection = EVERYTHING,
    drops: Drops,
    advance: Callable[[int], object] = int,
) -> Iterator[pa.RecordBatch]:
    """Stories and the comments on them as batches of `schema.POSTS`, bodies in HTML; dropped rows
    are counted in `drops`. Comments on comments lose their parent, and are counted when posts are
    joined.

    Raises:
        DataError: If the file is damaged, or too many of its lines are broken.
    """

    def posts() -> Iterator[Post]:
        for row in json_lines.read(path, drops[site], advance):
            post = _post(_of_search(row) if "objectID" in row else row)
            if isinstance(post, str):
                drops[site][post] += 1
            else:
                yield post

    return batches_of(posts())


def _of_search(row: Row) -> Row:
    """A hit of the search with the keys of the API."""
    tags = row.get("_tags")
    tags = tags if isinstance(tags, list) else []
    return {
        "id": row["objectID"],
        "type": next((kind for kind in KINDS if kind in tags), None),
        "by": row.get("author"),
        "time": row.get("created_at_i"),
        "parent": row.get("parent_id"),
        "score": row.get("points"),
        "title": row.get("title"),
        "text": row.get("comment_text") or row.get("story_text"),
        "url": row.get("url"),
    }


def _post(row: Row) -> Post | str:
    """The row as a post, or the first reason to drop it."""
    kind = row.get("type")
    if kind not in KINDS:
        return "not a story or comment"
    if row.get("deleted") or row.get("dead"):
        return "deleted or removed"

    # BigQuery exports whole numbers as text.
    votes, name = _whole(row.get("score")), _whole(row.get("id"))
    parent = _whole(row.get("parent"))
    if name is None or (kind == "comment") != (parent is not None):
        return "row without id"
    if votes is None:
        return "comment without votes" if kind == "comment" else "row without votes or date"
    created = dates.from_seconds(row.get("time"))
    if created is None:
        return "row without votes or date"

    title, author, link = row.get("title") or "", row.get("by"), row.get("url") or ""
    text = row.get("text") or ""
    texts = (title, author or "", link, text)
    if not all(isinstance(value, str) and json_lines.is_text(value) for value in texts):
        return "text that cannot be written"
    return Post(
        post_id=str(name),
        parent_id=None if parent is None else str(parent),
        title=html.unescape(str(title)) if parent is None else None,
        # A story is a link or a text.
        body=str(text) or (f"<p>{html.escape(str(link))}</p>" if link else ""),
        votes=votes,
        created=created,
        author=str(author) if author else None,
        url=f"https://{SITE}/item?id={name}",
    )


def _whole(value: object) -> int | None:
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < 18:
        return int(value)
    return value if json_lines.is_count(value) else None


def has_row(row: Row) -> bool:
    """Whether a row is an item or a hit of the search."""
    is_item = "type" in row and "id" in row and ("by" in row or "deleted" in row)
    return is_item or {"objectID", "_tags"} <= row.keys()


HACKER_NEWS = ForumFormat(
    name="hackernews",
    source="hackernews",
    to_markdown=from_html,
    site_of=site_of,
    read_posts=read_posts,
    part_of=name_of,
    has_row=has_row,
)
"""Stories and comments in any files."""
