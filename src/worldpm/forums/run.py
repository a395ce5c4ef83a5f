"""Convert forum dumps to threads: one Parquet table per site, with every readable post."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa

from worldpm import console
from worldpm.errors import ConfigError, DataError
from worldpm.forums import joining, json_lines
from worldpm.forums.counts import IngestCounts
from worldpm.forums.forum_format import ForumFormat
from worldpm.forums.generic import THREADS
from worldpm.forums.reddit import REDDIT
from worldpm.forums.stackexchange import STACKEXCHANGE
from worldpm.options.ingest import IngestOptions
from worldpm.options.shared import command_of
from worldpm.storage import folders, parquet, schema
from worldpm.storage.json_files import Plain
from worldpm.storage.manifest import describe
from worldpm.storage.workers import workers_for

logger = logging.getLogger(__name__)

FORMATS: tuple[ForumFormat, ...] = (STACKEXCHANGE, REDDIT, THREADS)
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
"""Name endings of a large site's archives without posts."""


@dataclass(frozen=True)
class Site:
    """The source of one table."""

    format: ForumFormat
    paths: tuple[Path, ...]
    """Files of the site, in the order given."""


@dataclass(frozen=True)
class SiteRecord:
    """Entry of the manifest for a site."""

    counts: IngestCounts
    drops: dict[str, int]
    """Dropped rows by reason; reasons without rows are omitted."""


def run(options: IngestOptions) -> None:
    """Read every source into the output folder. After a kill, the same command resumes with the
    first unfinished site."""
    sites = _sites(options)
    inputs = [describe(path) for site in sites.values() for path in site.paths]
    settings = {"format": options.format} if options.format else {}
    output = folders.begin(
        options.out,
        step="ingest",
        config=settings,
        inputs=inputs,
        command=command_of("ingest", options),
    )
    if output is None:
        return

    with output:
        records: dict[str, SiteRecord] = {}
        for name, site in sites.items():
            result = output.part(f"{name}.parquet", partial(_ingest, site, name, output, options))
            records[name] = msgspec.convert(result, SiteRecord)
            _log(name, records[name])

        # A run without threads leaves no files, so that another command may use the folder.
        drops = {name: record.drops for name, record in records.items()}
        if not any(record.counts.threads for record in records.values()):
            output.discard()
            reasons = _most_common(sum(map(Counter, drops.values()), Counter()))
            raise DataError(
                options.sources[0],
                f"contains no threads ({reasons or 'it is empty'}). Name the files of a forum.",
            )
        counts = {name: asdict(record.counts) for name, record in records.items()}
        output.finish(counts=counts, drops=drops)


def _log(site: str, record: SiteRecord) -> None:
    left_out = f" (left out: {_most_common(record.drops)})" if record.drops else ""
    logger.info(
        "%s: %d threads, %d responses%s",
        site,
        record.counts.threads,
        record.counts.responses,
        left_out,
    )


def _most_common(dropped: Mapping[str, int]) -> str:
    return "; ".join(f"{reason}: {number:,}" for reason, number in Counter(dropped).most_common(3))


def _sites(options: IngestOptions) -> dict[str, Site]:
    """The sources by site, each checked before any is read."""
    sites: dict[str, Site] = {}

    for path in _files(options.sources):
        forum_format = _format_of(path, options.format)
        name = forum_format.site_of(path)
        if not re.fullmatch(r"[\w.-]+", name):
            raise DataError(
                path,
                f"the file's name does not give the name of a site ({name!r}). Name the file after"
                " its site.",
            )

        if name in sites:
            _check_joins(path, forum_format, name, sites[name])
        # Report a truncated archive before hours are spent on the files before it.
        forum_format.size_of(path)
        earlier = sites[name].paths if name in sites else ()
        sites[name] = Site(forum_format, (*earlier, path))

    return sites


