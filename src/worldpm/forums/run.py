"""Convert forum dumps to threads: one Parquet table per site, with every readable post."""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa

from worldpm import console
from worldpm.errors import ConfigError, DataError
from worldpm.forums import dumps, joining, updating
from worldpm.forums.counts import Drops, IngestCounts, no_drops
from worldpm.forums.dumps import BadFile, Dump
from worldpm.forums.forum_format import Selection
from worldpm.options.ingest import IngestOptions
from worldpm.options.shared import command_of
from worldpm.storage import folders, parquet, schema
from worldpm.storage.json_files import Plain
from worldpm.storage.manifest import PROGRESS, Input, describe, read_manifest
from worldpm.storage.workers import workers_for

logger = logging.getLogger(__name__)

UNREADABLE = "file that cannot be read"


@dataclass(frozen=True)
class SiteRecord:
    """Entry of the manifest for a site."""

    counts: IngestCounts
    drops: dict[str, int]
    """Dropped rows by reason; reasons without rows are omitted."""


@dataclass(frozen=True)
class FileRecord:
    """Result of reading a file of a dump."""

    drops: dict[str, dict[str, int]]
    """Dropped rows by site and reason."""
    error: str | None = None
    """Why the file was skipped; None if it was read."""


@dataclass(frozen=True)
class DumpRecord:
    """Result of a dump."""

    sites: dict[str, SiteRecord]
    drops: dict[str, int]
    """Dropped rows of sites without a table, by reason."""
    bad: list[BadFile]
    """Files that were skipped."""


def run(options: IngestOptions) -> None:
    """Read every source into the output folder. After a kill, the same command resumes with the
    first unfinished file."""
    all_dumps, bad = dumps.find(options)
    older = _older_tables(options)
    output = folders.begin(
        options.out,
        step="ingest",
        config=_settings(options),
        inputs=_inputs(options, all_dumps),
        command=command_of("ingest", options),
    )
    if output is None:
        return

    with output:
        records: dict[str, SiteRecord] = {}
        drops: dict[str, dict[str, int]] = {}
        for dump in all_dumps:
            ingest = _Ingest(dump, output, options, older)
            done = f"{PROGRESS}/{dump.name}.done"
            record = msgspec.convert(output.part(done, ingest.run), DumpRecord)
            _check_new(record, records, dump)
            records.update(record.sites)
            bad += record.bad
            drops[dump.name] = record.drops

        for site, path in older.items():
            if site not in records:
                record_of_site = output.part(f"{site}.parquet", partial(_carry_over, path))
                records[site] = msgspec.convert(record_of_site, SiteRecord)

        drops |= {site: record.drops for site, record in records.items()}
        for name, number in Counter(file.dump for file in bad).items():
            drops[name] = {**drops.get(name, {}), UNREADABLE: number}
        _check_threads(records, drops, output, options)
        _warn_of_bad(bad)
        output.finish(
            counts={site: asdict(record.counts) for site, record in records.items()},
            drops={name: reasons for name, reasons in drops.items() if reasons or name in records},
        )


