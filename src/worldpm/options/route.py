"""Options of `worldpm route`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import ModelOptions


@dataclass(frozen=True, kw_only=True)
class RouteOptions(ModelOptions):
    """Send responses to queues by a rule file, or evaluate the rules on labelled responses."""

    EXAMPLE: ClassVar[str] = "worldpm route checkpoint --rules rules.json --check labelled.jsonl"
    INPUTS_OR_IDS: ClassVar[tuple[str, ...]] = ("model",)
    INPUTS: ClassVar[tuple[str, ...]] = (
        "rules",
        "file",
        "check",
        "calibration",
    )

    model: Positional[str]
    """Folder or hub id of a reward model."""
    rules: Path
    """Rule file, as for `worldpm serve --rules`."""
    file: Positional[Path | None] = None
    """Rows to send to queues, as `worldpm score` reads them; each is printed with `queues`."""
    check: Path | None = None
    """Labelled rows in place of FILE: `queues` has the right queue of each response, or null.
    Prints precision, recall and cost of each queue over thresholds, with intervals."""
    calibration: Path | None = None
    """Results folder of `worldpm evaluate` on this model; its temperature gives probabilities."""
    out: Path | None = None
    """check: JSON file to write or replace."""
    cut: bool = True
    """Cut inputs over the limit; with --no-cut the first such input stops the run."""

    @property
    def streams(self) -> bool:
        """Whether rows go to standard output."""
        return self.check is None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.file is None) == (self.check is None):
            raise ConfigError("name either a file to route, or labelled rows with --check")
        if self.out is not None and self.check is None:
            raise ConfigError("--out needs --check. Without it, rows go to standard output.")
        if self.out is not None and not self.out.parent.is_dir():
            raise ConfigError(
                f"--out {self.out}: the folder {self.out.parent} does not exist. Create it first."
            )
