"""The description of a format of forum dumps, for ingesting."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from worldpm.forums.counts import Drops
from worldpm.storage import parquet
from worldpm.storage.rows import Row
from worldpm.storage.schema import POSTS

POSTS_A_BATCH = 8192


@dataclass(frozen=True, kw_only=True)
class Post:
    """A row of `schema.POSTS`, for formats that read one post at a time."""

    post_id: str
    """Unique in its site."""
    parent_id: str | None
    """The opening post of an answer; None for an opening post."""
    is_comment: bool = False
    """Whether it is a comment on an opening post, which is not an answer."""
    accepted_id: str | None = None
    """The accepted answer of an opening post; None if there is none."""
    site: str | None = None
    """Site of an opening post; None in dumps of one site."""
    title: str | None = None
    """None for an answer."""
    body: str
    """Markdown."""
    tags: list[str] | None = None
    """None for an answer, and if the forum has no tags."""
    votes: int
    """Up minus down."""
    created: datetime
    """UTC, without zone."""
    closed: datetime | None = None
    """UTC, without zone; None if moderators did not close the thread."""
    author: str | None = None
    url: str | None = None
    licence: str | None = None
    earlier_votes: None = None
    """Dumps have the latest votes only."""


def batches_of(posts: Iterable[Post]) -> Iterator[pa.RecordBatch]:
    """Posts as batches of `schema.POSTS`."""
    # `vars` instead of `asdict`, which copies every value.
    return parquet.rows_to_batches(map(vars, posts), POSTS, size=POSTS_A_BATCH)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Posts to read."""

    sites: frozenset[str] = frozenset()
    """Sites of dumps with several, in lower case; all if empty."""
    comments: bool = False
    """Whether comments on questions are read."""

    def leaves_out(self, site: object) -> bool:
        """Whether posts of a site are left out; None is a post that does not name its site."""
        return bool(self.sites) and isinstance(site, str) and site.lower() not in self.sites


EVERYTHING = Selection()
"""All posts but comments on questions."""


class ReadPosts(Protocol):
    """A reader of one file of a dump."""

    def __call__(
        self,
        path: Path,
        *,
        site: str,
        selection: Selection = ...,
        drops: Drops,
        advance: Callable[[int], object] = int,
    ) -> Iterator[pa.RecordBatch]:
        """Posts of the file as batches of `schema.POSTS`. Dropped rows are counted in `drops`, and
        `advance` is called with numbers of bytes that add up to `size_of`."""


def the_only_part(path: Path) -> str:
    """The part of every file in formats with one file per site."""
    return "posts"


def name_of(path: Path) -> str:
    """The name of a file, as its part in formats whose posts may be in any number of files."""
    return path.name


def bytes_of(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def no_row(row: Row) -> bool:
    """Whether a row is of a format without lines of JSON."""
    return False


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
    read_posts: ReadPosts
    """Posts of a file."""
    size_of: Callable[[Path], int] = bytes_of
    """Bytes that `read_posts` will read. It raises DataError for an unreadable file, so that the
    error comes before hours are spent on other files."""
    part_of: Callable[[Path], str] = the_only_part
    """The part of a dump's posts in a file, such as submissions or comments. Files of one dump are
    joined if their parts differ. Two files with the same part are two dumps."""
    names_sites: bool = False
    """Whether each opening post names its site. All files of such a format are one dump."""
    has_row: Callable[[Row], bool] = no_row
    """Whether the first row of a file of JSON lines is of this format."""
