"""Threads of any other forum or ticket system as lines of JSON, one thread per line.

    {"id": "7", "title": "...", "body": "...", "votes": 3, "created": "2024-05-01T12:00:00Z",
    "closed": null, "tags": ["x"],
     "author": "a", "url": "...", "licence": "...", "responses": [{"id": "8", "body": "...",
     "votes": 5, "created": "2024-05-01T13:00:00Z", "accepted": true, "author": "b", "licence":
     "..."}]}

A thread needs `id`, `title` or `body`, and `created`. A response needs `id`, `body`, `votes` and
`created`. Bodies are Markdown; `body_html` instead of `body` is converted. Dates are ISO 8601 or
seconds since 1970, in UTC if they name no zone. `thread_id` and `response_id`, the names in our
tables, are read as `id`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import xxhash

from worldpm.forums import dates, json_lines
from worldpm.forums.counts import Drops
from worldpm.forums.forum_format import EVERYTHING, ForumFormat, Post, Selection, batches_of
from worldpm.forums.markdown import from_html
from worldpm.storage.rows import Row

OPTIONAL = {
    "title": str | None,
    "url": str | None,
    "author": str | int | None,
    "licence": str | None,
    "accepted": int | None,
}
"""Types of the values that may be absent."""


def site_of(path: Path) -> str:
    """The file's name without its endings."""
    return json_lines.stem(path)


def read_posts(
    path: Path,
    *,
    site: str,
    selection: Selection = EVERYTHING,
    drops: Drops,
    advance: Callable[[int], object] = int,
) -> Iterator[pa.RecordBatch]:
    """Questions and answers of a file as batches of `schema.POSTS`; threads and responses that lack
    a needed value are counted in `drops`.

    Raises:
        DataError: If the file is truncated or damaged, or too many of its lines are broken.
    """
    return batches_of(_read_threads(path, site, drops[site], advance))


def _read_threads(
    path: Path, site: str, drops: Counter[str], advance: Callable[[int], object]
) -> Iterator[Post]:
    """The posts of all threads. Of threads with the same id only the first is read, so that the
    answers of another thread are not joined to it."""
    # Hashes instead of ids, because a large file has millions of them.
    ids: set[int] = set()

    for line in json_lines.read(path, drops, advance):
        row = _with_ids(line, site)
        # "surrogatepass", because only later checks reject unpaired surrogates.
        thread_id = str(row.get("id")).encode("utf-8", "surrogatepass")
        digest = xxhash.xxh64_intdigest(thread_id)
        if digest in ids:
            drops["thread with the id of an earlier thread"] += 1
            continue

        posts = _posts(row, drops)
        if posts:
            ids.add(digest)
        yield from posts


def _with_ids(row: Row, site: str) -> Row:
    """A row of our tables with the names of this format; other rows are returned unchanged."""
    thread_id = row.get("thread_id")
    if not isinstance(thread_id, str) or "id" in row:
        return row

    # Our ids begin with the site or the thread, which joining adds again.
    post_id, answers = thread_id.removeprefix(f"{site}/"), row.get("responses")
    if isinstance(answers, list):
        answers = [_answer_with_id(answer, post_id) for answer in answers]
    return {**row, "id": post_id, "responses": answers}


def _answer_with_id(answer: object, thread: str) -> object:
    if not isinstance(answer, dict) or not isinstance(answer.get("response_id"), str):
        return answer
    return {"id": answer["response_id"].removeprefix(f"{thread}/"), **answer}


def _posts(row: Row, drops: Counter[str]) -> list[Post]:
    """The opening post of a thread and its answers; none if the thread lacks a needed value."""
    opening = _post(row, parent=None)
    answers = row.get("responses") or []
    has_text = opening is not None and (opening.title or opening.body)
    if opening is None or not has_text or not isinstance(answers, list):
        drops["thread without id, text or date, or with an odd value"] += 1
        return []

    posts = []
    for answer in answers:
        post = _post(answer, parent=opening.post_id) if isinstance(answer, dict) else None
        if post is None:
            drops["response without id, body, votes or date, or with an odd value"] += 1
            continue

        posts.append(post)
        # Only an answer that was read can be accepted; of several, the first counts.
        if answer.get("accepted") and opening.accepted_id is None:
            opening = replace(opening, accepted_id=post.post_id)
    return [opening, *posts]


def _post(row: Row, *, parent: str | None) -> Post | None:
    """A thread or response as a post; None if a value is missing or invalid.

    `parent` is the opening post of a response, and None for a thread.
    """
    # Only answers are ranked by their votes, so only they need them.
    votes = row.get("votes", 0 if parent is None else None)
    if not json_lines.is_count(votes):
        return None
    created, closed = _date(row.get("created")), _date(row.get("closed"))
    if created is None or isinstance(row["created"], bool):
        return None
    if closed is None and row.get("closed") is not None:
        return None

    # A bool is an int to `isinstance`, but not an id.
    name, body = row.get("id"), _body(row)
    if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
        return None
    if not isinstance(body, str) or (parent is not None and not body):
        return None
    if not _has_sound_values(row):
        return None

    tags = row.get("tags")
    return Post(
        # Ids of responses are unique within their thread only.
        post_id=str(name) if parent is None else f"{parent}/{name}",
        parent_id=parent,
        title=str(row.get("title") or "") if parent is None else None,
        body=body,
        tags=[str(tag) for tag in tags] if isinstance(tags, list) else None,
        votes=votes,
        created=created,
        closed=closed,
        author=_text_or_none(row.get("author")),
        url=_text_or_none(row.get("url")),
        licence=_text_or_none(row.get("licence")),
    )


def _body(row: Row) -> object:
    """The body as Markdown; empty if there is none."""
    html = row.get("body_html")
    return from_html(html) if isinstance(html, str) and html else row.get("body") or ""


def _has_sound_values(row: Row) -> bool:
    """Whether the optional values of a row have their types, and all its texts can be encoded."""
    if not all(isinstance(row.get(key), kinds) for key, kinds in OPTIONAL.items()):
        return False

    texts = [value for value in row.values() if isinstance(value, str)]
    tags = row.get("tags")
    if isinstance(tags, list):
        texts += map(str, tags)
    return all(map(json_lines.is_text, texts))


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def _date(value: object) -> datetime | None:
    """A date without zone, in UTC; None if the value is not a date."""
    return dates.from_iso(value) if isinstance(value, str) else dates.from_seconds(value)


def has_row(row: Row) -> bool:
    """Whether a row is a thread."""
    return "responses" in row


THREADS = ForumFormat(
    name="threads",
    source="threads",
    to_markdown=None,
    site_of=site_of,
    read_posts=read_posts,
    has_row=has_row,
)
"""Lines of JSON with one thread each."""
