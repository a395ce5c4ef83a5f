"""Options of `worldpm fairness`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from worldpm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FairnessOptions:
    """Tell reward and error gaps between the values of columns, with intervals."""

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path]
    """JSON lines: `prompt`, `responses`, `preferred` (the place of the best one), and columns such as `language` or `region`."""
    by: tuple[str, ...]
    """Columns."""
    out: Path | None = None
    """JSON file to write; a table on standard output either way."""

    def __post_init__(self) -> None:
        if not self.by:
            raise ConfigError("--by names no column")
