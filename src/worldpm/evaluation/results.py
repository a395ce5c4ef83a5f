"""A results folder: its `metrics.json` as types, and the one join of its three tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldpm.benchmarks.measures import BenchmarkResult, Comparison, PresetResult
from worldpm.evaluation.win_rates import WinRate
from worldpm.model.description import TrainingRecord
from worldpm.stats import bradley_terry
from worldpm.storage import parquet, schema
from worldpm.storage.json_files import Json, read_record

METRICS = "metrics.json"
COUNTS = ("characters", "headers", "lists", "bold", "code", "links")
"""Style counts of a response, as `items.parquet` has them."""
TEXTS = ("prompt", "text")

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BatchInvariance:
    """How far rewards depend on what else is in the batch."""

    responses: int
    """Scored once with others and once alone."""
    largest_difference: float
    """In logits; rounding alone gives about 1e-6 in float32."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a reader must know to trust or repeat the numbers; None where it does not apply."""

    template_hash: str | None = None
    """First digits of the SHA-256 of the chat template."""
    end_token: str | None = None
    """Token whose hidden state becomes the reward; None if the template's own last token does."""
    first_tokens: list[str] | None = None
    """Of the first item, as the model reads it."""
    last_tokens: list[str] | None = None
    """Of the first item, as the model reads it."""
    dtype: str | None = None
    """Compute type of the weights."""
    device: str | None = None
    """Kind of device."""
    attention: str | None = None
    """`shared prefix` or `separate rows`."""
    max_length: int | None = None
    """Tokens of prompt plus one response."""
    prompt_length: int | None = None
    """Tokens that a prompt is cut to."""
    batch_invariance: BatchInvariance | None = None
    """Of a probe of a few items."""
    truncated_share: dict[str, float] | None = None
    """Share of responses that were cut, or their prompt, by benchmark."""
    training: TrainingRecord | None = None
    """Of which run the checkpoint is; None for models of others."""
    overlap_with_training: dict[str, float] | None = None
    """Share of items with 13 words in a row of --trained-on, by benchmark."""
    strata: dict[str, dict[str, int]] | None = None
    """Items of each kind that --strata drew, by benchmark."""
    raw_rewards: bool | None = None
    """True if rewards were read from a file instead of computed."""
    without_files: list[str] | None = None
    """Benchmarks of which only rewards were read, so that every better response is paired with
    every worse one."""


@dataclass(frozen=True, kw_only=True)
class DomainResult:
    """A domain over the benchmarks that have it."""

    accuracy: float
    """Plain mean over the benchmarks."""
    benchmarks: dict[str, float]
    """Accuracy of the domain's part of each benchmark."""


@dataclass(frozen=True, kw_only=True)
class CheckpointResult:
    """Everything measured of one checkpoint, or of one generator that a judge compared."""

    benchmarks: dict[str, BenchmarkResult] = field(default_factory=dict)
    """By name; empty for a generator."""
    domains: dict[str, DomainResult] = field(default_factory=dict)
    """By name."""
    conditions: Conditions = field(default_factory=Conditions)
    """How the rewards came about."""
    presets: dict[str, PresetResult] = field(default_factory=dict)
    """Views of several benchmarks, such as the paper's test sets, by name."""
    win_rates: dict[str, WinRate] = field(default_factory=dict)
    """Against a judge's baseline, by benchmark; empty for checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The content of `metrics.json`."""

    checkpoints: dict[str, CheckpointResult]
    """By name, in the order given."""
    comparisons: list[Comparison] = field(default_factory=list)
    """Every two checkpoints on every benchmark."""

    @property
    def scored(self) -> dict[str, CheckpointResult]:
        """The checkpoints without the generators."""
        return {name: result for name, result in self.checkpoints.items() if result.benchmarks}


def read_results(folder: Path) -> Results:
    """The metrics of a results folder.

    Raises:
        DataError: If `metrics.json` is damaged.
    """
    return read_record(folder / METRICS, Results)


class ResponseKey(NamedTuple):
    """Which response of which item."""

    subset: str
    item: str
    response: int


@dataclass(frozen=True)
class Sides:
    """One side of some pairs, the chosen or the rejected; each entry belongs to one pair."""

    rewards: Array
    """In logits."""
    length_tokens: Sequence[int | None]
    """Tokens of the response before any cut; None where only rewards are known."""
    texts: Sequence[str | None]
    """None where only rewards are known, or texts were not read."""
    counts: dict[str, Array] | None
    """Style counts by name; None where texts are not known."""


