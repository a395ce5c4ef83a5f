"""Options of `worldpm score`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import Groups, ModelOptions, check_above_zero, column_names


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(ModelOptions):
    """Score the rows of a file with a checkpoint."""

    EXAMPLE: ClassVar[str] = "worldpm score checkpoint answers.jsonl --out scored.jsonl"
    INPUTS_OR_IDS: ClassVar[tuple[str, ...]] = ("model",)
    INPUTS: ClassVar[tuple[str, ...]] = ("file",)
    GROUPS: ClassVar[Groups] = {
        "choice": ("best", "allow", "weigh"),
        "speed": ("engine", "actors"),
    }

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path | None] = None
    """Rows to read: JSON lines, JSON, CSV or Parquet, also .gz or .zst; JSON lines of standard
    input unless given."""
    out: Path | None = None
    """File to write or replace: Parquet if its name ends in .parquet, else JSON lines; standard
    output unless given. A killed run resumes, but not if OUT is a link, a pipe or a device."""
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

    engine: Literal["local", "ray"] = "local"
    """`ray` computes with actors of a Ray cluster, that of RAY_ADDRESS or one on this machine."""
    actors: int | None = None
    """ray: number of actors, each with a copy of the model; one for each GPU of the cluster unless
    set, or one for each machine without GPUs."""

    @property
    def streams(self) -> bool:
        """Whether rows go to standard output."""
        return self.out is None

    def __post_init__(self) -> None:
        super().__post_init__()
        column_names(self.columns)
        if (self.allow or self.weigh) and not self.best:
            raise ConfigError("--allow and --weigh need --best. Add it.")
        if self.out is not None and self.out.suffix in (".csv", ".tsv"):
            raise ConfigError(
                f"--out {self.out}: rows are written as JSON lines or Parquet. Name a file that"
                " ends in .jsonl or .parquet."
            )
        if self.actors is not None and self.engine != "ray":
            raise ConfigError("--actors needs --engine ray. Add it.")
        check_above_zero({"--actors": self.actors})
        if self.engine == "ray" and self.across_devices:
            raise ConfigError(
                "--engine ray holds the model on one device for each actor. Leave out"
                " --across-devices."
            )
