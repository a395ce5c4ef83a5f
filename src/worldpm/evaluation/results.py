"""A results folder: its `metrics.json` as dataclasses, and the join of its three tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldpm import extras
from worldpm.benchmarks.measures import BenchmarkResult, Comparison, NativeComparison, PresetResult
from worldpm.display import Display, Row
from worldpm.errors import ConfigError
from worldpm.evaluation.win_rates import WinRate
from worldpm.model.description import TrainingRecord
from worldpm.model.encoder import LARGEST_CUT, TOLD_CUT
from worldpm.stats import bradley_terry
from worldpm.stats.correlation import Correlation
from worldpm.storage import parquet
from worldpm.storage.json_files import read_record

METRICS = "metrics.json"
COUNTS = ("characters", "headers", "lists", "bold", "code", "links")
"""Columns of `items.parquet` with style counts of a response."""
TEXTS = ("prompt", "text")

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BatchInvariance:
    """How far rewards depend on the rest of the batch."""

    responses: int
    """Number of responses that were scored both with others and alone."""
    largest_difference: float
    """Largest difference of the two rewards, in logits; rounding alone gives about 1e-6 in
    float32."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions that are needed to trust or reproduce the numbers; None if not applicable."""

    template_hash: str | None = None
    """First digits of the SHA-256 of the chat template."""
    end_token: str | None = None
    """Token whose hidden state gives the reward; None if it is the template's last token."""
    first_tokens: list[str] | None = None
    """First tokens that the model reads of the first item."""
    last_tokens: list[str] | None = None
    """Last tokens that the model reads of the first item."""
    dtype: str | None = None
    """Compute type of the weights."""
    device: str | None = None
    """Type of the device."""
    attention: str | None = None
    """`shared prefix` or `separate rows`."""
    max_length: int | None = None
    """Largest number of tokens of a prompt plus one response."""
    prompt_length: int | None = None
    """Number of tokens that a prompt is cut to."""
    batch_invariance: BatchInvariance | None = None
    """Result of a probe of a few items."""
    refused_items: dict[str, int] | None = None
    """Number of items that the chat template refuses, by benchmark, if any. They are left out of
    the results of all checkpoints."""
    truncated_share: dict[str, float] | None = None
    """Share of responses that were cut, or whose prompt was cut, by benchmark."""
    training: TrainingRecord | None = None
    """The training run of the checkpoint; None for other models."""
    overlap_with_training: dict[str, float] | None = None
    """Share of items that share 13 consecutive words with --trained-on, by benchmark."""
    strata: dict[str, dict[str, int]] | None = None
    """Number of items of each kind that --strata drew, by benchmark."""
    raw_rewards: bool | None = None
    """True if rewards were read from a file instead of computed."""
    without_files: list[str] | None = None
    """Benchmarks without files, for which only rewards were read. Every better response is paired
    with every worse one."""

    @property
    def cut_warnings(self) -> dict[str, str]:
        """Warnings by benchmark about many cut responses or prompts."""
        warnings = {}
        for name, share in (self.truncated_share or {}).items():
            if share > TOLD_CUT:
                warnings[name] = (
                    f"{share:.0%} of the responses to {name}, or their prompts, were cut"
                )
            if share > LARGEST_CUT:
                warnings[name] += "; its accuracy is not comparable"
        return warnings


@dataclass(frozen=True, kw_only=True)
class DomainResult:
    """The result of a domain over the benchmarks that have it."""

    accuracy: float
    """Plain mean over the benchmarks."""
    benchmarks: dict[str, float]
    """Accuracy of the domain's part of each benchmark."""


@dataclass(frozen=True, kw_only=True)
class CheckpointResult:
    """All results of one checkpoint, or of one generator whose texts a judge compared."""

    benchmarks: dict[str, BenchmarkResult] = field(default_factory=dict)
    """Results by benchmark; empty for a generator."""
    domains: dict[str, DomainResult] = field(default_factory=dict)
    """Results by domain."""
    conditions: Conditions = field(default_factory=Conditions)
    """Conditions of the rewards."""
    presets: dict[str, PresetResult] = field(default_factory=dict)
    """Results by preset, such as the paper's test sets."""
    win_rates: dict[str, WinRate] = field(default_factory=dict)
    """Win rates against a judge's baseline, by benchmark; empty for checkpoints."""