@dataclass(frozen=True)
class JudgedPairs:
    """The preferences of one benchmark with the rewards of one checkpoint; one entry a pair."""

    subsets: Sequence[str]
    items: Sequence[str]
    prompt_ids: Sequence[str]
    """The cluster of every interval."""
    prompts: Sequence[str | None]
    """None where only rewards are known, or texts were not read."""
    chosen: Sides
    rejected: Sides
    strength: Array
    """Gap of votes or ratings."""
    probability: Array
    """That chosen is truly the better one."""
    weight: Array

    @property
    def margins(self) -> Tensor:
        """Shape (pairs,), float64."""
        rewards = torch.from_numpy(np.concatenate([self.chosen.rewards, self.rejected.rewards]))
        indices = torch.arange(len(rewards)).reshape(2, -1)
        return bradley_terry.margins(rewards, indices[0], indices[1])


@dataclass(frozen=True)
class ResultTables:
    """The three tables of a results folder, joined by `pairs`."""

    items: dict[str, dict[ResponseKey, Json]]
    """Rows of `items.parquet` by benchmark."""
    preferences: dict[str, list[Json]]
    """Rows of `preferences.parquet` by benchmark."""
    rewards: dict[str, dict[str, dict[ResponseKey, Json]]]
    """Rows of `rewards.parquet` by checkpoint and benchmark."""

    @classmethod
    def read(cls, folder: Path, *, texts: bool = True) -> "ResultTables":
        """The tables, without the texts of prompts and responses unless `texts`.

        Raises:
            DataError: If a table is damaged.
        """
        columns = [name for name in schema.ITEMS.names if texts or name not in TEXTS]
        items: dict[str, dict[ResponseKey, Json]] = {}
        for row in parquet.read_rows(folder / "items.parquet", schema.only(schema.ITEMS, columns)):
            items.setdefault(row["benchmark"], {})[_key(row)] = row

        preferences: dict[str, list[Json]] = {}
        for row in parquet.read_rows(folder / "preferences.parquet"):
            preferences.setdefault(row["benchmark"], []).append(row)

        rewards: dict[str, dict[str, dict[ResponseKey, Json]]] = {}
        for row in parquet.read_rows(folder / "rewards.parquet"):
            by_benchmark = rewards.setdefault(row["checkpoint"], {})
            by_benchmark.setdefault(row["benchmark"], {})[_key(row)] = row
        return cls(items, preferences, rewards)

    @property
    def checkpoints(self) -> list[str]:
        """In the order of the table of rewards."""
        return list(self.rewards)

    def benchmarks(self, checkpoint: str) -> list[str]:
        """Those with a preference that the checkpoint was evaluated on."""
        return [name for name in self.rewards[checkpoint] if name in self.preferences]

    def pairs(self, checkpoint: str, benchmark: str) -> JudgedPairs:
        """Every preference of a benchmark with what is known of its two responses."""
        rows = self.preferences[benchmark]
        first = [self.items[benchmark][ResponseKey(row["subset"], row["item"], 0)] for row in rows]
        return JudgedPairs(
            subsets=[row["subset"] for row in rows],
            items=[row["item"] for row in rows],
            prompt_ids=[item["prompt_id"] for item in first],
            prompts=[item.get("prompt") for item in first],
            chosen=self._side(checkpoint, benchmark, "chosen"),
            rejected=self._side(checkpoint, benchmark, "rejected"),
            strength=_column(rows, "strength"),
            probability=_column(rows, "probability"),
            weight=_column(rows, "weight"),
        )

    def _side(self, checkpoint: str, benchmark: str, side: str) -> Sides:
        rows = self.preferences[benchmark]
        keys = [ResponseKey(row["subset"], row["item"], row[side]) for row in rows]
        items = [self.items[benchmark][key] for key in keys]
        rewards = [self.rewards[checkpoint][benchmark][key] for key in keys]
        counted = all(item["characters"] is not None for item in items)
        return Sides(
            rewards=_column(rewards, "reward"),
            length_tokens=[row["length_tokens"] for row in rewards],
            texts=[item.get("text") for item in items],
            counts={name: _column(items, name) for name in COUNTS} if counted else None,
        )


def _key(row: Json) -> ResponseKey:
    return ResponseKey(row["subset"], row["item"], row["response"])


def _column(rows: Sequence[Json], name: str) -> Array:
    return np.array([row[name] for row in rows], dtype=np.float64)


def judged_pairs(folder: Path, *, texts: bool = True) -> Iterator[tuple[str, str, JudgedPairs]]:
    """Checkpoint, benchmark and pairs, for every checkpoint on every benchmark of a folder."""
    tables = ResultTables.read(folder, texts=texts)
    for checkpoint in tables.checkpoints:
        for benchmark in tables.benchmarks(checkpoint):
            yield checkpoint, benchmark, tables.pairs(checkpoint, benchmark)
