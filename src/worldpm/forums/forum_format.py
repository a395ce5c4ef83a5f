"""The description of a format of forum dumps, for ingesting."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from worldpm.storage import parquet
from worldpm.storage.schema import POSTS

POSTS_A_BATCH = 8192


@dataclass(frozen=True, kw_only=True)
class Post:
    """A row of `schema.POSTS`, for formats that read one post at a time."""

    post_id: str
    """Unique in its site."""
    parent_id: str | None
    """The opening post of an answer; None for an opening post."""
    accepted_id: str | None = None
    """The accepted answer of an opening post; None if there is none."""
    title: str | None
    """None for an answer."""
    body: str
    """Markdown."""
    tags: list[str] | None
    """None for an answer, and if the forum has no tags."""
    votes: int
    """Up minus down."""
    created: datetime
    """UTC, without zone."""
    closed: datetime | None = None
    """UTC, without zone; None if moderators did not close the thread."""
    author: str | None
    url: str | None
    licence: str | None


def batches_of(posts: Iterable[Post]) -> Iterator[pa.RecordBatch]:
    """Posts as batches of `schema.POSTS`."""
    # `vars` instead of `asdict`, which copies every value.
    return parquet.rows_to_batches(map(vars, posts), POSTS, size=POSTS_A_BATCH)


class ReadPosts(Protocol):
    """A reader of one file of a dump."""

    def __call__(
        self,
        path: Path,
        *,
        site: str,
        drops: Counter[str],
        advance: Callable[[int], object] = int,
    ) -> Iterator[pa.RecordBatch]:
        """Questions and answers of the file as batches of `schema.POSTS`. Dropped rows are counted
        in `drops`, and `advance` is called with numbers of bytes that add up to `size_of`."""


def the_only_part(path: Path) -> str:
    """The part of every file in formats with one file per site."""
    return "posts"


@dataclass(frozen=True, kw_only=True)
class ForumFormat:
    """A format, with the functions that read its dumps."""

    name: str
    """Value of --format."""
    source: str
    """Column `source` of the threads."""
    to_markdown: Callable[[str], str] | None
    """Conversion of a body; None if bodies are Markdown already. It must be picklable."""
    site_of: Callable[[Path], str]
    """Name of the site of a file's posts, from the file's name."""
    size_of: Callable[[Path], int]
    """Bytes that `read_posts` will read. It raises DataError for an unreadable file, so that the
    error comes before hours are spent on other files."""
    read_posts: ReadPosts
    """Posts of a file."""
    part_of: Callable[[Path], str] = the_only_part
    """The part of a site's posts in a file, such as submissions or comments. Files of one site are
    joined if their parts differ. Two files with the same part are two dumps of the site."""
