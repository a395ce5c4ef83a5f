"""Options of `worldpm demo`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Walk the whole road on a simulated forum, offline, on a CPU: simulate, group, train,
    evaluate, report."""

    out: Path = Path("demo")
    """Folder for all that is made; `run.html` is the page to look at."""
    threads: int = 7000
    """Size of the forum; fewer are faster and learn less."""
    seed: int = 0
    """Of the forum and of the model."""
