"""`worldpm log`: verify a server's decision log, export it, replay it, erase texts, and save a
reference for drift."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from worldpm.errors import ConfigError, DataError, WorldPMError
from worldpm.options.log import LogOptions
from worldpm.scoring import scorer as scoring
from worldpm.scoring.scorer import Scorer
from worldpm.serving import decision_files, drift
from worldpm.serving.decision_files import Selection
from worldpm.serving.decision_log import PRIVATE
from worldpm.serving.decisions import (
    COLUMNS,
    HASH_BEFORE_FIRST,
    ConversationInputs,
    DecisionRow,
    TextInputs,
    json_text,
)
from worldpm.storage import parquet
from worldpm.storage.json_files import Plain, to_json, write_atomically

logger = logging.getLogger(__name__)

EXPORTED = (*COLUMNS, "digests")
"""Columns of an export. `inputs` holds the texts; it is null if they were erased or never
stored."""
DEFAULT_TOLERANCE = 1e-4
"""Largest difference of a reward in a replay, in logits."""


def run(options: LogOptions) -> None:
    """Run the action of the options.

    Raises:
        DataError: If the log is broken.
        WorldPMError: If a replay gives other rewards.
    """
    actions = {
        "verify": _verify,
        "export": _export,
        "replay": _replay,
        "erase": _erase,
        "reference": _reference,
    }
    actions[options.action](options)


def _verify(options: LogOptions) -> None:
    """Check the chain, and that it contains the hash of `--head`."""
    check = decision_files.verify(options.file)
    if check.broken is not None:
        raise DataError(
            options.file,
            f"{check.finding}. The {check.decisions:,} decisions before it are unchanged.",
        )

    # A truncated log is still a valid chain, so auditors keep its last hash elsewhere.
    if options.head:
        hashes = {HASH_BEFORE_FIRST, check.before_first}
        hashes.update(row.hash for row in decision_files.rows(options.file))
        if options.head not in hashes:
            raise DataError(
                options.file,
                f"the chain does not contain {options.head}. Decisions at the end are missing, or"
                " its old file was removed.",
            )
    print(f"{check.decisions:,} decisions, all unchanged; the last hash is {check.head}")
    if check.first > 1:
        print(f"the log begins at decision {check.first:,}; older files are missing")
    if check.without_texts:
        print(f"{check.without_texts:,} of them without texts, which were erased or never stored")


def _selection(options: LogOptions) -> Selection:
    return Selection(options.since, options.until, options.key, options.id)


def _erase(options: LogOptions) -> None:
    """Erase the texts of some decisions. Their rows and the chain stay."""
    count = decision_files.erase(options.file, _selection(options))
    if not count:
        raise DataError(options.file, "no selected decision has texts. Check the selection.")
    print(f"erased the texts of {count:,} decisions; digests and chain are unchanged")


def _out(options: LogOptions) -> Path:
    """The file to write.

    Raises:
        ConfigError: If its folder does not exist.
    """
    out = options.out or Path()
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"--out {out}: is not a path of a file. Name a file in a folder.")
    return out


def _export(options: LogOptions) -> None:
    """Write the log as a Parquet file."""
    out = _out(options)
    numbers = pa.list_(pa.float64())
    types = {
        "number": pa.int64(),
        "milliseconds": pa.float64(),
        "temperature": pa.float64(),
        "queues": pa.list_(pa.string()),
        "rewards": numbers,
        "probabilities": numbers,
    }
    schema = pa.schema([(name, types.get(name, pa.string())) for name in EXPORTED])
    rows = map(_exported, decision_files.rows(options.file, _selection(options)))

    # Write to a partial file first, so that a failed export leaves no incomplete file.
    aside = out.with_name(f"{out.name}.partial")
    try:
        count = parquet.write_parquet(aside, parquet.rows_to_batches(rows, schema), schema)
        # The export is as private as the log
        aside.chmod(PRIVATE)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    logger.info("%s: %d decisions", out, count)


def _exported(row: DecisionRow) -> Plain:
    """A row of the Parquet file: settings, inputs and digests are JSON text."""
    inputs = None if row.inputs is None else json_text(row.inputs.content())
    texts = {
        "settings": json_text(row.settings),
        "inputs": inputs,
        "digests": json_text(row.digests),
    }
    return {**vars(row), **texts}


def _reference(options: LogOptions) -> None:
    """Save the series of the log as a reference for drift."""
    series = drift.reference_of(decision_files.rows(options.file, _selection(options)))
    # All series have an entry for each request.
    count = len(series[drift.SERIES[0]])
    if count < drift.LEAST_REQUESTS:
        raise DataError(
            options.file,
            f"has only {count} requests with a prompt, but a reference needs"
            f" {drift.LEAST_REQUESTS}. Select more.",
        )

    write_atomically(_out(options), to_json(series))
    logger.info("%s: %d requests", options.out, count)


def _replay(options: LogOptions) -> None:
    """Score the log's inputs again and compare the rewards."""
    scorer = Scorer.of(str(options.model), options)
    tolerance = DEFAULT_TOLERANCE if options.tolerance is None else options.tolerance

    # Stream the rows, because a log can be larger than memory.
    worst, count = 0.0, 0
    differing: list[int] = []
    without_texts = 0
    for row, rewards in _scored_again(scorer, options):
        if rewards is None:
            without_texts += 1
            continue
        count += 1
        pairs = zip(row.rewards, rewards, strict=True)
        difference = max((abs(logged - replayed) for logged, replayed in pairs), default=0.0)
        worst = max(worst, difference)
        if difference > tolerance:
            differing.append(row.number)

    summary = f"{count:,} decisions scored again; the largest difference of a reward is {worst:.3g}"
    if differing:
        raise WorldPMError(
            f"{summary}, and {len(differing):,} differ by more than {tolerance:g}, the first is"
            f" number {differing[0]}"
        )
    print(summary)
    if without_texts:
        print(f"{without_texts:,} others have no texts, which were erased or never stored")


def _scored_again(
    scorer: Scorer, options: LogOptions
) -> Iterator[tuple[DecisionRow, list[float] | None]]:
    """Every selected row with the model's current rewards; None if its texts are missing."""
    for row in decision_files.rows(options.file, _selection(options)):
        cutting = scorer.cutting(row.cut_to)
        inputs = row.inputs
        if inputs is None:
            yield row, None
        elif isinstance(inputs, ConversationInputs):
            name = f"decision {row.number}"
            request = scoring.Request(name, inputs.prompt, inputs.responses, inputs.last)
            yield row, cutting.answer(request).rewards
        else:
            text = inputs.text if isinstance(inputs, TextInputs) else inputs.ids
            groups = cutting.encoder.read_texts([text])
            yield row, scoring.rewards_of(scorer.model, groups)[0]
