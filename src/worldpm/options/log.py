"""Options of `worldpm log`."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import Groups, ModelOptions, changed, check_not_negative, names_of


@dataclass(frozen=True, kw_only=True)
class LogOptions(ModelOptions):
    """Verify a decision log, export it as a table, score its inputs again, erase texts, or save a
    window of it as the reference for drift."""

    EXAMPLE: ClassVar[str] = "worldpm log verify decisions.sqlite"
    INPUTS: ClassVar[tuple[str, ...]] = ("file",)
    GROUPS: ClassVar[Groups] = {
        "selection": ("since", "until", "key", "id"),
    }

    action: Positional[Literal["verify", "export", "replay", "erase", "reference"]]
    """Action."""
    file: Positional[Path]
    """The SQLite file of `worldpm serve --log`; rotated files in the same folder are read too."""
    since: datetime | None = None
    """Select decisions from this time on, such as 2026-01-31 or 2026-01-31T08:00:00; in UTC unless
    it has a time zone."""
    until: datetime | None = None
    """Select decisions before this time."""
    key: str | None = None
    """Select decisions for the API key of this name."""
    id: str | None = None
    """Select decisions whose reply or request has this id."""
    head: str | None = None
    """verify: a hash that you saved elsewhere. If it is not in the chain, rows at the end are
    missing."""
    out: Path | None = None
    """export: Parquet file to write or replace; reference: JSON file to write or replace."""
    model: str | None = None
    """replay: folder or hub id of the model."""
    cut: bool = True
    """replay: cut inputs over the limit, as the server did for requests that allowed a cut;
    --no-cut rejects them."""
    tolerance: float | None = None
    """replay: largest difference of a reward, in logits, that counts as equal; 0.0001 unless
    set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative({"--tolerance": self.tolerance or 0})

        if self.action in ("export", "reference") and self.out is None:
            raise ConfigError(f"`worldpm log {self.action}` needs --out")
        if self.action == "replay" and self.model is None:
            raise ConfigError("`worldpm log replay` needs --model")

        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ConfigError("--since is not before --until. Swap them.")
        selection = ["since", "until", "key", "id"]
        if self.action == "erase" and not changed(self, selection):
            raise ConfigError(
                "`worldpm log erase` needs --key, --id, --since or --until. Name what to erase."
            )
        scoring = ["model", "tolerance", *names_of(ModelOptions)]
        used = {
            "verify": {"head"},
            "export": {"out", *selection},
            "reference": {"out", *selection},
            "replay": {*scoring, *selection},
            "erase": {*selection},
        }[self.action]
        optional = ["head", "out", *selection, *scoring]
        if idle := changed(self, [name for name in optional if name not in used]):
            raise ConfigError(
                f"{idle[0]}: has no effect in `worldpm log {self.action}`. Leave it out."
            )
