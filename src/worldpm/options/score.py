"""Options of `worldpm score`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from worldpm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Score JSON lines with a checkpoint."""

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path | None] = None
    """JSON lines to read; standard input unless given."""
    out: Path | None = None
    """File to write, in place of one that is there; standard output unless given. A killed run goes on where it was."""
    best: bool = False
    """Add the place of the best response, its reward's lead over the mean, and what best of n costs in nats of KL."""
    allow: tuple[str, ...] = ()
    """best: allowed counts, FEATURE=LOW:HIGH of length (tokens), headers, lists, bold, code, links; others come after."""
    weigh: tuple[str, ...] = ()
    """best: FEATURE=LOG_ODDS for each unit of a style difference, which runs from -1 to 1."""
    cut: bool = False
    """Cut what is too long, instead of refusing it."""
    max_length: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens of prompt plus one response; the checkpoint's own unless set."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute type; that of the checkpoint's weights unless set."""
    across_devices: bool = False
    """Spread a model that is too large for one device over all of them, and over memory."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    remote_code: bool = False
    """Run the Python that a model's repository brings; needs --revision with a commit."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 16:
            raise ConfigError(f"--max-length is {self.max_length}; at least 16 tokens are needed")
        if (self.allow or self.weigh) and not self.best:
            raise ConfigError("--allow and --weigh go with --best")
