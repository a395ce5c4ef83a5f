"""Forum dumps become threads: one Parquet table per site, nothing filtered but what cannot be
read."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pyarrow as pa

from worldpm import console
from worldpm.errors import ConfigError, DataError
from worldpm.forums import generic, joining, json_lines, reddit, stackexchange
from worldpm.options.ingest import IngestOptions
from worldpm.storage import folders, parquet, schema
from worldpm.storage.workers import workers_for

logger = logging.getLogger(__name__)


OTHER_PARTS = tuple(
    f"-{part}"
    for part in ("Badges", "Comments", "PostHistory", "PostLinks", "Tags", "Users", "Votes")
)
"""Archives of a large site that hold no posts."""


class Site(NamedTuple):
    """What becomes one table: the files of one site, and the module that reads them."""

    reader: ModuleType
    paths: list[Path]


def run(options: IngestOptions) -> None:
    """Read every source into the output folder; a killed run goes on with the first site that was
    not done."""
    sites = _sites(options)
    inputs = [folders.describe(path) for site in sites.values() for path in site.paths]
    settings = {"format": options.format} if options.format else {}
    output = folders.begin(options.out, step="ingest", config=settings, inputs=inputs)
    if output is None:
        return
    with output:
        counts: dict[str, dict[str, int]] = {}
        drops: dict[str, dict[str, int]] = {}
        for name, site in sites.items():
            kept = output.part(f"{name}.parquet", partial(_ingest, site, name, output, options))
            counts[name], drops[name] = kept["counts"], kept["drops"]
            left = f" (left out: {_most_common(drops[name])})" if drops[name] else ""
            logger.info(
                "%s: %d threads, %d responses%s",
                name,
                counts[name]["threads"],
                counts[name]["responses"],
                left,
            )
        if not any(count["threads"] for count in counts.values()):
            output.discard()
            why = _most_common(sum(map(Counter, drops.values()), Counter()))
            raise DataError(
                options.sources[0],
                f"no thread is in it ({why or 'it is empty'}); are these the files of a forum?",
            )
        output.finish(counts=counts, drops=drops)


def _most_common(dropped: Mapping[str, int]) -> str:
    return "; ".join(f"{reason}: {number:,}" for reason, number in Counter(dropped).most_common(3))


def _sites(options: IngestOptions) -> dict[str, Site]:
    """The sources by site, each looked at before any is read."""

    found: dict[str, Site] = {}
    for path in _files(options.sources):
        reader = _reader(path, options.format)
        name = reader.site_of(path)
        if not re.fullmatch(r"[\w.-]+", name):
            raise DataError(
                path,
                f"the site's name cannot be told from the file's ({name!r}); name the file after"
                " its site",
            )
        site = found.setdefault(name, Site(reader, []))
        joins = (
            reader is site.reader is reddit
            and len({*map(reddit.part_of, (*site.paths, path))}) == len(site.paths) + 1
        )
        if site.paths and not joins:
            raise ConfigError(
                f"{path}: {site.paths[0]} is the same site ({name}), and not its submissions to"
                " these comments, or the other way round; ingest two dumps of a site into two"
                " folders"
            )
        reader.size_of(
            path
        )  # an archive that is cut is told before hours are spent on those before it
        site.paths.append(path)
    return found


def _files(sources: Sequence[Path]) -> Iterator[Path]:
    """The files, and of folders those that hold posts, sorted."""

    for path in sources:
        if path.is_dir():
            inside = sorted(
                p
                for p in path.rglob("*")
                if p.suffix == ".7z" or p.name == "Posts.xml" or json_lines.is_lines(p)
            )
            kept = [p for p in inside if not p.stem.endswith(OTHER_PARTS)]
            if not kept:
                raise ConfigError(f"{path}: a folder without a forum dump")
            yield from kept
        elif path.is_file():
            yield path
        else:
            raise ConfigError(f"{path}: no such file")


def _reader(path: Path, asked: str | None) -> ModuleType:
    """The module that reads the file, as asked or told from its name and first line."""

    modules: dict[str, ModuleType] = {
        "stackexchange": stackexchange,
        "reddit": reddit,
        "threads": generic,
    }
    if asked is not None:
        return modules[asked]
    if path.suffix in (".7z", ".xml"):
        return stackexchange
    if json_lines.is_lines(path):
        first = next(json_lines.read(path, Counter()), {})
        if "responses" in first:
            return generic
        if "link_id" in first or "selftext" in first:
            return reddit
        raise DataError(
            path,
            "neither Reddit's rows nor threads: its first line has"
            f" {', '.join(first) or 'nothing'}; say --format",
            line=1,
        )
    raise DataError(
        path,
        "not a forum dump: a Stack Exchange archive (.7z), a Posts.xml, or lines of JSON (.jsonl,"
        " .zst) are needed",
    )


def _ingest(
    site: Site, name: str, output: folders.Output, options: IngestOptions, aside: Path
) -> folders.Json:
    """One site's threads into the file `aside`: posts are streamed to disk, then joined by the data
    engine."""

    dropped: Counter[str] = Counter()
    posts = output.progress / f"{name}.posts"
    with console.progress(
        f"ingest {name}", total=sum(map(site.reader.size_of, site.paths))
    ) as advance:
        batches = (
            batch
            for path in site.paths
            for batch in site.reader.read_posts(path, site=name, drops=dropped, advance=advance)
        )
        joining.write_posts(posts, batches)
    plain = site.reader.TO_MARKDOWN is None or options.engine == "spark"
    workers = 0 if plain else workers_for(posts.stat().st_size, options.workers)
    origin = {"source": site.reader.SOURCE, "site": name, "text": site.reader.TO_MARKDOWN}
    joined = joining.join_threads(
        posts, **origin, spill=output.progress, engine=options.engine, workers=workers
    )
    tally: Counter[str] = Counter()
    parquet.write_parquet(aside, _counted(joined.threads, tally), schema.THREADS)
    posts.unlink()
    dropped.update(
        {"duplicate id": joined.duplicate_ids, "answer without its question": joined.orphans}
    )
    return {
        "counts": dict(tally),
        "drops": {reason: n for reason, n in sorted(dropped.items()) if n},
    }


def _counted(batches: Iterator[pa.RecordBatch], tally: Counter[str]) -> Iterator[pa.RecordBatch]:
    tally.update({"threads": 0, "responses": 0, "threads with two responses or more": 0})
    for batch in batches:
        sizes = batch["responses"].value_lengths().to_pylist()
        tally.update(
            {
                "threads": len(sizes),
                "responses": sum(sizes),
                "threads with two responses or more": sum(n >= 2 for n in sizes),
            }
        )
        yield batch
