"""The decision log of a server: is it whole, what does it say, and would the model say so again?"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from worldpm.errors import ConfigError, DataError, WorldPMError
from worldpm.options.log import LogOptions
from worldpm.records import Message
from worldpm.scoring import scorer as scoring
from worldpm.scoring.scorer import Scorer
from worldpm.serving import decision_log, drift
from worldpm.storage import folders, parquet

logger = logging.getLogger(__name__)

Json = dict[str, Any]
TOLERANCE = 1e-4
"""In logits."""


def run(options: LogOptions) -> None:
    """Do what was asked; a log that is broken, or not repeated, is a failure."""
    {"verify": _verify, "export": _export, "replay": _replay, "reference": _reference}[
        options.action
    ](options)


def _verify(options: LogOptions) -> None:

    found = decision_log.verify(options.file)
    if found.broken is not None:
        raise DataError(
            options.file,
            f"{found.what}; the {found.broken - 1:,} decisions before it are as they were written",
        )
    if options.head and options.head not in {
        decision_log.FIRST,
        *(row["hash"] for row in decision_log.rows(options.file)),
    }:
        raise DataError(
            options.file, f"{options.head} is not in the chain: decisions at the end are missing"
        )
    print(f"{found.decisions:,} decisions, all as they were written; the last hash is {found.head}")


def _out(options: LogOptions) -> Path:
    """The file to write, in a folder that is there."""
    out = options.out or Path()
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"--out {out}: name a file in a folder that is there")
    return out


def _export(options: LogOptions) -> None:

    out = _out(options)
    lists = pa.list_(pa.float64())
    kinds = {
        "number": pa.int64(),
        "milliseconds": pa.float64(),
        "rewards": lists,
        "probabilities": lists,
    }
    schema = pa.schema(
        [(name, kinds.get(name, pa.string())) for name in (*decision_log.COLUMNS, "hash")]
    )
    rows = (
        {
            **row,
            "rewards": json.loads(row["rewards"]),
            "probabilities": json.loads(row["probabilities"]),
        }
        for row in decision_log.rows(options.file)
    )
    aside = out.with_name(f"{out.name}.partial")
    try:
        count = parquet.write_parquet(aside, parquet.rows_to_batches(rows, schema), schema)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    logger.info("%s: %d decisions", out, count)


def _reference(options: LogOptions) -> None:

    found = drift.reference_of(decision_log.rows(options.file))
    if (count := len(found[drift.SERIES[0]])) < drift.LEAST:
        raise DataError(
            options.file,
            f"holds {count} requests with a prompt of their own; at least {drift.LEAST} are needed",
        )
    folders.write_atomically(_out(options), folders.to_json(found))
    logger.info("%s: %d requests", options.out, count)


def _replay(options: LogOptions) -> None:

    scorer = Scorer.of(str(options.model), options)
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    worst, differing, count = 0.0, [], 0
    for row, again in _scored_again(scorer, options.file):
        count += 1
        difference = max(
            (
                abs(one - other)
                for one, other in zip(json.loads(row["rewards"]), again, strict=True)
            ),
            default=0.0,
        )
        worst = max(worst, difference)
        if difference > tolerance:
            differing.append(row["number"])
    told = f"{count:,} decisions scored again; the largest difference of a reward is {worst:.3g}"
    if differing:
        raise WorldPMError(
            f"{told}, and {len(differing):,} differ by more than {tolerance:g}, first number"
            f" {differing[0]}"
        )
    print(told)


def _scored_again(scorer: Scorer, file: Path) -> Iterator[tuple[Json, list[float]]]:
    """Every row with the rewards that the model gives now."""

    for row in decision_log.rows(file):
        inputs, cutting = (
            json.loads(row["inputs"]),
            scorer.cutting(json.loads(row["settings"]).get("cut_to")),
        )
        if "responses" in inputs:
            prompt = [Message(**turn) for turn in inputs["prompt"]]
            yield (
                row,
                next(
                    cutting.score(
                        [scoring.Request(f"decision {row['number']}", prompt, inputs["responses"])]
                    )
                ).rewards,
            )
        elif "sha256" in inputs:
            raise DataError(
                file,
                f"decision {row['number']} holds only the hash of its inputs; it cannot be scored"
                " again",
            )
        else:
            groups = cutting.encoder.read_texts([inputs.get("text", inputs.get("ids"))])
            yield row, scoring.rewards_of(scorer.model, groups)[0]
