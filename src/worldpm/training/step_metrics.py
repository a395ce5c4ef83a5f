"""The numbers of a training run on disk: `metrics.jsonl`, `timings.jsonl`, and the counts in the
manifest.

`metrics.jsonl` has two kinds of rows, for a step and for a validation after a step:

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
"""Prefix of the keys of metrics that are measured on validation groups."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """The data and operations that a run has used up to and including a step."""

    step: int
    """Optimizer step, from 1."""
    groups_seen: int
    """Number of groups; repeated groups count each time."""
    pairs_seen: int
    """Preference pairs of these groups."""
    effective_pairs_seen: float
    """Sum of the weights of these pairs, rounded to six decimals."""
    tokens_seen: int
    """Tokens of these groups; a prompt counts once for all its responses."""
    flops_seen: int
    """Operations of forward and backward passes over these groups."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics(Position):
    """A row of `metrics.jsonl`: one optimizer step, measured on the groups of the step."""

    loss_nats: float
    """Objective, divided by the sum of the weights of the pairs."""
    accuracy: float
    """Weighted share of preferences with a positive margin, 0 to 1."""
    grad_norm: float
    """Norm of the gradient over all trained weights, before clipping."""
    lr: float
    """Learning rate of the step."""


@dataclass(frozen=True, kw_only=True)
class ValidationMetrics(Position):
    """Metrics of validation groups with the weights after a step. In `metrics.jsonl`, the keys of
    the fields of this class have the prefix `validation/`.

    A run without validation groups measures some of its train groups instead, because the
    checkpoint's description needs statistics of rewards.
    """

    loss_nats: float
    """Weighted Bradley-Terry loss, nats per pair."""
    accuracy: float
    """Weighted share of preferences with a positive margin, 0 to 1; a tie counts half."""
    pairs: int
    """Preference pairs of the groups."""
    reward_mean: float
    """Mean over all responses, in logits."""
    reward_std: float
    """Population standard deviation over all responses, in logits."""
    temperature: float
    """Divisor of the margins that minimizes their loss; above 0."""


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
    """Tokens of all processes together; a prompt counts once."""
    mfu: float
    """Useful operations per second, as a share of the devices' measured matrix rate."""


@dataclass(frozen=True)
class MetricsLog:
    """The rows of a `metrics.jsonl`, by kind, in order of their steps."""

    steps: list[StepMetrics]
    """One row for each optimizer step."""
    validations: list[ValidationMetrics]
    """Empty for a run without validation groups."""


@dataclass(frozen=True, kw_only=True)
class TrainCounts:
    """The counts in the manifest of a finished training run."""

    parameters: int
    """Number of all weights of the model, with adapters."""
    trained_parameters: int
    """Number of weights that the optimizer changes."""
    train_groups: int
    """Groups of the train split."""
    validation_groups: int
    """Groups of the validation split. If it is 0, the checkpoint has the last weights."""
    truncated_train_responses: int
    """Responses of the train split that were cut, or whose prompt was cut."""
    train_responses: int
    """Responses of the train split."""
    steps: int
    """Optimizer steps of the run."""
    pairs_seen: int
    """Preference pairs; repeated pairs count each time."""
    effective_pairs_seen: float
    """Sum of the weights of these pairs, rounded to six decimals."""
    tokens_seen: int
    """Tokens; a prompt counts once for all its responses."""
    kept_step: int
    """The step whose weights are in the checkpoint."""


def row_to_json(row: StepMetrics | ValidationMetrics | StepTiming) -> dict[str, float]:
    """A row with the keys that it has in the file."""
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
    # open the file for each row, so that a killed run loses at most its last line
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row_to_json(row)) + "\n")


def read_metrics(folder: Path) -> MetricsLog:
    """Read the `metrics.jsonl` of a training run.

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
        raise DataError(
            path, f"not the metrics of a training run ({error}). Train again."
        ) from error

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
        # the last rows of `timings.jsonl` are about the whole run and have no step
        if isinstance(step, int) and step <= last_step:
            lines.append(line + "\n")
    write_atomically(path, "".join(lines).encode())


def counts_of(folder: Path, manifest: Manifest) -> TrainCounts:
    """The counts of a finished training run, from its manifest.

    Raises:
        DataError: If the manifest is from another verb, or from a snapshot.
    """
    try:
        return msgspec.convert(manifest.counts, TrainCounts)
    except msgspec.ValidationError as error:
        raise DataError(
            folder / MANIFEST,
            f"not the manifest of a finished training run ({error}). Name the folder of a run, not"
            " of a snapshot, or train again.",
        ) from error
