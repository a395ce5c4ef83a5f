"""Options of `worldpm evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from worldpm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Judge checkpoints, or raw rewards, on benchmarks and on the test split of groups."""

    checkpoints: Positional[tuple[str, ...]] = ()
    """Folders written by `worldpm train`, or folders or hub ids of other reward models."""
    on: tuple[str, ...]
    """Benchmarks by name, NAME=PLACE with a folder or hub id, the preset `worldpm`, groups (folders, bare Parquet files), or plain
    preference sets (files, hub ids)."""
    out: Path
    """Folder to write."""
    rewards: tuple[Path, ...] = ()
    """Raw rewards of any model (Parquet, JSON lines) to judge in place of checkpoints."""
    verdicts: tuple[Path, ...] = ()
    """Files of a judge: with --on arena-hard folders of its `data`, with --on alpacaeval `annotations.json`; gives win rates."""
    benchmarks: Path = Path("benchmarks")
    """Folder that holds one folder per benchmark, with the files of its repository."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute type; that of the checkpoint's weights unless set."""
    max_length: int | None = None
    """Tokens of prompt plus one response, beyond which they are cut; the checkpoint's own unless set."""
    strata: str | None = None
    """Draw so much of each kind: NAME=share,... or `forum` (70 % technical, 20 % open, 10 % controversial)."""
    trained_on: tuple[Path, ...] = ()
    """Folders of groups the checkpoints were trained on: the share of items that overlap with them is told."""

    def __post_init__(self) -> None:
        if not self.on or sum(map(bool, (self.checkpoints, self.rewards, self.verdicts))) != 1:
            raise ConfigError("name checkpoints, or --rewards, or --verdicts, one of the three, and after --on at least one benchmark")
        if not self.checkpoints and (self.strata or self.trained_on or self.dtype or self.max_length):
            raise ConfigError("--strata, --trained-on, --dtype and --max-length go with checkpoints; rewards and verdicts are as they are")
        if self.verdicts and self.on not in (("arena-hard",), ("alpacaeval",)):
            raise ConfigError(f"--verdicts goes with --on arena-hard or --on alpacaeval, not with {' '.join(self.on)}")
        if self.max_length is not None and self.max_length < 16:
            raise ConfigError(f"--max-length is {self.max_length}; at least 16 tokens are needed")
