"""Posts of older threads, which a newer dump updates."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from worldpm.forums.forum_format import POSTS_A_BATCH
from worldpm.records import Answer, Thread
from worldpm.storage import parquet, schema
from worldpm.storage.json_files import Plain


def posts_of(table: Path) -> Iterator[pa.RecordBatch]:
    """The posts of a table of threads as batches of `schema.POSTS`. The present votes of each
    answer become its latest earlier votes, with the date of the table's last post."""
    date = _last_date(table)
    if date is None:
        return

    def rows() -> Iterator[Plain]:
        for batch in parquet.read_batches(table):
            for thread in schema.threads_of(batch):
                yield from _rows(thread, date)

    yield from parquet.rows_to_batches(rows(), schema.POSTS, size=POSTS_A_BATCH)


def _last_date(table: Path) -> datetime | None:
    """The date of the last post of a table of threads; None if it has none."""
    last: datetime | None = None
    for batch in parquet.read_batches(table):
        for thread in schema.threads_of(batch):
            dates = [thread.created, *(answer.created for answer in thread.responses)]
            last = max(dates) if last is None else max(last, *dates)
    return last


def _rows(thread: Thread, date: datetime) -> Iterator[Plain]:
    """The opening post of a thread, its comments and its answers, as rows."""
    opening_id = thread.thread_id.removeprefix(f"{thread.site}/")
    accepted = [answer.response_id for answer in thread.responses if answer.accepted]
    yield {
        "post_id": opening_id,
        "accepted_id": accepted[0] if accepted else None,
        "site": thread.site,
        "title": thread.title,
        "body": thread.body,
        "tags": list(thread.tags),
        "votes": thread.votes,
        "created": _naive(thread.created),
        "closed": thread.closed and _naive(thread.closed),
        "author": thread.author,
        "url": thread.url,
        "licence": thread.licence,
        "earlier_votes": [],
    }
    for comment in thread.comments:
        yield {
            "post_id": comment.comment_id,
            "parent_id": opening_id,
            "is_comment": True,
            "body": comment.body,
            "votes": comment.votes,
            "created": _naive(comment.created),
            "author": comment.author,
            "licence": comment.licence,
        }
    for answer in thread.responses:
        yield _answer_row(answer, opening_id, date)


def _answer_row(answer: Answer, opening_id: str, date: datetime) -> Plain:
    earlier = [{"votes": votes.votes, "date": _naive(votes.date)} for votes in answer.earlier_votes]
    return {
        "post_id": answer.response_id,
        "parent_id": opening_id,
        "body": answer.body,
        "votes": answer.votes,
        "created": _naive(answer.created),
        "author": answer.author,
        "licence": answer.licence,
        "earlier_votes": [*earlier, {"votes": answer.votes, "date": _naive(date)}],
    }


def _naive(date: datetime) -> datetime:
    """The date in UTC, without zone."""
    return date.replace(tzinfo=None)
