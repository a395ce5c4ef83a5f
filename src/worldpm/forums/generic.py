"""Threads of any other forum, or of tickets in a house, as lines of JSON: one thread a line.

    {"id": "7", "title": "...", "body": "...", "votes": 3, "created": "2024-05-01T12:00:00Z",
    "closed": null, "tags": ["x"],
     "author": "a", "url": "...", "licence": "...", "responses": [{"id": "8", "body": "...",
     "votes": 5, "created": "2024-05-01T13:00:00Z", "accepted": true, "author": "b", "licence":
     "..."}]}

Needed are `id`, `title` or `body`, `created`, and of each response `id`, `body`, `votes` and
`created`; bodies are Markdown, dates ISO 8601 or seconds since 1970, taken as UTC where they name
no zone. `thread_id` and `response_id`, as our own tables have them, are taken for `id`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from worldpm.forums import json_lines
from worldpm.storage import parquet
from worldpm.storage.schema import POSTS

SOURCE = "threads"
TO_MARKDOWN = None

Json = dict[str, Any]
OPTIONAL = {
    "title": str | None,
    "url": str | None,
    "author": str | int | None,
    "licence": str | None,
    "accepted": int | None,
}
"""What may stand where nothing needs to."""


def site_of(path: Path) -> str:
    """The file's name without its endings."""
    return path.name.split(".")[0]


def size_of(path: Path) -> int:
    """Bytes of the file."""
    return path.stat().st_size


def read_posts(
    path: Path, *, site: str, drops: Counter[str], advance: Callable[[int], object] = int
) -> Iterator[pa.RecordBatch]:
    """Questions and answers of a file as batches of `schema.POSTS`; what lacks something needed is
    counted in `drops`.

    Raises:
        DataError: If the file is cut or damaged, or too many of its lines are broken.
    """

    def rows() -> Iterator[Json]:
        seen: set[int] = (
            set()
        )  # of hashes: another thread of an id must not give its answers to the first
        for row in json_lines.read(path, drops, advance):
            row = _plain(row, site)
            name = xxhash.xxh64_intdigest(str(row.get("id")).encode("utf-8", "surrogatepass"))
            if name in seen:
                drops["thread whose id stood before"] += 1
                continue
            posts = list(_posts(row, drops))
            seen.update([name] if posts else [])
            yield from posts

    return parquet.rows_to_batches(rows(), POSTS, size=8192)


def _plain(row: Json, site: str) -> Json:
    """A row of our own tables with the names of this form; others as they are."""
    if not isinstance(name := row.get("thread_id"), str) or "id" in row:
        return row
    name, answers = name.removeprefix(f"{site}/"), row.get("responses")
    if isinstance(answers, list):
        answers = [_plain_answer(answer, name) for answer in answers]
    return {**row, "id": name, "responses": answers}


def _plain_answer(answer: Any, thread: str) -> Any:
    if not isinstance(answer, dict) or not isinstance(name := answer.get("response_id"), str):
        return answer
    return {"id": name.removeprefix(f"{thread}/"), **answer}


def _posts(row: Json, drops: Counter[str]) -> Iterator[Json]:
    opening = _post(row, parent=None)
    answers = row.get("responses") or []
    if (
        opening is None
        or not isinstance(answers, list)
        or not (opening["title"] or opening["body"])
    ):
        drops["thread without id, text or date, or with an odd value"] += 1
        return
    posts = []
    for answer in answers:
        post = _post(answer, parent=opening["post_id"]) if isinstance(answer, dict) else None
        if post is None:
            drops["response without id, body, votes or date, or with an odd value"] += 1
            continue
        posts.append(post)
        if answer.get("accepted"):
            opening["accepted_id"] = opening["accepted_id"] or post["post_id"]
    yield from (opening, *posts)


def _post(row: Json, *, parent: str | None) -> Json | None:
    try:
        name, body = row["id"], row.get("body") or ""
        if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
            return None
        if not isinstance(body, str) or (parent is not None and not body):
            return None
        if not all(
            isinstance(row.get(key), kinds) for key, kinds in OPTIONAL.items()
        ) or isinstance(row["created"], bool):
            return None
        created, votes = (
            _date(row["created"]),
            row["votes"] if parent is not None else row.get("votes", 0),
        )
        closed = _date(row["closed"]) if row.get("closed") is not None else None
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    tags = row["tags"] if isinstance(row.get("tags"), list) else None
    texts = (*(value for value in row.values() if isinstance(value, str)), *map(str, tags or ()))
    if not json_lines.is_count(votes) or not all(map(json_lines.is_text, texts)):
        return None
    return {
        "post_id": str(name) if parent is None else f"{parent}/{name}",
        "parent_id": parent,
        "accepted_id": None,
        "title": str(row.get("title") or "") if parent is None else None,
        "body": body,
        "tags": None if tags is None else [str(tag) for tag in tags],
        "votes": votes,
        "created": created,
        "closed": closed,
        **{
            key: None if row.get(key) is None else str(row[key])
            for key in ("author", "url", "licence")
        },
    }


def _date(value: Any) -> datetime:
    """A date without zone, in UTC."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC).replace(tzinfo=None)
    found = datetime.fromisoformat(value)
    return found if found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)
