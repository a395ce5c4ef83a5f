"""Options of `worldpm demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Run every step on a simulated forum, offline, on a CPU: simulate, group, train, evaluate,
    report."""

    EXAMPLE: ClassVar[str] = "worldpm demo --out demo"

    out: Path = Path("demo")
    """Folder to write; its `report.html` shows the results."""
    threads: int = 6500
    """Threads of the forum; fewer are faster, and the model learns less."""
    seed: int = 0
    """Seed of the forum and of the model."""
