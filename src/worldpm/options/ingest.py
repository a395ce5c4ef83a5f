"""Options of `worldpm ingest`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import Engine, Groups, check_not_negative

SITE_NAME = r"[\w-][\w.-]*(?:@[\w.-]+)?"
"""Names of sites, which are also the names of files; a community of Lemmy has the name of its
server after an `@`."""
Format = Literal[
    "stackexchange",
    "stackexchange-csv",
    "codidact",
    "reddit",
    "discourse",
    "hackernews",
    "lemmy",
    "threads",
]


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Read forum dumps into threads."""

    EXAMPLE: ClassVar[str] = "worldpm ingest dumps/*.7z --out threads"
    INPUTS: ClassVar[tuple[str, ...]] = ("sources",)
    GROUPS: ClassVar[Groups] = {
        "sites": ("site", "subreddits", "min_threads"),
        "speed": ("engine", "workers"),
    }

    sources: Positional[tuple[Path, ...]]
    """Dumps of Stack Exchange (`SITE.7z`, `SITE-Posts.7z`, `Posts.xml`, CSV), Codidact (XML),
    Reddit (submissions and comments, `.zst` or `.jsonl`), Discourse (`.json`, `.jsonl`), Hacker
    News or Lemmy, threads as lines of JSON, or folders of these."""
    out: Path
    """Folder to write: `SITE.parquet` for each site, and the manifest."""
    format: Format | None = None
    """Format of the files; detected from their names and first lines unless set."""
    update: Path | None = None
    """Folder of older threads, which the sources update: new answers are added, votes are those of
    the sources, and the older votes stay with their date."""
    comments: bool = False
    """Also read the comments on questions (Stack Exchange). They become part of the prompt if they
    are older than all answers."""
    skip_bad: bool = False
    """Skip files that cannot be read, and list them at the end."""
    site: str | None = None
    """Name of the site, if the files do not show it: `beer.stackexchange.com`."""
    subreddits: tuple[str, ...] = ()
    """Read only these subreddits (or communities of Lemmy); all unless set."""
    min_threads: int = 1
    """Leave out sites with fewer threads."""
    engine: Engine = "duckdb"
    """Data engine that joins posts into threads; both give the same rows. Spark uses the session
    of `spark-submit`, or a local one."""
    workers: int | None = None
    """Processes that turn HTML into Markdown; one per core for large dumps unless set. With 0 the
    main process does it."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError(
                "no source given: name at least one archive, for instance beer.stackexchange.com.7z"
            )
        check_not_negative({"--workers": self.workers or 0, "--min-threads": self.min_threads})
        if self.site is not None and not re.fullmatch(SITE_NAME, self.site):
            raise ConfigError(
                f"--site {self.site!r}: letters, digits, dots and dashes name a site and its file."
                " Choose such a name."
            )
