"""Options of `worldpm simulate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from worldpm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """Write a simulated forum, whose votes come from planted quality, a length bias, a head start
    and noise."""

    EXAMPLE: ClassVar[str] = "worldpm simulate --threads 3000 --out threads"

    out: Path
    """Folder to write: threads in the form of `worldpm ingest`, and `truth/` with the planted
    quality of each response."""
    threads: int = 3000
    """Number of threads."""
    seed: int = 0
    """Seed of the forum; thread i does not depend on the number of threads."""
    forum: Literal["hobbies", "skills", "control"] = "hobbies"
    """`hobbies` is the forum of the demo. `skills` is for ladders, with a noiseless test of each
    skill in `tests/`; `control` is the same forum without the hard skill."""

    def __post_init__(self) -> None:
        if self.threads < 1 or self.seed < 0:
            raise ConfigError(
                f"--threads {self.threads} and --seed {self.seed}: the first must be at least 1,"
                " the second at least 0"
            )
