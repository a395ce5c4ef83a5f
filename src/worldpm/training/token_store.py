"""Groups as tokens on disk, encoded once before the first step and mapped into memory.

A store is an Arrow file. Training can read its groups in any order, so the order is a true
permutation, and a resumed run needs only its step. One row, a group of two responses:

    {"name": "site/1", "prefix": [5, 6], "suffixes": [[7, 0], [8, 9, 0]],
     "response_tokens": [1, 2], "truncated": [false, false],
     "chosen": [0], "rejected": [1], "strength": [2.0], "probability": [0.75], "weight": [0.5]}
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from worldpm.errors import TemplateRefusalError
from worldpm.model import chat, checkpoint, sources
from worldpm.model.encoder import EncodedGroup, Encoder, Limits
from worldpm.records import Preference, PreferenceGroup
from worldpm.storage.workers import in_order

ROWS_PER_BATCH = 512
GROUPS_PER_TASK = 256

PREFERENCE_FIELDS = ("chosen", "rejected", "strength", "probability", "weight")
INDEX_FIELDS = ("chosen", "rejected")
"""Preference fields that are indices of responses."""
TOKENS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("prefix", TOKENS),
        ("suffixes", pa.list_(TOKENS)),
        ("response_tokens", pa.list_(pa.int32())),
        ("truncated", pa.list_(pa.bool_())),
        *(
            (name, pa.list_(pa.int32() if name in INDEX_FIELDS else pa.float32()))
            for name in PREFERENCE_FIELDS
        ),
    ]
)

Number = TypeVar("Number", np.int64, np.float64)
Column = Callable[[pa.RecordBatch], NDArray[Number]]
"""A number for each group of a batch."""


class Example(NamedTuple):
    """A preference group, ready for the model."""

    name: str
    encoded: EncodedGroup
    preferences: tuple[Preference, ...]


@dataclass(frozen=True)
class StoreCounts:
    """The contents of a store, counted."""

    groups: int = 0
    pairs: int = 0
    """Preference pairs of all groups."""
    responses: int = 0
    truncated_responses: int = 0
    """Responses that were cut, or whose prompt was cut."""

    def plus(self, examples: Sequence[Example]) -> "StoreCounts":
        """The counts after adding examples."""
        encoded = [example.encoded for example in examples]
        return StoreCounts(
            groups=self.groups + len(examples),
            pairs=self.pairs + sum(len(example.preferences) for example in examples),
            responses=self.responses + sum(len(group.suffixes) for group in encoded),
            truncated_responses=self.truncated_responses
            + sum(sum(group.truncated) for group in encoded),
        )


def write(path: Path, examples: Iterable[Example]) -> StoreCounts:
    """Write a store, and count its contents."""
    counts = StoreCounts()
    stream = iter(examples)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        # one batch at a time, so that memory does not grow with the data
        while batch := list(islice(stream, ROWS_PER_BATCH)):
            rows = [_row(example) for example in batch]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
            counts = counts.plus(batch)
    return counts


def _row(example: Example) -> dict[str, object]:
    encoded = example.encoded
    row: dict[str, object] = {
        "name": example.name,
        "prefix": encoded.prefix,
        "suffixes": list(encoded.suffixes),
        "response_tokens": list(encoded.response_tokens),
        "truncated": list(encoded.truncated),
    }

    for name in PREFERENCE_FIELDS:
        row[name] = [getattr(preference, name) for preference in example.preferences]
    return row


class TokenStore(Sequence[Example]):
    """The groups of one split, from any number of files, in order."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the files. Six numbers per group are held in memory."""
        self._batches: list[pa.RecordBatch] = []
        for path in paths:
            # mapped: the system caches the pages that are read, and can free them at any time
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            for index in range(reader.num_record_batches):
                self._batches.append(reader.get_batch(index))
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

        self.tokens = self._by_group(_token_counts)
        """Number of tokens of each group in a row."""
        self.attended = self._by_group(_attended_counts)
        """Number of query-key pairs of each group in a row, counted like
        `costs.attended_pairs`."""
        self.tokens_apart = self._by_group(_token_counts_apart)
        """Number of tokens of each group in a model that shares no prompts."""
        self.attended_apart = self._by_group(_attended_counts_apart)
        """Number of query-key pairs of each group in a model that shares no prompts."""
        self.pairs = self._by_group(_pair_counts)
        """Number of preference pairs of each group."""
        self.weights = self._by_group(_weights)
        """Sum of the weights of each group's preferences."""

    def _by_group(self, column: Column[Number]) -> NDArray[Number]:
        # with an empty batch, even a store without groups gives an array of the right type
        empty = pa.RecordBatch.from_pylist([], schema=SCHEMA)
        return np.concatenate([column(batch) for batch in [*self._batches, empty]])

    def __len__(self) -> int:
        return int(self._starts[-1])

    # no slices, because a store can be larger than memory
    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)

        # the last batch that starts at or before the index
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batches[number], index - int(self._starts[number])

        def cell(name: str) -> pa.Array:
            return batch.column(name)[row].values

        encoded = EncodedGroup(
            cell("prefix").to_numpy(),
            [suffix.values.to_numpy() for suffix in cell("suffixes")],
            cell("response_tokens").to_pylist(),
            cell("truncated").to_pylist(),
        )
        columns = [cell(name).to_pylist() for name in PREFERENCE_FIELDS]
        preferences = tuple(Preference(*values) for values in zip(*columns, strict=True))
        return Example(batch.column("name")[row].as_py(), encoded, preferences)


