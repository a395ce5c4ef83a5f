"""Options of `worldpm simulate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worldpm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """Write a forum whose votes come from planted quality, a length bias, a head start and
    noise."""

    out: Path
    """Folder to write: threads as `worldpm ingest` writes them, and `truth/` with what was planted
    in each response."""
    threads: int = 3000
    """How many threads."""
    seed: int = 0
    """Of the forum; thread i is the same however many there are."""
    forum: Literal["hobbies", "skills", "control"] = "hobbies"
    """`hobbies` is the demo's. `skills` is for ladders, with a noiseless test of each skill in
    `tests/`; `control` lacks its hard one."""

    def __post_init__(self) -> None:
        if self.threads < 1 or self.seed < 0:
            raise ConfigError(
                f"--threads {self.threads} and --seed {self.seed}: at least 1 thread, and no"
                " negative seed"
            )