@dataclass(frozen=True, kw_only=True)
class PolicyCorrelation:
    """Correlation over checkpoints of a benchmark's result with an outcome of policies."""

    outcome: str
    """Name of the outcome."""
    benchmark: str
    """Name of the benchmark."""
    measure: str
    """An accuracy or an aggregate of the benchmark."""
    checkpoints: int
    """Number of checkpoints."""
    pearson: Correlation
    """Pearson's r."""
    spearman: Correlation
    """Spearman's rho."""
    kendall: Correlation
    """Kendall's tau-b."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Results(Display):
    """The content of `metrics.json`."""

    checkpoints: dict[str, CheckpointResult]
    """Results by checkpoint, in the user's order."""
    comparisons: list[Comparison] = field(default_factory=list)
    """Comparisons of every two checkpoints on every benchmark."""
    native_comparisons: list[NativeComparison] = field(default_factory=list)
    """The same comparisons of the authors' aggregates."""
    policy_correlations: list[PolicyCorrelation] = field(default_factory=list)
    """Correlations with the results of policies, if they were given."""

    @property
    def scored(self) -> dict[str, CheckpointResult]:
        """The checkpoints, without generators."""
        return {name: result for name, result in self.checkpoints.items() if result.benchmarks}

    def rows(self) -> list[Row]:
        """A row for each checkpoint and set: accuracy with its 95 % interval, loss, items and
        pairs, and the accuracy of the longer response (None if the texts are unknown)."""
        return [
            {
                "checkpoint": name,
                "set": benchmark,
                "accuracy": result.accuracy,
                "low": result.interval and result.interval[0],
                "high": result.interval and result.interval[1],
                "loss_nats": result.loss_nats,
                "items": result.items,
                "pairs": result.n,
                "longer": result.nulls.get("longer"),
            }
            for name, checkpoint in self.scored.items()
            for benchmark, result in checkpoint.benchmarks.items()
        ]

    def plot(self) -> Any:
        """The accuracies with their intervals, by set; see `Display.plot`."""
        plots = extras.load("worldpm.plots", extra="eval", needed_by="plot()")
        dots: dict[str, dict[str, object]] = {}
        for name, checkpoint in self.scored.items():
            for benchmark, result in checkpoint.benchmarks.items():
                dot = plots.Dot(name, result.accuracy, result.interval, {})
                dots.setdefault(benchmark, {})[name] = dot
        return plots.model_dots("Accuracy", dots, x="accuracy")


def read_results(folder: Path | str) -> Results:
    """Read the metrics of a results folder.

    Raises:
        ConfigError: If the folder has no results.
        DataError: If `metrics.json` is damaged.
    """
    if not (Path(folder) / METRICS).is_file():
        raise ConfigError(f"{folder}: has no results. Name a folder that `worldpm evaluate` wrote.")
    return read_record(Path(folder) / METRICS, Results)


class ResponseKey(NamedTuple):
    """The subset, item and index of a response."""

    subset: str
    item: str
    response: int


@dataclass(frozen=True)
class Sides:
    """One side of some pairs, chosen or rejected, with one entry per pair."""

    rewards: Array
    """In logits."""
    length_tokens: Sequence[int | None]
    """Tokens of each response before any cut; None if only rewards are known."""
    texts: Sequence[str | None]
    """Texts of the responses; None if only rewards are known, or if texts were not read."""
    counts: dict[str, Array] | None
    """Style counts by name; None if texts are unknown."""


