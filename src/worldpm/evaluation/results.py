"""A results folder: its `metrics.json` as types, and the one join of its three tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldpm.benchmarks.measures import BenchmarkResult, Comparison, PresetResult
from worldpm.evaluation.win_rates import WinRate
from worldpm.model.description import TrainingRecord
from worldpm.model.encoder import LARGEST_CUT, TOLD_CUT
from worldpm.stats import bradley_terry
from worldpm.storage import parquet
from worldpm.storage.json_files import read_record

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
    refused_items: dict[str, int] | None = None
    """Items of each benchmark that the chat template refuses, if any; they are left out of the
    results of all checkpoints."""
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

    @property
    def cut_warnings(self) -> dict[str, str]:
        """A warning by benchmark, where many responses or their prompts were cut."""
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
        # The formula takes rewards and indices, as in training.
        rewards = torch.from_numpy(np.concatenate([self.chosen.rewards, self.rejected.rewards]))
        indices = torch.arange(len(rewards)).reshape(2, -1)
        return bradley_terry.margins(rewards, indices[0], indices[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class _ItemRow:
    """A row of `items.parquet`: one response, without what evaluation alone needs."""

    benchmark: str
    subset: str
    item: str
    response: int
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
        """The tables, without the texts of prompts and responses unless `texts`.

        Raises:
            DataError: If a table is damaged.
        """
        # Texts are most of the bytes, and laws need none.
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
        """In the order of the table of rewards."""
        return list(self.rewards)

    def benchmarks(self, checkpoint: str) -> list[str]:
        """Those with a preference that the checkpoint was evaluated on."""
        return [name for name in self.rewards[checkpoint] if name in self.preferences]

    def pairs(self, checkpoint: str, benchmark: str) -> JudgedPairs:
        """Every preference of a benchmark with what is known of its two responses."""
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
        # Counts are null where only rewards were given.
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