def _lengths(column: pa.ListArray) -> NDArray[np.int64]:
    return np.asarray(column.value_lengths().to_numpy(), dtype=np.int64)


def _sums(values: NDArray[Number], lengths: NDArray[np.int64]) -> NDArray[Number]:
    """Sums of consecutive runs of the values, whose lengths are given."""
    # the 0 in front makes the first run a difference of totals too
    totals = np.zeros(len(values) + 1, dtype=values.dtype)
    np.cumsum(values, out=totals[1:])
    ends = np.cumsum(lengths)
    sums: NDArray[Number] = totals[ends] - totals[ends - lengths]
    return sums


def _token_counts(batch: pa.RecordBatch) -> NDArray[np.int64]:
    suffixes = batch.column("suffixes")
    in_suffixes = _sums(_lengths(suffixes.flatten()), _lengths(suffixes))
    return _lengths(batch.column("prefix")) + in_suffixes


def _attended_counts(batch: pa.RecordBatch) -> NDArray[np.int64]:
    suffixes = batch.column("suffixes")
    prefix = _lengths(batch.column("prefix"))
    lengths, responses = _lengths(suffixes.flatten()), _lengths(suffixes)

    # pairs within the prefix, of each suffix with the prefix, and within each suffix
    return (
        prefix * (prefix + 1) // 2
        + prefix * _sums(lengths, responses)
        + _sums(lengths * (lengths + 1) // 2, responses)
    )


def _token_counts_apart(batch: pa.RecordBatch) -> NDArray[np.int64]:
    return _sums(*_lengths_apart(batch))


def _attended_counts_apart(batch: pa.RecordBatch) -> NDArray[np.int64]:
    lengths, responses = _lengths_apart(batch)
    return _sums(lengths * (lengths + 1) // 2, responses)


def _lengths_apart(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of each prompt with one response, and the number of responses of each group."""
    suffixes = batch.column("suffixes")
    responses = _lengths(suffixes)
    prefixes = np.repeat(_lengths(batch.column("prefix")), responses)
    return prefixes + _lengths(suffixes.flatten()), responses


def _pair_counts(batch: pa.RecordBatch) -> NDArray[np.int64]:
    return _lengths(batch.column("chosen"))


def _weights(batch: pa.RecordBatch) -> NDArray[np.float64]:
    column = batch.column("weight")
    # in float32 the cumulative sums of a large batch would lose digits
    return _sums(column.flatten().to_numpy().astype(np.float64), _lengths(column))


def encode(
    groups: Iterable[PreferenceGroup],
    tokenizer: Path,
    frame: chat.Frame,
    limits: Limits,
    drops: Counter[str],
    *,
    workers: int = 0,
) -> Iterator[Example]:
    """The groups as examples, in order. `workers` processes encode them; 0 means this process.
    `tokenizer` is a folder. `drops` counts groups and pairs that are left out.

    Raises:
        DataError: If a prompt has no messages.
    """
    stream = iter(groups)
    # one group is too little work to send to a process
    tasks = iter(lambda: list(islice(stream, GROUPS_PER_TASK)), [])

    encode_task = partial(_encode, tokenizer=tokenizer, frame=frame, limits=limits)
    for encoded in in_order(encode_task, tasks, workers=workers):
        drops.update(encoded.drops)
        yield from encoded.examples


class _Encoded(NamedTuple):
    """The result of one task: examples of its groups, and counts of drops."""

    examples: list[Example]
    drops: Counter[str]


def _encode(
    groups: Sequence[PreferenceGroup], tokenizer: Path, frame: chat.Frame, limits: Limits
) -> _Encoded:
    written_ns = (tokenizer / "tokenizer.json").stat().st_mtime_ns
    encoder = Encoder(_tokenizer(tokenizer, written_ns), frame, limits)
    encoded = _Encoded([], Counter())
    for group in groups:
        example = _example(encoder, group, encoded.drops)
        if example is not None:
            encoded.examples.append(example)
    return encoded


def _example(encoder: Encoder, group: PreferenceGroup, drops: Counter[str]) -> Example | None:
    """The group as tokens; None if no pair of it can be trained on."""
    responses = [response.content for response in group.responses]
    try:
        # the model must read both responses of a pair after the same prompt
        encoded = encoder.encode(group.prompt, responses, name=group.group_id, one_prompt=True)
    except TemplateRefusalError:
        drops["group that the chat template refuses"] += 1
        return None

    # a pair with equal tokens always has equal rewards, so the model cannot learn from it
    suffixes = [np.asarray(suffix, dtype=np.int64).tobytes() for suffix in encoded.suffixes]
    preferences = [
        pair for pair in group.preferences if suffixes[pair.chosen] != suffixes[pair.rejected]
    ]
    equal = len(group.preferences) - len(preferences)
    drops["pair whose responses are the same tokens"] += equal
    if not preferences:
        return None
    if equal:
        preferences = _weighing_as_much(preferences, group.preferences)
    return Example(group.group_id, encoded, tuple(preferences))


def _weighing_as_much(
    preferences: Sequence[Preference], whole: Sequence[Preference]
) -> list[Preference]:
    """Some preferences of a group, scaled to the total weight of all its preferences."""
    factor = sum(pair.weight for pair in whole) / sum(pair.weight for pair in preferences)
    return [replace(pair, weight=pair.weight * factor) for pair in preferences]


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, written_ns: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, loaded once per process, and again if its file was rewritten."""
    return checkpoint.load_tokenizer(sources.Source(folder))
