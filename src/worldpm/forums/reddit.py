"""Reddit's dumps: submissions and comments as lines of JSON (`.zst`, `.jsonl`, `.jsonl.gz`), joined
into threads of top-level comments.

Source: https://github.com/Watchful1/PushshiftDumps; files are named `NAME_submissions.zst` and
`NAME_comments.zst`, or `RS_` and `RC_` with their month. Answers stand in the order of their dates,
never in the site's, which leaks the votes.
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
from worldpm.storage import parquet
from worldpm.storage.schema import POSTS

SOURCE = "reddit"
TO_MARKDOWN = None
NAMED = re.compile(r"^(?:R[SC]_)(.+)$|^(.+?)_(?:submissions|comments)$")
COMMENTS = re.compile(r"^RC_|[._]comments\b")
GONE = ("[deleted]", "[removed]", "[deleted by user]", "[ Removed by Reddit ]")

Json = dict[str, Any]


def site_of(path: Path) -> str:
    """The name that submissions and comments share: `askscience`, or `reddit-2015-01` of a month's
    dump."""
    stem = path.name.split(".")[0]
    match = NAMED.match(stem)
    return stem if match is None else f"reddit-{match[1]}" if match[1] else match[2]


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

    def rows() -> Iterator[Json]:
        for row in json_lines.read(path, drops, advance):
            post = _post(row)
            if isinstance(post, str):
                drops[post] += 1
            else:
                yield post

    return parquet.rows_to_batches(rows(), POSTS, size=8192)


def _post(row: Json) -> Json | str:
    """The row as a post, or why it is left out."""
    is_comment = "link_id" in row
    if is_comment and not str(row.get("parent_id", "")).startswith("t3_"):
        return "reply to a comment"
    body = row.get("body") if is_comment else row.get("selftext") or ""
    if (
        not isinstance(body, str)
        or body.strip() in GONE
        or (not is_comment and str(row.get("title", "")).strip() in GONE)
    ):
        return "deleted or removed"
    if row.get("removed_by_category") or row.get("stickied"):
        return "removed or put up by moderators"
    if not all(json_lines.is_text(value) for value in row.values() if isinstance(value, str)):
        return "text that cannot be written"
    try:
        votes, created = (
            row["score"],
            datetime.fromtimestamp(float(row["created_utc"]), UTC).replace(tzinfo=None),
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return "row without score or date"
    if not json_lines.is_count(votes):
        return "row without score or date"
    if not isinstance(row.get("id"), str) or (is_comment and not isinstance(row["link_id"], str)):
        return "row without id"
    link = (
        row.get("url")
        if not is_comment and not body.strip() and not row.get("is_self", True)
        else None
    )
    if not isinstance(link, str | None):
        return "link that is no text"
    return {
        "post_id": f"{'t1' if is_comment else 't3'}_{row['id']}",
        "parent_id": row["link_id"] if is_comment else None,
        "accepted_id": None,
        "title": None if is_comment else html.unescape(str(row.get("title") or "")),
        "body": html.unescape(link or body),
        "tags": None if is_comment else [str(row.get("subreddit") or "")],
        "votes": votes,
        "created": created,
        "closed": None,
        "author": None if row.get("author") in (None, *GONE) else str(row["author"]),
        "url": f"https://www.reddit.com{row['permalink']}" if row.get("permalink") else None,
        "licence": None,
    }
