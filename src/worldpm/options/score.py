"""Options of `worldpm score`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import Groups, ModelOptions, column_names


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(ModelOptions):
    """Score the rows of a file with a checkpoint."""

    EXAMPLE: ClassVar[str] = "worldpm score checkpoint answers.jsonl --out scored.jsonl"
    INPUTS_OR_IDS: ClassVar[tuple[str, ...]] = ("model",)
    INPUTS: ClassVar[tuple[str, ...]] = ("file",)
    GROUPS: ClassVar[Groups] = {
        "choice": ("best", "allow", "weigh"),
    }

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path | None] = None
    """Rows to read: JSON lines, JSON, CSV or Parquet, also .gz or .zst; JSON lines of standard
    input unless given."""
    out: Path | None = None
    """File of JSON lines to write or replace; standard output unless given. A killed run resumes,
    but not if OUT is a link, a pipe or a device."""
    columns: tuple[str, ...] = ()
    """OURS=THEIRS, separated by commas: names of columns in the file, for instance
    prompt=question,responses=answers."""
    best: bool = False
    """Add the index of the best response, its reward's lead over the mean, and the cost of best of
    n in nats of KL."""
    allow: tuple[str, ...] = ()
    """best: allowed range of a feature, FEATURE=LOW:HIGH, for length (tokens), headers, lists,
    bold, code, links. Responses outside the range rank last."""
    weigh: tuple[str, ...] = ()
    """best: FEATURE=LOG_ODDS for each unit of a style difference, from -1 to 1."""

    @property
    def streams(self) -> bool:
        """Whether rows go to standard output."""
        return self.out is None

    def __post_init__(self) -> None:
        super().__post_init__()
        column_names(self.columns)
        if (self.allow or self.weigh) and not self.best:
            raise ConfigError("--allow and --weigh need --best. Add it.")
