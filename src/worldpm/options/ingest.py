"""Options of `worldpm ingest`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import Engine, Groups, check_not_negative


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Read forum dumps into threads."""

    EXAMPLE: ClassVar[str] = "worldpm ingest dumps/*.7z --out threads"
    INPUTS: ClassVar[tuple[str, ...]] = ("sources",)
    GROUPS: ClassVar[Groups] = {
        "speed": ("engine", "workers"),
    }

    sources: Positional[tuple[Path, ...]]
    """Stack Exchange archives (`SITE.7z`, `SITE-Posts.7z`), plain `Posts.xml` files, Reddit's
    submissions and comments (`.zst`, `.jsonl`), threads as lines of JSON, or folders of these."""
    out: Path
    """Folder to write: `SITE.parquet` for each site, and the manifest."""
    format: Literal["stackexchange", "reddit", "threads"] | None = None
    """Format of the files; detected from their names and first lines unless set."""
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
        check_not_negative({"--workers": self.workers or 0})