def _settings(options: IngestOptions) -> Plain:
    """Settings for the manifest: the options that are set."""
    settings = {
        "format": options.format,
        "site": options.site,
        "subreddits": sorted(options.subreddits) or None,
        "min_threads": options.min_threads if options.min_threads > 1 else None,
        "comments": options.comments or None,
        "skip_bad": options.skip_bad or None,
        "update": options.update is not None or None,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _inputs(options: IngestOptions, all_dumps: Sequence[Dump]) -> list[Input]:
    inputs = [describe(path) for dump in all_dumps for path in dump.paths]
    return inputs if options.update is None else [*inputs, describe(options.update)]


def _older_tables(options: IngestOptions) -> dict[str, Path]:
    """The tables of --update by site."""
    if options.update is None:
        return {}
    read_manifest(options.update, made_by="ingest")
    return {path.stem: path for path in parquet.paths_of(options.update)}


def _check_new(record: DumpRecord, earlier: Mapping[str, SiteRecord], dump: Dump) -> None:
    """Raise an error if two dumps contain the same site: the second would replace its table."""
    repeated = sorted(record.sites.keys() & earlier.keys())
    if repeated:
        raise ConfigError(
            f"{dump.paths[0]}: the site {repeated[0]} is also in another dump. Ingest the two into"
            " two folders."
        )


def _check_threads(
    records: Mapping[str, SiteRecord],
    drops: Mapping[str, Mapping[str, int]],
    output: folders.Output,
    options: IngestOptions,
) -> None:
    """Raise an error if no table has a thread. Such a run leaves its folder empty, so that another
    command may use it."""
    if any(record.counts.threads for record in records.values()):
        return

    output.discard()
    reasons = most_common(sum(map(Counter, drops.values()), Counter()))
    raise DataError(
        options.sources[0],
        f"contains no threads ({reasons or 'it is empty'}). Name the files of a forum.",
    )


def _warn_of_bad(bad: Sequence[BadFile]) -> None:
    if bad:
        logger.warning("files that were skipped, because they cannot be read: %d", len(bad))
    for file in bad:
        logger.warning("  %s", file.message)


def _carry_over(path: Path, aside: Path) -> Plain:
    """Copy a table of older threads that no source updates."""
    counts = IngestCounts()
    for batch in parquet.read_batches(path):
        counts.add(batch)
    shutil.copyfile(path, aside)
    return asdict(SiteRecord(counts, {}))


def most_common(dropped: Mapping[str, int]) -> str:
    """The three most common reasons, with their numbers."""
    return "; ".join(f"{reason}: {number:,}" for reason, number in Counter(dropped).most_common(3))


class _Ingest:
    """The steps from a dump to the tables of its sites: posts of every file are streamed to disk,
    then joined by the data engine."""

    def __init__(
        self,
        dump: Dump,
        output: folders.Output,
        options: IngestOptions,
        older: Mapping[str, Path],
    ) -> None:
        self._dump, self._output, self._options = dump, output, options
        self._older = older

    def run(self, aside: Path) -> Plain:
        """Write the tables of the sites, and an empty file that marks the dump as done."""
        drops, bad = no_drops(), list[BadFile]()
        posts: list[Path] = []
        for number, path in enumerate(self._dump.paths):
            part = f"{PROGRESS}/{self._dump.name}-{number}.posts"
            record = msgspec.convert(
                self._output.part(part, partial(self._read, path, number)), FileRecord
            )
            for site, reasons in record.drops.items():
                drops[site].update(reasons)
            posts.append(self._output.path / part)
            if record.error is not None:
                bad.append(BadFile(self._dump.name, record.error))

        # Without a readable file nothing is newer, so older tables are carried over unchanged.
        readable = len(bad) < len(self._dump.paths)
        sites = self._join([*posts, *self._older_posts()], drops) if readable else {}
        for path in posts:
            path.unlink()
        aside.touch()

        # Reddit has a hundred thousand sites: those without a table share their counts.
        others = Counter[str]()
        for site, reasons in drops.items():
            if site not in sites:
                others.update(reasons)
        return asdict(DumpRecord(sites, _present(others), bad))

    def _read(self, path: Path, number: int, aside: Path) -> Plain:
        """Write the posts of a file; none if it cannot be read and is skipped."""
        options, drops = self._options, no_drops()
        sites = frozenset(name.lower() for name in options.subreddits)
        read = partial(
            self._dump.format.read_posts,
            path,
            site=self._dump.name,
            selection=Selection(sites=sites, comments=options.comments),
            drops=drops,
        )

        try:
            total = self._dump.format.size_of(path)
            with console.progress(f"read {path.name}", total=total) as advance:
                joining.write_posts(aside, read(advance=advance), number=number)
        except DataError as error:
            if not options.skip_bad:
                raise
            joining.write_posts(aside, [])
            return asdict(FileRecord({}, str(error)))
        return asdict(FileRecord({site: _present(reasons) for site, reasons in drops.items()}))

    def _older_posts(self) -> list[Path]:
        """The posts of the older threads of the dump's sites, in a file."""
        if self._dump.format.names_sites:
            older = [path for path in self._older.values() if self._has_source(path)]
        else:
            older = [path for site, path in self._older.items() if site == self._dump.name]
        if not older:
            return []

        part = f"{PROGRESS}/{self._dump.name}-older.posts"
        batches = (batch for path in older for batch in updating.posts_of(path))
        write = partial(joining.write_posts, batches=batches, number=joining.OLDER_FILE)
        self._output.part(part, write)
        return [self._output.path / part]

    def _has_source(self, table: Path) -> bool:
        first = next(parquet.read_rows(table, ["source"]), None)
        return first is not None and first["source"] == self._dump.format.source

    def _join(self, posts: Sequence[Path], drops: Drops) -> dict[str, SiteRecord]:
        """Join the posts, and write a table for each site."""
        dump, options = self._dump, self._options
        size_bytes = sum(path.stat().st_size for path in posts)
        # Spark converts bodies itself, and Markdown needs no conversion.
        converts_here = dump.format.to_markdown is not None and options.engine != "spark"
        joined = joining.join_threads(
            posts,
            source=dump.format.source,
            site=dump.name,
            text=dump.format.to_markdown,
            spill=self._output.progress,
            min_threads=options.min_threads,
            engine=options.engine,
            workers=workers_for(size_bytes, options.workers) if converts_here else 0,
        )
        drops[dump.name]["duplicate id"] += joined.duplicate_ids
        drops[dump.name]["answer without its question"] += joined.orphans
        drops[dump.name]["comment on an answer"] += joined.comments_on_answers
        drops[dump.name]["post of a site below --min-threads"] += joined.in_small_sites

        records: dict[str, SiteRecord] = {}
        for site, batches in _by_site(joined.threads):
            write = partial(_write_site, batches)
            counts = self._output.part(f"{site}.parquet", write)
            for _ in batches:  # of a table that a killed run finished
                pass
            record = SiteRecord(msgspec.convert(counts, IngestCounts), _present(drops[site]))
            records[site] = record
            _log(site, record)

        # A dump without threads still has its drops.
        return records


def _by_site(
    threads: Iterator[pa.RecordBatch],
) -> Iterator[tuple[str, Iterator[pa.RecordBatch]]]:
    """The batches of each site; a batch of several sites is cut."""
    pieces = (piece for batch in threads for piece in _cut_between_sites(batch))
    following = next(pieces, None)

    def of_site(site: str) -> Iterator[pa.RecordBatch]:
        nonlocal following
        while following is not None and following[0] == site:
            yield following[1]
            following = next(pieces, None)

    while following is not None:
        site = following[0]
        yield site, of_site(site)


def _cut_between_sites(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    sites = batch["site"].to_pylist()
    start = 0
    for index in range(1, len(sites) + 1):
        if index == len(sites) or sites[index] != sites[start]:
            yield sites[start], batch.slice(start, index - start)
            start = index


def _write_site(batches: Iterator[pa.RecordBatch], aside: Path) -> Plain:
    """Write a site's threads; the join is lazy, so they are made, counted and written in one
    pass."""
    counts = IngestCounts()

    def counted() -> Iterator[pa.RecordBatch]:
        for batch in batches:
            counts.add(batch)
            yield batch

    parquet.write_parquet(aside, counted(), schema.THREADS)
    return asdict(counts)


def _present(reasons: Mapping[str, int]) -> dict[str, int]:
    """The reasons with rows, sorted."""
    return {reason: number for reason, number in sorted(reasons.items()) if number}


def _log(site: str, record: SiteRecord) -> None:
    left_out = f" (left out: {most_common(record.drops)})" if record.drops else ""
    logger.info(
        "%s: %d threads, %d responses%s",
        site,
        record.counts.threads,
        record.counts.responses,
        left_out,
    )
