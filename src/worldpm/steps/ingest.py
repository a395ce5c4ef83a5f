"""Forum dumps become threads: one Parquet table per site, nothing filtered but what cannot be read."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from worldpm.field.errors import ConfigError, DataError
from worldpm.formats import console, folders

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Read forum dumps into threads."""

    sources: Positional[tuple[Path, ...]]
    """Stack Exchange archives (`SITE.7z`, `SITE-Posts.7z`) or plain `Posts.xml` files."""
    out: Path
    """Folder to write: `SITE.parquet` for each source, and the manifest."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("no source given: name at least one archive, for instance beer.stackexchange.com.7z")


def run(config: Config) -> None:
    """Read every source into the output folder; a killed run goes on with the first site that was not done."""
    sites = _sites(config.sources)
    inputs = [folders.describe(path) for path in config.sources]
    output = folders.begin(config.out, step="ingest", config={}, inputs=inputs)
    if output is None:
        return
    with output:
        counts, drops = {}, {}
        for site, path in sites.items():
            kept = output.part(f"{site}.parquet", partial(_ingest, path, site, output))
            counts[site], drops[site] = kept["counts"], kept["drops"]
            logger.info("%s: %d threads, %d responses", site, counts[site]["threads"], counts[site]["responses"])
        output.finish(counts=counts, drops=drops)


def _sites(sources: tuple[Path, ...]) -> dict[str, Path]:
    """The sources by site, each checked before any is read."""
    from worldpm.parts.forums import stackexchange

    sites: dict[str, Path] = {}
    for path in sources:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file" if not path.exists() else f"{path}: a folder, but a dump file is needed")
        if path.suffix not in (".7z", ".xml"):
            raise DataError(path, "not a forum dump: a Stack Exchange archive (.7z) or a Posts.xml is needed")
        site = stackexchange.site_of(path)
        if not re.fullmatch(r"[\w.-]+", site):
            raise DataError(path, f"the site's name cannot be told from the file's ({site!r}); name the file SITE.7z")
        if site in sites:
            raise ConfigError(f"{path}: {sites[site]} is the same site ({site}); ingest two dates of a site into two folders")
        sites[site] = path
    return sites


def _ingest(path: Path, site: str, output: folders.Output, aside: Path) -> folders.Json:
    """One site's threads into the file `aside`: posts are streamed to disk, then joined by the data engine."""
    from worldpm.formats import schema, tables
    from worldpm.parts.forums import stackexchange

    dropped: Counter[str] = Counter()
    posts = output.progress / f"{site}.posts"
    with console.progress(f"ingest {site}", total=stackexchange.xml_bytes(path)) as advance:
        tables.write_parquet(posts, stackexchange.read_posts(path, site=site, drops=dropped, advance=advance), schema.POSTS)
    joined = tables.join_threads(posts, source=stackexchange.SOURCE, site=site, spill=output.progress)
    tally: Counter[str] = Counter()
    tables.write_parquet(aside, _counted(joined.threads, tally), schema.THREADS)
    posts.unlink()
    dropped.update({"duplicate id": joined.duplicate_ids, "answer without its question": joined.orphans})
    return {"counts": dict(tally), "drops": {reason: n for reason, n in sorted(dropped.items()) if n}}


def _counted(batches: "Iterator[pa.RecordBatch]", tally: Counter[str]) -> "Iterator[pa.RecordBatch]":
    tally.update({"threads": 0, "responses": 0, "threads with two responses or more": 0})
    for batch in batches:
        sizes = batch["responses"].value_lengths().to_pylist()
        tally.update({"threads": len(sizes), "responses": sum(sizes), "threads with two responses or more": sum(n >= 2 for n in sizes)})
        yield batch
