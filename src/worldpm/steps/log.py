"""The decision log of a server: is it whole, what does it say, and would the model say so again?"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from worldpm.field.errors import ConfigError, DataError, WorldPMError

if TYPE_CHECKING:
    from worldpm.parts.scorer import Scorer

logger = logging.getLogger(__name__)

Json = dict[str, Any]
TOLERANCE = 1e-4
"""In logits."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Verify a decision log, export it as a table, score its inputs again, or save a window of it to tell drift from."""

    action: Positional[Literal["verify", "export", "replay", "reference"]]
    """What to do."""
    file: Positional[Path]
    """The SQLite file of `worldpm serve --log`."""
    head: str | None = None
    """verify: a hash that was kept elsewhere; it must be in the chain, or rows at the end are missing."""
    out: Path | None = None
    """export: the Parquet file to write; reference: the JSON file; one that is there is replaced."""
    model: str | None = None
    """replay: folder or hub id of the model."""
    tolerance: float | None = None
    """replay: the largest difference of a reward, in logits, that is not told as one; 0.0001 unless set."""

    def __post_init__(self) -> None:
        wanted = {"verify": None, "export": "out", "replay": "model", "reference": "out"}[self.action]
        if wanted and getattr(self, wanted) is None:
            raise ConfigError(f"`worldpm log {self.action}` needs --{wanted}")
        given: dict[str, object] = {"out": self.out, "model": self.model, "head": self.head if self.action != "verify" else None}
        given["tolerance"] = self.tolerance if self.action != "replay" else None
        if self.tolerance is not None and self.tolerance < 0:
            raise ConfigError(f"--tolerance is {self.tolerance}; it must not be negative")
        if idle := [name for name, value in given.items() if value is not None and name != wanted]:
            raise ConfigError(f"--{idle[0]} does nothing in `worldpm log {self.action}`")


def run(config: Config) -> None:
    """Do what was asked; a log that is broken, or not repeated, is a failure."""
    {"verify": _verify, "export": _export, "replay": _replay, "reference": _reference}[config.action](config)


def _verify(config: Config) -> None:
    from worldpm.parts import decision_log

    found = decision_log.verify(config.file)
    if found.broken is not None:
        raise DataError(config.file, f"{found.what}; the {found.broken - 1:,} decisions before it are as they were written")
    if config.head and config.head not in {decision_log.FIRST, *(row["hash"] for row in decision_log.rows(config.file))}:
        raise DataError(config.file, f"{config.head} is not in the chain: decisions at the end are missing")
    print(f"{found.decisions:,} decisions, all as they were written; the last hash is {found.head}")


def _out(config: Config) -> Path:
    """The file to write, in a folder that is there."""
    out = config.out or Path()
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"--out {out}: name a file in a folder that is there")
    return out


def _export(config: Config) -> None:
    import pyarrow as pa

    from worldpm.formats import tables
    from worldpm.parts import decision_log

    out = _out(config)
    lists = pa.list_(pa.float64())
    kinds = {"number": pa.int64(), "milliseconds": pa.float64(), "rewards": lists, "probabilities": lists}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in (*decision_log.COLUMNS, "hash")])
    rows = ({**row, "rewards": json.loads(row["rewards"]), "probabilities": json.loads(row["probabilities"])}
            for row in decision_log.rows(config.file))  # fmt: skip
    aside = out.with_name(f"{out.name}.partial")
    try:
        count = tables.write_parquet(aside, tables.rows_to_batches(rows, schema), schema)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    logger.info("%s: %d decisions", out, count)


def _reference(config: Config) -> None:
    from worldpm.formats import folders
    from worldpm.parts import decision_log, drift

    found = drift.reference_of(decision_log.rows(config.file))
    if (count := len(found[drift.SERIES[0]])) < drift.LEAST:
        raise DataError(config.file, f"holds {count} requests with a prompt of their own; at least {drift.LEAST} are needed")
    folders.write_atomically(_out(config), folders.to_json(found))
    logger.info("%s: %d requests", config.out, count)


def _replay(config: Config) -> None:
    from worldpm.parts.scorer import Scorer

    scorer = Scorer.load(str(config.model), cut=True)
    tolerance = TOLERANCE if config.tolerance is None else config.tolerance
    worst, differing, count = 0.0, [], 0
    for row, again in _scored_again(scorer, config.file):
        count += 1
        difference = max((abs(one - other) for one, other in zip(json.loads(row["rewards"]), again, strict=True)), default=0.0)
        worst = max(worst, difference)
        if difference > tolerance:
            differing.append(row["number"])
    told = f"{count:,} decisions scored again; the largest difference of a reward is {worst:.3g}"
    if differing:
        raise WorldPMError(f"{told}, and {len(differing):,} differ by more than {tolerance:g}, first number {differing[0]}")
    print(told)


def _scored_again(scorer: "Scorer", file: Path) -> "Iterator[tuple[Json, list[float]]]":
    """Every row with the rewards that the model gives now."""
    from worldpm.field.records import Message
    from worldpm.parts import decision_log
    from worldpm.parts import scorer as scoring

    for row in decision_log.rows(file):
        inputs, cutting = json.loads(row["inputs"]), scorer.cutting(json.loads(row["settings"]).get("cut_to"))
        if "responses" in inputs:
            prompt = [Message(**turn) for turn in inputs["prompt"]]
            yield row, next(cutting.score([scoring.Request(f"decision {row['number']}", prompt, inputs["responses"])])).rewards
        elif "sha256" in inputs:
            raise DataError(file, f"decision {row['number']} holds only the hash of its inputs; it cannot be scored again")
        else:
            groups = cutting.encoder.read_texts([inputs.get("text", inputs.get("ids"))])
            yield row, scoring.rewards_of(scorer.model, groups)[0]
