"""Reddit's dumps: submissions and comments as lines of JSON (`.zst`, `.jsonl`, `.jsonl.gz`), joined
into threads of top-level comments.

A submission, and a comment to it:

    {"id": "s1", "title": "Why?", "selftext": "Tell me.", "score": 9, "created_utc": 1577836800,
     "author": "a", "subreddit": "ask", "permalink": "/r/ask/s1", "is_self": true}
    {"id": "c1", "link_id": "t3_s1", "parent_id": "t3_s1", "body": "Because.", "score": 4,
     "created_utc": "1577836900", "author": "b"}

Source: https://github.com/Watchful1/PushshiftDumps; files are named `NAME_submissions.zst` and
`NAME_comments.zst`, or `RS_` and `RC_` with their month. Answers are ordered by their dates. The
site's own order would leak the votes.
"""

import html
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from worldpm.forums import json_lines
from worldpm.forums.forum_format import ForumFormat
from worldpm.storage import parquet
from worldpm.storage.json_files import Json, Plain
from worldpm.storage.schema import POSTS

NAMED = re.compile(r"^(?:R[SC]_)(.+)$|^(.+?)_(?:submissions|comments)$")
"""Names of files without their endings: a month, or a subreddit."""
COMMENTS = re.compile(r"^RC_|[._]comments\b")
GONE = ("[deleted]", "[removed]", "[deleted by user]", "[ Removed by Reddit ]")
"""Texts and authors that Reddit writes in the place of deleted ones."""


def site_of(path: Path) -> str:
    """The name that submissions and comments share: `askscience`, or `reddit-2015-01` of a month's
    dump."""
    stem = path.name.split(".")[0]
    match = NAMED.match(stem)
    if match is None:
        return stem

    month, subreddit = match.groups()
    return f"reddit-{month}" if month else str(subreddit)


def part_of(path: Path) -> Literal["submissions", "comments"]:
    """Which half of a site's posts a file holds, by its name; `x.jsonl` beside `x_comments.jsonl`
    holds submissions."""
    return "comments" if COMMENTS.search(path.name) else "submissions"


def size_of(path: Path) -> int:
    """Bytes of the file."""
    return path.stat().st_size


def read_posts(
    path: Path, *, site: str, drops: Counter[str], advance: Callable[[int], object] = int
) -> Iterator[pa.RecordBatch]:
    """Submissions and top-level comments of a file as batches of `schema.POSTS`; rows left out are
    counted in `drops`.

    Raises:
        DataError: If the file is cut or damaged, or too many of its lines are broken.
    """

    def posts() -> Iterator[Plain]:
        for row in json_lines.read(path, drops, advance):
            reason = _why_left_out(row)
            if reason is None:
                yield _post(row)
            else:
                drops[reason] += 1

    return parquet.rows_to_batches(posts(), POSTS, size=8192)


def _why_left_out(row: Json) -> str | None:
    """The first reason to leave a row out, or None."""
    is_comment = "link_id" in row
    # "t3_" marks submissions: deeper replies answer a comment, whose votes they share.
    if is_comment and not str(row.get("parent_id", "")).startswith("t3_"):
        return "reply to a comment"

    body = _body(row)
    if not isinstance(body, str) or body.strip() in GONE:
        return "deleted or removed"
    # A deleted submission may still have its text, with the mark as its title.
    if not is_comment and str(row.get("title", "")).strip() in GONE:
        return "deleted or removed"
    # A stickied post is shown above others, whatever its votes.
    if row.get("removed_by_category") or row.get("stickied"):
        return "removed or put up by moderators"

    if not all(json_lines.is_text(value) for value in row.values() if isinstance(value, str)):
        return "text that cannot be written"
    if not json_lines.is_count(row.get("score")) or _created(row) is None:
        return "row without score or date"
    if not isinstance(row.get("id"), str) or (is_comment and not isinstance(row["link_id"], str)):
        return "row without id"
    if not isinstance(_link(row), str | None):
        return "link that is no text"
    return None


def _post(row: Json) -> Plain:
    """A row that is not left out, as a row of `schema.POSTS`."""
    is_comment = "link_id" in row
    author, permalink = row.get("author"), row.get("permalink")

    return {
        "post_id": f"{'t1' if is_comment else 't3'}_{row['id']}",
        "parent_id": row["link_id"] if is_comment else None,
        "accepted_id": None,
        "title": None if is_comment else html.unescape(str(row.get("title") or "")),
        # The dumps hold text as the site's HTML has it, with `&amp;` for an ampersand.
        "body": html.unescape(_link(row) or _body(row)),
        "tags": None if is_comment else [str(row.get("subreddit") or "")],
        "votes": row["score"],
        "created": _created(row),
        "closed": None,
        "author": None if author in (None, *GONE) else str(author),
        "url": f"https://www.reddit.com{permalink}" if permalink else None,
        "licence": None,
    }


def _body(row: Json) -> Any:
    """The text of a comment or submission; a submission may have none."""
    return row.get("body") if "link_id" in row else row.get("selftext") or ""


def _link(row: Json) -> Any:
    """The link of a submission that consists of one, or None."""
    if "link_id" in row or str(_body(row)).strip() or row.get("is_self", True):
        return None
    return row.get("url")


def _created(row: Json) -> datetime | None:
    """The date in UTC, without zone; None if the row has none. Some dumps write it as text."""
    try:
        return datetime.fromtimestamp(float(row["created_utc"]), UTC).replace(tzinfo=None)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


REDDIT = ForumFormat(
    name="reddit",
    source="reddit",
    to_markdown=None,
    site_of=site_of,
    size_of=size_of,
    read_posts=read_posts,
    part_of=part_of,
)
"""Submissions and comments, in one file each."""