def _check_joins(path: Path, forum_format: ForumFormat, name: str, site: Site) -> None:
    """Raise an error if a file does not join the earlier files of its site."""
    # A second dump of a site would repeat most of its posts, with other votes.
    parts = {site.format.part_of(earlier) for earlier in site.paths}
    if forum_format is not site.format or forum_format.part_of(path) in parts:
        raise ConfigError(
            f"{path}: {site.paths[0]} is also a dump of {name}, and the two are not submissions"
            " and comments. Ingest two dumps of a site into two folders."
        )


def _files(sources: Sequence[Path]) -> Iterator[Path]:
    """The files among the sources, and the files with posts in their folders, sorted."""
    for path in sources:
        if path.is_dir():
            files = sorted(filter(_may_hold_posts, path.rglob("*")))
            if not files:
                raise ConfigError(f"{path}: a folder without a forum dump. Name another.")
            yield from files
        elif path.is_file():
            yield path
        else:
            raise ConfigError(f"{path}: no such file. Check the path.")


def _may_hold_posts(path: Path) -> bool:
    """Whether a file's name is that of a dump with posts."""
    is_dump = path.suffix == ".7z" or path.name == "Posts.xml" or json_lines.is_lines(path)
    return is_dump and not path.stem.endswith(OTHER_PARTS)


def _format_of(path: Path, name: str | None) -> ForumFormat:
    """The format with this name, or else the format detected from the file's name and first
    line."""
    if name is not None:
        return next(forum_format for forum_format in FORMATS if forum_format.name == name)
    if path.suffix in (".7z", ".xml"):
        return STACKEXCHANGE
    if not json_lines.is_lines(path):
        raise DataError(
            path,
            "not a forum dump. Name a Stack Exchange archive (.7z), a Posts.xml, or lines of JSON"
            " (.jsonl, .zst).",
        )

    # Both formats of JSON lines have the same file names, but different keys in their rows.
    first = next(json_lines.read(path, Counter()), {})
    if "responses" in first:
        return THREADS
    if "link_id" in first or "selftext" in first:
        return REDDIT
    raise DataError(
        path,
        f"neither Reddit's rows nor threads: its first line has {', '.join(first) or 'nothing'}."
        " Set --format.",
        line=1,
    )


def _ingest(
    site: Site, name: str, output: folders.Output, options: IngestOptions, aside: Path
) -> Plain:
    """Write one site's threads into the file `aside`: posts are streamed to disk, then joined by
    the data engine."""
    forum_format, drops = site.format, Counter[str]()
    posts = output.progress / f"{name}.posts"
    size_bytes = sum(map(forum_format.size_of, site.paths))
    with console.progress(f"ingest {name}", total=size_bytes) as advance:
        joining.write_posts(posts, _posts(site, name, drops, advance))

    # Spark converts bodies itself, and Markdown needs no conversion.
    converts_here = forum_format.to_markdown is not None and options.engine != "spark"
    joined = joining.join_threads(
        posts,
        source=forum_format.source,
        site=name,
        text=forum_format.to_markdown,
        spill=output.progress,
        engine=options.engine,
        workers=workers_for(posts.stat().st_size, options.workers) if converts_here else 0,
    )

    # The join is lazy: threads are made, counted and written in one pass.
    counts = IngestCounts()
    parquet.write_parquet(aside, _counted(joined.threads, counts), schema.THREADS)
    posts.unlink()

    drops["duplicate id"] += joined.duplicate_ids
    drops["answer without its question"] += joined.orphans
    dropped = {reason: number for reason, number in sorted(drops.items()) if number}
    return asdict(SiteRecord(counts, dropped))


def _posts(
    site: Site, name: str, drops: Counter[str], advance: Callable[[int], object]
) -> Iterator[pa.RecordBatch]:
    """The posts of all files of a site."""
    for path in site.paths:
        yield from site.format.read_posts(path, site=name, drops=drops, advance=advance)


def _counted(batches: Iterator[pa.RecordBatch], counts: IngestCounts) -> Iterator[pa.RecordBatch]:
    """Pass the batches on, and add them to the counts."""
    for batch in batches:
        counts.add(batch["responses"].value_lengths().to_pylist())
        yield batch
