"""The dumps among files and folders: which files are read together, and in which format."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldpm.errors import ConfigError, DataError
from worldpm.forums import json_lines
from worldpm.forums.codidact import CODIDACT
from worldpm.forums.discourse import DISCOURSE
from worldpm.forums.forum_format import ForumFormat
from worldpm.forums.generic import THREADS
from worldpm.forums.hacker_news import HACKER_NEWS
from worldpm.forums.lemmy import LEMMY
from worldpm.forums.reddit import REDDIT
from worldpm.forums.stackexchange import STACKEXCHANGE
from worldpm.forums.stackexchange_csv import STACKEXCHANGE_CSV
from worldpm.options.ingest import SITE_NAME, IngestOptions

FORMATS: tuple[ForumFormat, ...] = (
    STACKEXCHANGE,
    STACKEXCHANGE_CSV,
    CODIDACT,
    REDDIT,
    DISCOURSE,
    HACKER_NEWS,
    LEMMY,
    THREADS,
)
"""Every format of dumps."""
OTHER_PARTS = (
    "-Badges",
    "-Comments",
    "-PostHistory",
    "-PostLinks",
    "-Tags",
    "-Users",
    "-Votes",
)
"""Name endings of a large site's archives without posts; tables as CSV are called `Tags.csv`."""
TOPIC_BYTES = 1 << 16
"""Beginning of a JSON file in a folder that is searched for a topic of Discourse."""
POSTS_XML = ("Posts.xml", "Posts.xml.gz")


@dataclass(frozen=True)
class Dump:
    """Files that are read together."""

    name: str
    """The site, or the name of a format whose posts name their sites."""
    format: ForumFormat
    paths: tuple[Path, ...]
    """In the order given."""


@dataclass(frozen=True)
class BadFile:
    """A file that was skipped because it cannot be read."""

    dump: str
    """Name of its dump."""
    message: str
    """The error."""


def find(options: IngestOptions) -> tuple[list[Dump], list[BadFile]]:
    """The dumps among the sources, each file checked before any is read, and with --skip-bad the
    files that fail.

    Raises:
        ConfigError: If a source does not exist, or two files are dumps of the same posts.
        DataError: If a file is not a dump, unless it is skipped.
    """
    dumps: dict[str, Dump] = {}
    bad: list[BadFile] = []

    for path in _files(options.sources):
        try:
            forum_format = _format_of(path, options.format)
            name = _name(path, forum_format, options)
            # Report a truncated archive before hours are spent on the files before it.
            forum_format.size_of(path)
        except DataError as error:
            if not options.skip_bad:
                raise
            bad.append(BadFile(path.name, str(error)))
            continue

        earlier = dumps.get(name)
        if earlier is not None:
            _check_joins(path, forum_format, earlier)
        paths = earlier.paths if earlier else ()
        dumps[name] = Dump(name, forum_format, (*paths, path))

    if options.site is not None and len(dumps) > 1:
        raise ConfigError(
            f"--site {options.site}: the sources are dumps of {len(dumps)} sites. Name the files of"
            " one site."
        )
    return list(dumps.values()), bad


def _name(path: Path, forum_format: ForumFormat, options: IngestOptions) -> str:
    """The name of a file's dump."""
    if forum_format.names_sites:
        return forum_format.name

    name = options.site or forum_format.site_of(path)
    if not re.fullmatch(SITE_NAME, name):
        raise DataError(
            path,
            f"the file's name does not give the name of a site ({name!r}). Set --site.",
        )
    return name


def _check_joins(path: Path, forum_format: ForumFormat, dump: Dump) -> None:
    """Raise an error if a file does not join the earlier files of its dump."""
    # A second dump of a site would repeat most of its posts, with other votes.
    part = forum_format.part_of(path)
    parts = {dump.format.part_of(earlier): earlier for earlier in dump.paths}
    if forum_format is not dump.format or part in parts:
        raise ConfigError(
            f"{path}: {parts.get(part, dump.paths[0])} is also a dump of {dump.name}, and the two"
            " are not parts of one dump. Ingest the older one first, and the newer one with"
            " --update."
        )


def _files(sources: Sequence[Path]) -> Iterator[Path]:
    """The files among the sources, and the files with posts in their folders, sorted."""
    for path in sources:
        if path.is_dir():
            files = sorted(filter(_may_have_posts, path.rglob("*")))
            if not files:
                raise ConfigError(f"{path}: a folder without a forum dump. Name another.")
            yield from files
        elif path.is_file():
            yield path
        else:
            raise ConfigError(f"{path}: no such file. Check the path.")


def _may_have_posts(path: Path) -> bool:
    """Whether a file of a folder is a dump with posts, by its name. A file of JSON must be a topic,
    because folders have other JSON too."""
    if not path.is_file() or f"-{path.stem}".endswith(OTHER_PARTS):
        return False
    if path.suffix == ".json":
        with path.open("rb") as file:
            return b'"post_stream"' in file.read(TOPIC_BYTES)
    return path.suffix in (".7z", ".csv") or path.name in POSTS_XML or json_lines.is_lines(path)


def _format_of(path: Path, name: str | None) -> ForumFormat:
    """The format with this name, or else the format detected from the file's name and first
    line."""
    if name is not None:
        return next(forum_format for forum_format in FORMATS if forum_format.name == name)
    if path.suffix == ".xml" and path.name not in POSTS_XML:
        return CODIDACT
    if path.suffix == ".7z" or path.name in POSTS_XML:
        return STACKEXCHANGE
    if path.suffix == ".csv":
        return STACKEXCHANGE_CSV
    if path.suffix == ".json":
        return DISCOURSE
    if not json_lines.is_lines(path):
        raise DataError(
            path,
            "not a forum dump. Name a Stack Exchange archive (.7z), a Posts.xml, a CSV of posts,"
            " a topic of Discourse (.json), or lines of JSON (.jsonl, .zst).",
        )

    # The formats of JSON lines have the same file names, but different keys in their rows.
    first = next(json_lines.read(path, Counter()), {})
    for forum_format in FORMATS:
        if forum_format.has_row(first):
            return forum_format
    raise DataError(
        path,
        "neither threads nor rows of Reddit, Discourse, Hacker News or Lemmy: its first line has"
        f" {', '.join(list(first)[:8]) or 'nothing'}. Set --format.",
        line=1,
    )
