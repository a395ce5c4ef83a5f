"""Lemmy: posts and comments as its API lists them (`PostView`, `CommentView`), as lines of JSON.

    {"post": {"id": 5, "name": "Rotate logs?", "body": "How?", "ap_id": "https://a.example/post/5",
     "published": "2024-03-23T10:41:41.254290Z", "nsfw": false, ...}, "creator": {"name": "ann",
     ...}, "community": {"name": "linux", "actor_id": "https://a.example/c/linux"},
     "counts": {"score": 13}}
    {"comment": {"id": 9, "content": "Use `logrotate`.", "path": "0.9",
     "ap_id": "https://b.example/comment/99", "published": "2024-03-23T11:00:00Z", ...},
     "post": {"ap_id": "https://a.example/post/5", ...}, "creator": {...}, "community": {...},
     "counts": {"score": 5}}

Version 1 of the API has the score in the post or comment, `published_at`, and `ap_id` of
communities. A site is a community with its server (`linux@a.example`). Posts are named by `ap_id`,
because their numbers differ between servers.

Source: https://github.com/LemmyNet/lemmy-js-client, `src/types/PostView.ts` and `CommentView.ts`.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

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
from worldpm.forums.reddit import NSFW
from worldpm.storage.rows import Row

COMMUNITY = re.compile(r"\w+@[\w.-]+")
"""Names of communities. A name is also the name of a file, so nothing else may be in it."""


def read_posts(
    path: Path,
    *,
    site: str,
    selection: Selection = EVERYTHING,
    drops: Drops,
    advance: Callable[[int], object] = int,
) -> Iterator[pa.RecordBatch]:
    """Posts and the comments on them as batches of `schema.POSTS`; dropped rows are counted in
    `drops` under their community.

    Raises:
        DataError: If the file is damaged, or too many of its lines are broken.
    """

    def posts() -> Iterator[Post]:
        for row in json_lines.read(path, drops[site], advance):
            community = _community(_part(row, "community"))
            if community is None:
                drops[site]["row without community"] += 1
            elif selection.leaves_out(community):
                drops[site]["of a site not in --subreddits"] += 1
            elif isinstance(post := _post(row, community), str):
                drops[community][post] += 1
            else:
                yield post

    return batches_of(posts())


def _part(row: Row, name: str) -> Row:
    part = row.get(name)
    return part if isinstance(part, dict) else {}


def _community(community: Row) -> str | None:
    """`NAME@SERVER`; None if the row has no such name."""
    address = community.get("actor_id") or community.get("ap_id")
    host = urlsplit(address).hostname if isinstance(address, str) else None
    name = f"{community.get('name')}@{host}"
    return name if COMMUNITY.fullmatch(name) else None


def _post(row: Row, community: str) -> Post | str:
    """The row as a post, or the first reason to drop it."""
    is_comment = "comment" in row
    content = _part(row, "comment" if is_comment else "post")
    reason = _why_unwanted(row, content, is_comment)
    if reason is not None:
        return reason

    votes = _part(row, "counts").get("score", content.get("score"))
    created = dates.from_iso(content.get("published") or content.get("published_at"))
    if not json_lines.is_count(votes) or created is None:
        return "row without votes or date"

    opening = _part(row, "post")
    address, parent = content.get("ap_id"), opening.get("ap_id")
    author = _part(row, "creator").get("name")
    title, body = opening.get("name"), content.get("content" if is_comment else "body")
    if not is_comment:
        body = body or content.get("url") or ""
    texts = (address, parent, author, title, body)
    if not all(isinstance(text, str) and json_lines.is_text(text) for text in texts):
        return "row without text, author or address"

    nsfw = opening.get("nsfw") or _part(row, "community").get("nsfw")
    return Post(
        post_id=_name(str(address)),
        parent_id=_name(str(parent)) if is_comment else None,
        site=None if is_comment else community,
        title=None if is_comment else str(title),
        body=str(body),
        tags=None if is_comment else [community, *([NSFW] if nsfw else [])],
        votes=votes,
        created=created,
        author=str(author),
        url=str(address),
    )


def _why_unwanted(row: Row, content: Row, is_comment: bool) -> str | None:
    """The first reason to drop a readable row, or None."""
    # The path has the ids from the post, which is 0, to the comment.
    if is_comment and str(content.get("path")).count(".") != 1:
        return "reply to a comment"
    if content.get("removed"):
        return "removed by moderators"
    if content.get("deleted"):
        return "deleted or removed"
    if content.get("featured_community") or content.get("featured_local"):
        return "put up by moderators"
    if content.get("distinguished"):
        return "written by moderators in their office"
    if _part(row, "creator").get("bot_account"):
        return "written by a bot"
    return None


def _name(address: str) -> str:
    return address.removeprefix("https://")


def has_row(row: Row) -> bool:
    """Whether a row is a post or a comment."""
    return {"community", "creator", "post"} <= row.keys()


def site_of(path: Path) -> str:
    """Rows name their sites."""
    return "lemmy"


LEMMY = ForumFormat(
    name="lemmy",
    source="lemmy",
    to_markdown=None,
    site_of=site_of,
    read_posts=read_posts,
    part_of=name_of,
    names_sites=True,
    has_row=has_row,
)
"""Posts and comments in any files."""
