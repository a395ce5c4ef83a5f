"""Options of `worldpm benchmarks`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import BENCHMARKS


@dataclass(frozen=True, kw_only=True)
class BenchmarksOptions:
    """List the benchmarks with their sources, or download their files."""

    EXAMPLE: ClassVar[str] = "worldpm benchmarks download llmbar rewardbench2"

    action: Positional[Literal["list", "download"]]
    """list: every benchmark, and which files are here; download: get the files of NAMES."""
    names: Positional[tuple[str, ...]] = ()
    """Benchmarks."""
    benchmarks: Path = BENCHMARKS
    """Folder that holds one folder per benchmark."""

    def __post_init__(self) -> None:
        if self.action == "download" and not self.names:
            raise ConfigError("no benchmark given. `worldpm benchmarks list` shows their names.")
        if self.action == "list" and self.names:
            raise ConfigError("list: shows all benchmarks. Leave the names out.")
