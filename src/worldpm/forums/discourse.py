"""Discourse: topics as its API gives them (`/t/ID.json`), one topic per file or per line.

    {"id": 55, "title": "Rotate logs", "slug": "rotate-logs", "archetype": "regular",
     "tags": ["linux"], "post_stream": {"stream": [101, 102], "posts": [
      {"id": 101, "post_number": 1, "post_type": 1, "username": "ann", "user_id": 7,
       "created_at": "2023-05-01T09:12:26.235Z", "cooked": "<p>How?</p>",
       "actions_summary": [{"id": 2, "count": 4}]},
      {"id": 102, "post_number": 2, "reply_to_post_number": null, "accepted_answer": true, ...}]}}

Votes are likes, or the votes of the plugin for questions and answers. Answers are the replies to
the first post.

Source: https://github.com/discourse/discourse, `app/serializers/post_serializer.rb`,
`app/models/post.rb` and the plugins discourse-solved and discourse-post-voting.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec
import pyarrow as pa

from worldpm.errors import DataError
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

REGULAR = 1
"""`post_type` of posts that people wrote; the others are notices."""
LIKE = 2
"""Id of likes in `actions_summary`."""
HOST = re.compile(r"[\w-]+(\.[\w-]+)*\.[a-z]{2,}")
"""Names of sites that are also their addresses."""


class _Action(msgspec.Struct, frozen=True):
    """Reactions of one kind to a post."""

    id: int
    count: int = 0


class _Tag(msgspec.Struct, frozen=True):
    """A tag as newer versions list it."""

    name: str


class _PostRow(msgspec.Struct, frozen=True):
    """A post of a topic."""

    id: int
    post_number: int
    """1 for the post that opens the topic."""
    created_at: str
    cooked: str
    """HTML."""
    username: str
    post_type: int = REGULAR
    user_id: int | None = None
    """Below 0 for bots; None if the account was deleted."""
    reply_to_post_number: int | None = None
    """None and 1 for replies to the first post."""
    hidden: bool | None = None
    user_deleted: bool | None = None
    deleted_at: str | None = None
    actions_summary: list[_Action] | None = None
    """Only kinds with reactions."""
    accepted_answer: bool | None = None
    action_code: str | None = None
    """Event that a notice reports, such as `closed.enabled`."""
    post_voting_vote_count: int | None = None
    """Votes of the plugin for questions and answers."""


class _Stream(msgspec.Struct, frozen=True):
    """The posts of a topic."""

    posts: list[dict[str, object]]
    stream: list[int] | None = None
    """Ids of all posts, with those that the API gives on later pages."""


class _Topic(msgspec.Struct, frozen=True):
    """A topic with its posts."""

    id: int
    title: str
    post_stream: _Stream
    slug: str = ""
    archetype: str | None = None
    """`regular`, or `private_message`."""
    deleted_at: str | None = None
    closed: bool | None = None
    tags: list[str | _Tag] | None = None

    @property
    def post_id(self) -> str:
        """Id of the opening post. Topics and posts have ids of their own, which may be equal."""
        return f"t{self.id}"


def site_of(path: Path) -> str:
    """The name of a file of topics without its endings; of a file of one topic, the name of its
    folder: `meta.discourse.org`."""
    return path.resolve().parent.name if path.suffix == ".json" else json_lines.stem(path)


def read_posts(
    path: Path,
    *,
    site: str,
    selection: Selection = EVERYTHING,
    drops: Drops,
    advance: Callable[[int], object] = int,
) -> Iterator[pa.RecordBatch]:
    """The posts of all topics of a file as batches of `schema.POSTS`, bodies in HTML; dropped posts
    are counted in `drops`.

    Raises:
        DataError: If the file is not JSON, or too many of its lines are broken.
    """
    rows = _rows(path, drops[site], advance)
    return batches_of(post for row in rows for post in _posts(row, site, drops[site]))


def _rows(path: Path, drops: Counter[str], advance: Callable[[int], object]) -> Iterator[Row]:
    if path.suffix != ".json":
        yield from json_lines.read(path, drops, advance)
        return

    try:
        topic = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(path, f"not JSON ({error}). Download the topic again.") from error
    advance(path.stat().st_size)
    if not isinstance(topic, dict) or not has_row(topic):
        raise DataError(path, "not a topic of Discourse: it has no `post_stream`. Remove it.")
    yield topic


def _posts(row: Row, site: str, drops: Counter[str]) -> list[Post]:
    """The opening post of a topic and its answers; none if the opening post is dropped."""
    try:
        topic = msgspec.convert(row, _Topic)
    except msgspec.ValidationError:
        drops["topic with an odd value"] += 1
        return []
    if topic.archetype not in (None, "regular") or topic.deleted_at:
        drops["topic that is private or deleted"] += 1
        return []

    # The API gives the first 20 posts of a long topic.
    rows = topic.post_stream.posts
    missing = len(topic.post_stream.stream or ()) - len(rows)
    drops["post that the file of its topic lacks"] += max(0, missing)

    checked = [post for post in (_checked(post, drops) for post in rows) if post is not None]
    opening: Post | None = None
    answers: list[Post] = []
    for post_row in checked:
        post = _post(post_row, topic, site)
        if isinstance(post, str):
            drops[post] += 1
        elif post_row.post_number == 1:
            opening = post
        else:
            answers.append(post)

    if opening is None:
        drops["answer without its question"] += len(answers)
        return []
    accepted = [str(post.id) for post in checked if post.accepted_answer]
    accepted_id = accepted[0] if accepted else None
    return [replace(opening, accepted_id=accepted_id, closed=_closed(topic, checked)), *answers]


def _checked(row: Row, drops: Counter[str]) -> _PostRow | None:
    try:
        return msgspec.convert(row, _PostRow)
    except msgspec.ValidationError:
        drops["post with an odd value"] += 1
        return None


def _post(row: _PostRow, topic: _Topic, site: str) -> Post | str:
    """The row as a post, or the first reason to drop it."""
    reason = _why_unwanted(row)
    if reason is not None:
        return reason

    votes, created = _votes(row), dates.from_iso(row.created_at)
    if not json_lines.is_count(votes) or created is None:
        return "row without votes or date"
    tags = [tag if isinstance(tag, str) else tag.name for tag in topic.tags or ()]
    texts = (row.cooked, row.username, topic.title, topic.slug, *tags)
    if not all(map(json_lines.is_text, texts)):
        return "text that cannot be written"

    is_opening = row.post_number == 1
    url = f"https://{site}/t/{topic.slug or '-'}/{topic.id}"
    if not is_opening:
        url += f"/{row.post_number}"
    return Post(
        post_id=topic.post_id if is_opening else str(row.id),
        parent_id=None if is_opening else topic.post_id,
        title=topic.title if is_opening else None,
        body=row.cooked,
        tags=tags if is_opening else None,
        votes=votes,
        created=created,
        author=row.username,
        url=url if HOST.fullmatch(site) else None,
    )


def _why_unwanted(row: _PostRow) -> str | None:
    """The first reason to drop a readable row, or None."""
    if row.post_type != REGULAR:
        return "notice of the forum"
    if row.user_id is not None and row.user_id < 0:
        return "written by a bot"
    if row.deleted_at or row.user_deleted or row.hidden:
        return "deleted or removed"
    if row.post_number != 1 and row.reply_to_post_number not in (None, 1):
        return "reply to an answer"
    return None


def _votes(row: _PostRow) -> int:
    """The votes of the plugin for questions and answers, or else the likes."""
    if row.post_voting_vote_count is not None:
        return row.post_voting_vote_count
    likes = [action.count for action in row.actions_summary or () if action.id == LIKE]
    return likes[0] if likes else 0


def _closed(topic: _Topic, rows: list[_PostRow]) -> datetime | None:
    """When a closed topic was closed, from the notice about it; None if it is open or has no such
    notice."""
    if not topic.closed:
        return None
    notices = [row for row in rows if (row.action_code or "").endswith("closed.enabled")]
    return dates.from_iso(notices[-1].created_at) if notices else None


def has_row(row: Row) -> bool:
    """Whether a row is a topic."""
    return "post_stream" in row


DISCOURSE = ForumFormat(
    name="discourse",
    source="discourse",
    to_markdown=from_html,
    site_of=site_of,
    read_posts=read_posts,
    part_of=name_of,
    has_row=has_row,
)
"""Topics with their posts."""
