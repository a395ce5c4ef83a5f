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

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from worldpm.errors import DataError
from worldpm.forums import dates, json_lines
from worldpm.forums.counts import Drops
from worldpm.forums.forum_format import EVERYTHING, ForumFormat, Post, Selection, batches_of
from worldpm.forums.markdown import from_html
from worldpm.storage.rows import Row

REGULAR = 1
"""`post_type` of posts that people wrote; the others are notices."""
LIKE = 2
"""Id of likes in `actions_summary`."""
HOST = re.compile(r"[\w-]+(\.[\w-]+)*\.[a-z]{2,}")
"""Names of sites that are also their addresses."""


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
    rows = _topics(path, drops[site], advance)
    return batches_of(post for row in rows for post in _posts(row, site, drops[site]))


def _topics(path: Path, drops: Counter[str], advance: Callable[[int], object]) -> Iterator[Row]:
    if path.suffix != ".json":
        yield from json_lines.read(path, drops, advance)
        return

    try:
        topic = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"not JSON ({error}). Download the topic again.") from error
    advance(path.stat().st_size)
    if not isinstance(topic, dict) or not has_row(topic):
        raise DataError(path, "not a topic of Discourse: it has no `post_stream`. Remove it.")
    yield topic


def _posts(topic: Row, site: str, drops: Counter[str]) -> list[Post]:
    """The opening post of a topic and its answers; none if the opening post is dropped."""
    stream = topic.get("post_stream")
    rows = stream.get("posts") if isinstance(stream, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        drops["topic without posts"] += 1
        return []
    if topic.get("archetype", "regular") != "regular" or topic.get("deleted_at"):
        drops["topic that is private or deleted"] += 1
        return []

    ids = stream.get("stream") if isinstance(stream, dict) else None
    if isinstance(ids, list) and len(ids) > len(rows):
        # The API gives the first 20 posts of a long topic.
        drops["post that the file of its topic lacks"] += len(ids) - len(rows)

    opening: Post | None = None
    answers: list[Post] = []
    for row in rows:
        post = _post(row, topic, site)
        if isinstance(post, str):
            drops[post] += 1
        elif row.get("post_number") == 1:
            opening = post
        elif post.created is not None:
            answers.append(replace(post, parent_id=_topic_id(topic)))

    if opening is None:
        drops["answer without its question"] += len(answers)
        return []
    accepted = [row for row in rows if row.get("accepted_answer") is True]
    accepted_id = str(accepted[0].get("id")) if accepted else None
    return [replace(opening, accepted_id=accepted_id, closed=_closed(topic, rows)), *answers]


def _post(row: Row, topic: Row, site: str) -> Post | str:
    """The row as a post, or the first reason to drop it."""
    reason = _why_unwanted(row)
    if reason is not None:
        return reason

    votes, created = _votes(row), dates.from_iso(row.get("created_at"))
    if not json_lines.is_count(votes) or created is None:
        return "row without votes or date"
    texts = (row.get("cooked"), row.get("username"), topic.get("title"), topic.get("slug", ""))
    if not all(isinstance(text, str) and json_lines.is_text(text) for text in texts):
        return "row without text or author"
    if not json_lines.is_count(topic.get("id")) or not json_lines.is_count(row.get("id")):
        return "row without id"

    is_opening = row.get("post_number") == 1
    url = f"https://{site}/t/{topic.get('slug') or '-'}/{topic['id']}"
    return Post(
        post_id=_topic_id(topic) if is_opening else str(row["id"]),
        parent_id=None,
        title=str(topic["title"]) if is_opening else None,
        body=str(row["cooked"]),
        tags=_tags(topic.get("tags")) if is_opening else None,
        votes=votes,
        created=created,
        author=str(row["username"]),
        url=(url if is_opening else f"{url}/{row.get('post_number')}")
        if HOST.fullmatch(site)
        else None,
    )


def _topic_id(topic: Row) -> str:
    # Topics and posts have ids of their own.
    return f"t{topic['id']}"


def _why_unwanted(row: Row) -> str | None:
    """The first reason to drop a readable row, or None."""
    if row.get("post_type", REGULAR) != REGULAR:
        return "notice of the forum"
    # People have ids above 0.
    user = row.get("user_id")
    if isinstance(user, int) and user < 0:
        return "written by a bot"
    if row.get("deleted_at") or row.get("user_deleted") or row.get("hidden"):
        return "deleted or removed"
    if row.get("post_number") != 1 and row.get("reply_to_post_number") not in (None, 1):
        return "reply to an answer"
    return None


def _votes(row: Row) -> object:
    """The votes of the plugin for questions and answers, or else the likes, which are listed only
    if there are some."""
    if "post_voting_vote_count" in row:
        return row["post_voting_vote_count"]
    actions = row.get("actions_summary")
    actions = actions if isinstance(actions, list) else []
    likes = [entry for entry in actions if isinstance(entry, dict) and entry.get("id") == LIKE]
    return likes[0].get("count", 0) if likes else 0


def _tags(tags: object) -> list[str]:
    """The names of tags, which newer versions list as objects."""
    names = (
        [tag.get("name") if isinstance(tag, dict) else tag for tag in tags or ()]
        if (isinstance(tags, list))
        else []
    )
    return [name for name in names if isinstance(name, str) and json_lines.is_text(name)]


def _closed(topic: Row, rows: list[Row]) -> datetime | None:
    """When a closed topic was closed, from the notice about it; None if it is open or has no such
    notice."""
    if not topic.get("closed"):
        return None
    notices = [row for row in rows if str(row.get("action_code")).endswith("closed.enabled")]
    return dates.from_iso(notices[-1].get("created_at")) if notices else None


def has_row(row: Row) -> bool:
    """Whether a row is a topic."""
    return "post_stream" in row


def part_of(path: Path) -> str:
    """The name of the file: a folder has a file for each topic."""
    return path.name


DISCOURSE = ForumFormat(
    name="discourse",
    source="discourse",
    to_markdown=from_html,
    site_of=site_of,
    read_posts=read_posts,
    part_of=part_of,
    has_row=has_row,
)
"""Topics with their posts."""
