"""The numbers of a training run on disk: `metrics.jsonl`, `timings.jsonl`, and the counts in the
manifest.

Rows of `metrics.jsonl` are of two kinds, for a step and for the validation after one:

    {"step": 1, "groups_seen": 21, "pairs_seen": 66, "effective_pairs_seen": 20.5,
     "tokens_seen": 4711, "flops_seen": 33000000000,
     "loss_nats": 0.69, "accuracy": 0.5, "grad_norm": 1.25, "lr": 0.001}
    {"step": 4, ..., "validation/loss_nats": 0.68, "validation/accuracy": 0.55, ...}
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import msgspec

from worldpm.errors import DataError
from worldpm.storage.json_files import Json, write_atomically
from worldpm.storage.manifest import MANIFEST, Manifest

METRICS = "metrics.jsonl"
VALIDATION = "validation/"
"""Prefix of the keys that are measured on validation groups."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """The data and operations that a run has taken after a step."""

    step: int
    """Optimizer steps, from 1."""
    groups_seen: int
    """Groups, repeated ones counted each time."""
    pairs_seen: int
    """Preference pairs of these groups."""
    effective_pairs_seen: float
    """Sum of the weights of these pairs, rounded to six decimals."""
    tokens_seen: int
    """Tokens of these groups, a prompt counted once for all its responses."""
    flops_seen: int
    """Operations of forward and backward over these groups."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics(Position):
    """A row of `metrics.jsonl`: one optimizer step, measured on its own groups."""

    loss_nats: float
    """Objective, divided by the weights of the pairs."""
    accuracy: float
    """Weighted share of preferences with a positive margin, 0 to 1."""
    grad_norm: float
    """Norm of the gradient over all trained weights, before clipping."""
    lr: float
    """Learning rate of the step."""


@dataclass(frozen=True, kw_only=True)
class ValidationMetrics(Position):
    """Metrics of validation groups with the weights after a step; in `metrics.jsonl` the keys of
    its own fields have the prefix `validation/`.

    A run without validation groups measures some of its train groups instead, for the rewards that
    the checkpoint describes.
    """

    loss_nats: float
    """Weighted Bradley-Terry loss, nats per pair."""
    accuracy: float
    """Weighted share of preferences with a positive margin, 0 to 1; a tie counts half."""
    pairs: int
    """Preference pairs of the groups."""
    reward_mean: float
    """Of all responses, in logits."""
    reward_std: float
    """Population standard deviation over all responses, in logits."""
    temperature: float
    """Divisor of the margins at which their loss is least; above 0."""


@dataclass(frozen=True, kw_only=True)
class StepTiming:
    """A row of `timings.jsonl`: the speed of one optimizer step."""

    step: int
    """Optimizer step, from 1."""
    seconds: float
    """Wall time of the step, to a tenth of a millisecond."""
    pairs_per_second: float
    """Preference pairs of all processes together."""
    tokens_per_second: float
    """Tokens of all processes together, a prompt counted once."""
    mfu: float
    """Useful operations as a share of the devices' own matrix rate."""


@dataclass(frozen=True)
class MetricsLog:
    """The rows of a `metrics.jsonl`, by kind, in order of their steps."""

    steps: list[StepMetrics]
    """One for each optimizer step."""
    validations: list[ValidationMetrics]
    """Empty for a run without validation groups."""


@dataclass(frozen=True, kw_only=True)
class TrainCounts:
    """The counts in the manifest of a finished training."""

    parameters: int
    """All weights of the model, adapters included."""
    trained_parameters: int
    """Weights that the optimizer changes."""
    train_groups: int
    """Groups of the train split."""
    validation_groups: int
    """Groups of the validation split; 0 keeps the last weights."""
    truncated_train_responses: int
    """Responses of the train split that were cut, or whose prompt was."""
    train_responses: int
    """Responses of the train split."""
    steps: int
    """Optimizer steps of the run."""
    pairs_seen: int
    """Preference pairs, repeated ones counted each time."""
    effective_pairs_seen: float
    """Sum of the weights of these pairs, rounded to six decimals."""
    tokens_seen: int
    """Tokens, a prompt counted once for all its responses."""
    kept_step: int
    """The step whose weights make the checkpoint."""


def row_to_json(row: StepMetrics | ValidationMetrics | StepTiming) -> dict[str, float]:
    """A row with its keys as in the file."""
    if not isinstance(row, ValidationMetrics):
        return asdict(row)

    # trackers name their charts by these keys, so the two kinds of rows need different ones
    positions = {field.name for field in fields(Position)}
    return {
        name if name in positions else VALIDATION + name: value
        for name, value in asdict(row).items()
    }


def append(path: Path, row: StepMetrics | ValidationMetrics | StepTiming) -> None:
    """Add a row to `metrics.jsonl` or `timings.jsonl`."""
    # opened for each row, so that a killed run loses at most its last line
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row_to_json(row)) + "\n")


def read_metrics(folder: Path) -> MetricsLog:
    """The `metrics.jsonl` of a training.

    Raises:
        DataError: If the file is missing, or a row cannot be read.
    """
    path = folder / METRICS
    log = MetricsLog([], [])

    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row: Json = json.loads(line)
            plain = {key.removeprefix(VALIDATION): value for key, value in row.items()}
            # only rows of a validation have keys with the prefix
            if plain.keys() == row.keys():
                log.steps.append(msgspec.convert(plain, StepMetrics))
            else:
                log.validations.append(msgspec.convert(plain, ValidationMetrics))
    except (OSError, ValueError) as error:
        raise DataError(path, f"not the metrics of a training ({error}). Train again.") from error

    return log


def keep_until(path: Path, last_step: int) -> None:
    """Drop the rows after a step, and a last line that a killed run left incomplete."""
    if not path.exists():
        return

    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line).get("step")
        except ValueError:
            break
        # the last rows of `timings.jsonl` are of the whole run, without a step
        if isinstance(step, int) and step <= last_step:
            lines.append(line + "\n")
    write_atomically(path, "".join(lines).encode())


def counts_of(folder: Path, manifest: Manifest) -> TrainCounts:
    """The counts of a finished training, whose manifest is given.

    Raises:
        DataError: If they are those of another step, or of a snapshot.
    """
    try:
        return msgspec.convert(manifest.counts, TrainCounts)
    except msgspec.ValidationError as error:
        raise DataError(
            folder / MANIFEST,
            f"its counts are not those of a finished training ({error}). Name the folder of a run,"
            " not a snapshot, or train again.",
        ) from error
