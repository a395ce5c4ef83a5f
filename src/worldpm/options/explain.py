"""Options of `worldpm explain`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from worldpm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Explain the rewards of JSON lines, as `worldpm score` takes them."""

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path]
    """JSON lines to read."""
    by: tuple[Literal["tokens", "sentences"], ...] = ("tokens", "sentences")
    """Integrated gradients of every token, what each sentence adds, or both."""
    cut: bool = False
    """Cut what is too long, instead of refusing it."""

    def __post_init__(self) -> None:
        if not self.by:
            raise ConfigError("--by names nothing; say tokens, sentences or both")