@dataclass(frozen=True)
class JudgedPairs:
    """The preferences of one benchmark with the rewards of one checkpoint. There is one entry per
    pair."""

    subsets: Sequence[str]
    items: Sequence[str]
    prompt_ids: Sequence[str]
    """The clusters of every interval."""
    prompts: Sequence[str | None]
    """Texts of the prompts; None if only rewards are known, or if texts were not read."""
    chosen: Sides
    rejected: Sides
    strength: Array
    """Gap of votes or ratings."""
    probability: Array
    """Probability that the chosen response is truly better."""
    weight: Array

    @property
    def margins(self) -> Tensor:
        """Margins in logits, float64 of shape (pairs,)."""
        # Use the same formula as training, which takes rewards and indices.
        rewards = torch.from_numpy(np.concatenate([self.chosen.rewards, self.rejected.rewards]))
        indices = torch.arange(len(rewards)).reshape(2, -1)
        return bradley_terry.margins(rewards, indices[0], indices[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class _ItemRow:
    """A row of `items.parquet`: one response, without the columns that only evaluation needs."""

    benchmark: str
    subset: str
    item: str
    response: int
    preferred: bool
    prompt_id: str
    prompt: str | None = None
    text: str | None = None
    characters: int | None = None
    headers: int | None = None
    lists: int | None = None
    bold: int | None = None
    code: int | None = None
    links: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _PreferenceRow:
    """A row of `preferences.parquet`."""

    benchmark: str
    subset: str
    item: str
    chosen: int
    rejected: int
    strength: float
    probability: float
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _RewardRow:
    """A row of `rewards.parquet`."""

    checkpoint: str
    benchmark: str
    subset: str
    item: str
    response: int
    reward: float
    length_tokens: int | None
    failed: bool = False


ItemRows = dict[ResponseKey, _ItemRow]
RewardRows = dict[ResponseKey, _RewardRow]


@dataclass(frozen=True)
class ResultTables:
    """The three tables of a results folder, joined by `pairs`."""

    items: dict[str, ItemRows]
    """Rows of `items.parquet` by benchmark."""
    preferences: dict[str, list[_PreferenceRow]]
    """Rows of `preferences.parquet` by benchmark."""
    rewards: dict[str, dict[str, RewardRows]]
    """Rows of `rewards.parquet` by checkpoint and benchmark."""

    @classmethod
    def read(cls, folder: Path, *, texts: bool = True) -> "ResultTables":
        """Read the tables, with the texts of prompts and responses if `texts` is True.

        Raises:
            DataError: If a table is damaged.
        """
        # Texts are most of the bytes, and laws do not need them.
        without = () if texts else TEXTS
        items: dict[str, ItemRows] = {}
        for item in parquet.read_records(folder / "items.parquet", _ItemRow, without=without):
            items.setdefault(item.benchmark, {})[_key(item)] = item

        preferences: dict[str, list[_PreferenceRow]] = {}
        for pair in parquet.read_records(folder / "preferences.parquet", _PreferenceRow):
            preferences.setdefault(pair.benchmark, []).append(pair)

        rewards: dict[str, dict[str, RewardRows]] = {}
        for reward in parquet.read_records(folder / "rewards.parquet", _RewardRow):
            by_benchmark = rewards.setdefault(reward.checkpoint, {})
            by_benchmark.setdefault(reward.benchmark, {})[_key(reward)] = reward
        return cls(items, preferences, rewards)

    @property
    def checkpoints(self) -> list[str]:
        """Names of checkpoints, in the order of the table of rewards."""
        return list(self.rewards)

    def benchmarks(self, checkpoint: str) -> list[str]:
        """Names of the checkpoint's benchmarks that have preferences."""
        return [name for name in self.rewards[checkpoint] if name in self.preferences]

    def pairs(self, checkpoint: str, benchmark: str) -> JudgedPairs:
        """Every preference of a benchmark, with its two responses."""
        pairs = self.preferences[benchmark]
        items = self.items[benchmark]
        # The row of the first response holds the prompt.
        first = [items[ResponseKey(pair.subset, pair.item, 0)] for pair in pairs]
        chosen = [ResponseKey(pair.subset, pair.item, pair.chosen) for pair in pairs]
        rejected = [ResponseKey(pair.subset, pair.item, pair.rejected) for pair in pairs]
        return JudgedPairs(
            subsets=[pair.subset for pair in pairs],
            items=[pair.item for pair in pairs],
            prompt_ids=[item.prompt_id for item in first],
            prompts=[item.prompt for item in first],
            chosen=self._side(checkpoint, benchmark, chosen),
            rejected=self._side(checkpoint, benchmark, rejected),
            strength=np.array([pair.strength for pair in pairs], dtype=np.float64),
            probability=np.array([pair.probability for pair in pairs], dtype=np.float64),
            weight=np.array([pair.weight for pair in pairs], dtype=np.float64),
        )

    def _side(self, checkpoint: str, benchmark: str, keys: Sequence[ResponseKey]) -> Sides:
        items = [self.items[benchmark][key] for key in keys]
        rewards = [self.rewards[checkpoint][benchmark][key] for key in keys]
        counts = None
        # Counts are null if only rewards are known.
        if all(item.characters is not None for item in items):
            counts = {
                name: np.array(list(map(attrgetter(name), items)), dtype=np.float64)
                for name in COUNTS
            }
        return Sides(
            rewards=np.array([row.reward for row in rewards], dtype=np.float64),
            length_tokens=[row.length_tokens for row in rewards],
            texts=[item.text for item in items],
            counts=counts,
        )


def _key(row: _ItemRow | _RewardRow) -> ResponseKey:
    return ResponseKey(row.subset, row.item, row.response)


def judged_pairs(folder: Path, *, texts: bool = True) -> Iterator[tuple[str, str, JudgedPairs]]:
    """Checkpoint, benchmark and pairs, for every checkpoint on every benchmark of a folder."""
    tables = ResultTables.read(folder, texts=texts)
    for checkpoint in tables.checkpoints:
        for benchmark in tables.benchmarks(checkpoint):
            yield checkpoint, benchmark, tables.pairs(checkpoint, benchmark)
