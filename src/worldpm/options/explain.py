"""Options of `worldpm explain`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import ModelOptions


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ModelOptions):
    """Explain the rewards of rows (JSON lines, in the form of `worldpm score`)."""

    EXAMPLE: ClassVar[str] = "worldpm explain checkpoint answers.jsonl"
    INPUTS_OR_IDS: ClassVar[tuple[str, ...]] = ("model",)
    INPUTS: ClassVar[tuple[str, ...]] = ("file",)

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path]
    """JSON lines to read."""
    by: tuple[Literal["tokens", "sentences"], ...] = ("tokens", "sentences")
    """Integrated gradients of every token, the effect of each sentence, or both."""

    streams: ClassVar[bool] = True
    """Rows go to standard output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.by:
            raise ConfigError("--by: names nothing. Name tokens, sentences or both.")
