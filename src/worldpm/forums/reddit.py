"""Reddit's dumps: submissions and comments as lines of JSON (`.zst`, `.jsonl`, `.jsonl.gz`), joined
into threads of top-level comments.

A submission, and a comment to it:

    {"id": "s1", "title": "Why?", "selftext": "Tell me.", "score": 9, "created_utc": 1577836800,
     "author": "a", "subreddit": "ask", "permalink": "/r/ask/s1", "is_self": true}
    {"id": "c1", "link_id": "t3_s1", "parent_id": "t3_s1", "body": "Because.", "score": 4,
     "created_utc": "1577836900", "author": "b"}

Source: https://github.com/Watchful1/PushshiftDumps; files are named `NAME_submissions.zst` and
`NAME_comments.zst`, or `RS_` and `RC_` with their month. All files are joined, because a comment
may come months after its submission. A site is a subreddit. Answers are ordered by their dates,
because the site's order would leak the votes.
"""

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType

import pyarrow as pa

from worldpm.forums import dates, json_lines
from worldpm.forums.counts import Drops
from worldpm.forums.forum_format import EVERYTHING, ForumFormat, Post, Selection, batches_of
from worldpm.storage.rows import Row

NAMED = re.compile(r"^(?:R[SC]_)(?:v2_)?(.+)$|^(.+?)_(?:submissions|comments)$")
"""Names of files without their endings: a month, or a subreddit."""
GONE = ("[deleted]", "[removed]", "[deleted by user]", "[ Removed by Reddit ]")
"""Texts and authors that Reddit writes in place of deleted ones."""


SUBREDDIT = re.compile(r"[\w-]+(?:\.[\w-]+)*")
"""Names of subreddits. A name is also the name of a file, so nothing else may be in it."""
NSFW = "nsfw"
"""Tag of submissions for adults."""


def site_of(path: Path) -> str:
    """The site of rows that name no subreddit: the name that submissions and comments share, such
    as `askscience`, or `reddit-2015-01` for the dump of a month."""
    stem = path.name.split(".")[0]
    match = NAMED.match(stem)
    if match is None:
        return stem

    month, subreddit = match.groups()
    return f"reddit-{month}" if month else str(subreddit)


def part_of(path: Path) -> str:
    """The name of a file without its endings, which two dumps of the same posts share."""
    return path.name.split(".")[0] + ("_comments" if ".comments" in path.name else "")


def read_posts(
    path: Path,
    *,
    site: str,
    selection: Selection = EVERYTHING,
    drops: Drops,
    advance: Callable[[int], object] = int,
) -> Iterator[pa.RecordBatch]:
    """Submissions and top-level comments of a file as batches of `schema.POSTS`; dropped rows are
    counted in `drops` under their subreddit.

    Raises:
        DataError: If the file is truncated or damaged, or too many of its lines are broken.
    """
    site = site_of(path)

    def posts() -> Iterator[Post]:
        for row in json_lines.read(path, drops[site], advance):
            subreddit = row.get("subreddit") or site
            if not isinstance(subreddit, str) or not SUBREDDIT.fullmatch(subreddit):
                drops[site]["subreddit with an odd name"] += 1
            elif selection.leaves_out(row.get("subreddit")):
                drops[site]["of a site not in --subreddits"] += 1
            elif isinstance(post := _post(row, subreddit), str):
                drops[subreddit][post] += 1
            else:
                yield post

    return batches_of(posts())


def _post(row: Row, subreddit: str) -> Post | str:
    """The row as a post, or the first reason to drop it."""
    is_comment = "link_id" in row
    reason = _why_unwanted(row, is_comment)
    if reason is not None:
        return reason

    # The types of values differ between dumps of many years, so each value is checked. Only a
    # comment has a parent.
    # Some dumps write the date as text.
    votes, created = row.get("score"), dates.from_seconds(row.get("created_utc"))
    if not json_lines.is_count(votes) or created is None:
        return "row without score or date"
    name, parent = row.get("id"), row.get("link_id")
    if not isinstance(name, str) or not isinstance(parent, str if is_comment else NoneType):
        return "row without id"
    link = _link(row, is_comment)
    if not isinstance(link, str | None):
        return "link that is not text"

    author, permalink = row.get("author"), row.get("permalink")
    return Post(
        post_id=f"{'t1' if is_comment else 't3'}_{name}",
        parent_id=parent,
        title=None if is_comment else html.unescape(str(row.get("title") or "")),
        # The dumps have text with HTML entities, such as `&amp;` for an ampersand.
        body=html.unescape(link or str(_body(row, is_comment))),
        site=None if is_comment else subreddit,
        tags=None if is_comment else [subreddit, *([NSFW] if row.get("over_18") else [])],
        votes=votes,
        created=created,
        author=None if author in (None, *GONE) else str(author),
        url=f"https://www.reddit.com{permalink}" if permalink else None,
        licence=None,
    )


def _why_unwanted(row: Row, is_comment: bool) -> str | None:
    """The first reason to drop a readable row, or None."""
    # "t3_" marks submissions. Deeper replies answer a comment, whose votes they share.
    if is_comment and not str(row.get("parent_id", "")).startswith("t3_"):
        return "reply to a comment"

    body = _body(row, is_comment)
    if not isinstance(body, str) or body.strip() in GONE:
        return "deleted or removed"
    # A deleted submission may still have its text, with the mark as its title.
    if not is_comment and str(row.get("title", "")).strip() in GONE:
        return "deleted or removed"
    if row.get("removed_by_category"):
        return "removed by moderators"
    # A stickied post is shown above others, whatever its votes.
    if row.get("stickied"):
        return "put up by moderators"
    # Moderators and employees of Reddit mark posts that they write in their office.
    if row.get("distinguished"):
        return "written by moderators in their office"
    # Reddit hides votes in the first hours, and the score in the dump then does not show them.
    if row.get("score_hidden"):
        return "post whose votes are hidden"

    if not all(json_lines.is_text(value) for value in row.values() if isinstance(value, str)):
        return "text that cannot be written"
    return None


def _body(row: Row, is_comment: bool) -> object:
    """The text of a comment or submission; a submission may have none."""
    return row.get("body") if is_comment else row.get("selftext") or ""


def _link(row: Row, is_comment: bool) -> object:
    """The link of a submission that consists of a link, or None."""
    if is_comment or row.get("is_self", True) or str(_body(row, is_comment)).strip():
        return None
    return row.get("url")


def has_row(row: Row) -> bool:
    """Whether a row is a submission or a comment."""
    return "link_id" in row or "selftext" in row


REDDIT = ForumFormat(
    name="reddit",
    source="reddit",
    to_markdown=None,
    site_of=site_of,
    read_posts=read_posts,
    part_of=part_of,
    names_sites=True,
    has_row=has_row,
)
"""Submissions and comments, in files of subreddits or of months."""
