"""Options of `worldpm log`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import ModelOptions, changed


@dataclass(frozen=True, kw_only=True)
class LogOptions(ModelOptions):
    """Verify a decision log, export it as a table, score its inputs again, or save a window of it
    to tell drift from."""

    action: Positional[Literal["verify", "export", "replay", "reference"]]
    """What to do."""
    file: Positional[Path]
    """The SQLite file of `worldpm serve --log`."""
    head: str | None = None
    """verify: a hash that was kept elsewhere; it must be in the chain, or rows at the end are
    missing."""
    out: Path | None = None
    """export: the Parquet file to write; reference: the JSON file; one that is there is
    replaced."""
    model: str | None = None
    """replay: folder or hub id of the model."""
    cut: bool = True
    """replay: cut inputs over the limit, as the server did for requests that asked for it; --no-cut
    refuses them."""
    tolerance: float | None = None
    """replay: the largest difference of a reward, in logits, that is not told as one; 0.0001 unless
    set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = {"verify": None, "export": "out", "replay": "model", "reference": "out"}[
            self.action
        ]
        if wanted and getattr(self, wanted) is None:
            raise ConfigError(f"`worldpm log {self.action}` needs --{wanted}")
        given: dict[str, object] = {
            "out": self.out,
            "model": self.model,
            "head": self.head if self.action != "verify" else None,
        }
        given["tolerance"] = self.tolerance if self.action != "replay" else None
        if self.tolerance is not None and self.tolerance < 0:
            raise ConfigError(f"--tolerance is {self.tolerance}; it must not be negative")
        idle = [
            f"--{name}" for name, value in given.items() if value is not None and name != wanted
        ]
        if self.action != "replay":
            idle += changed(self, ModelOptions.__dataclass_fields__)
        if idle:
            raise ConfigError(f"{idle[0]} does nothing in `worldpm log {self.action}`")
