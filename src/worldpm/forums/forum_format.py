"""A format of forum dumps: all that ingesting needs to know of it."""

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
    # `vars` and not `asdict`, which copies every value.
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
        """Questions and answers of the file as batches of `schema.POSTS`. Rows left out are counted
        in `drops`, and `advance` is called with numbers of bytes that add up to `size_of`."""


def the_only_part(path: Path) -> str:
    """The part that a file holds in formats whose sites have one file each."""
    return "posts"


@dataclass(frozen=True, kw_only=True)
class ForumFormat:
    """How the dumps of one kind of forum are read."""

    name: str
    """Value of --format."""
    source: str
    """Column `source` of the threads."""
    to_markdown: Callable[[str], str] | None
    """Conversion of a body; None if bodies are Markdown already. It must be picklable."""
    site_of: Callable[[Path], str]
    """Name of the site whose posts a file holds, from the file's name."""
    size_of: Callable[[Path], int]
    """Bytes that `read_posts` will go through. It raises DataError for a file that cannot be read,
    so it also serves as a check before hours are spent on other files."""
    read_posts: ReadPosts
    """Posts of a file."""
    part_of: Callable[[Path], str] = the_only_part
    """Which part of its site's posts a file holds. Files of one site join if their parts differ:
    one file of submissions and one of comments. Two files of one part are two dumps of a site."""
