"""Options of `worldpm score`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import ModelOptions


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(ModelOptions):
    """Score JSON lines with a checkpoint."""

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path | None] = None
    """JSON lines to read; standard input unless given."""
    out: Path | None = None
    """File to write, in place of one that is there; standard output unless given. A killed run goes
    on where it was."""
    best: bool = False
    """Add the place of the best response, its reward's lead over the mean, and what best of n costs
    in nats of KL."""
    allow: tuple[str, ...] = ()
    """best: allowed counts, FEATURE=LOW:HIGH of length (tokens), headers, lists, bold, code, links;
    others come after."""
    weigh: tuple[str, ...] = ()
    """best: FEATURE=LOG_ODDS for each unit of a style difference, which runs from -1 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.allow or self.weigh) and not self.best:
            raise ConfigError("--allow and --weigh go with --best")
