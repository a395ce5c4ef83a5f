"""Groups as tokens on disk: encoded once, ahead of the first step, and mapped into memory, not held
in it.

A store is an Arrow file. Any group of it can be read at any time, so the order of training is a
true permutation and a resumed run needs nothing but its step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from worldpm.model import chat, checkpoint, sources
from worldpm.model.encoder import EncodedGroup, Encoder, Limits
from worldpm.records import Preference, PreferenceGroup
from worldpm.storage.workers import in_order

ROWS_PER_BATCH = 512
GROUPS_PER_TASK = 256

PREFERENCE_FIELDS = ("chosen", "rejected", "strength", "probability", "weight")
Number = TypeVar("Number", np.int64, np.float64)
TOKENS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("prefix", TOKENS),
        ("suffixes", pa.list_(TOKENS)),
        ("response_tokens", pa.list_(pa.int32())),
        ("truncated", pa.list_(pa.bool_())),
        *(
            (name, pa.list_(pa.int32() if name in ("chosen", "rejected") else pa.float32()))
            for name in PREFERENCE_FIELDS
        ),
    ]
)


class Example(NamedTuple):
    """A preference group, ready for the model."""

    name: str
    encoded: EncodedGroup
    preferences: tuple[Preference, ...]


def write(path: Path, examples: Iterable[Example]) -> dict[str, int]:
    """Write a store; the counts of what it holds."""
    counts = {"groups": 0, "pairs": 0, "responses": 0, "truncated responses": 0}
    stream = iter(examples)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        while rows := list(islice(stream, ROWS_PER_BATCH)):
            writer.write_batch(
                pa.RecordBatch.from_pylist([_row(example) for example in rows], schema=SCHEMA)
            )
            counts["groups"] += len(rows)
            for example in rows:
                counts["pairs"] += len(example.preferences)
                counts["responses"] += len(example.encoded.suffixes)
                counts["truncated responses"] += sum(example.encoded.truncated)
    return counts


def _row(example: Example) -> dict[str, object]:
    encoded = example.encoded
    tokens = {"name": example.name, "prefix": encoded.prefix, "suffixes": list(encoded.suffixes)}
    counts = {
        "response_tokens": list(encoded.response_tokens),
        "truncated": list(encoded.truncated),
    }
    return {
        **tokens,
        **counts,
        **{name: [getattr(p, name) for p in example.preferences] for name in PREFERENCE_FIELDS},
    }


class TokenStore(Sequence[Example]):
    """The groups of one split, from any number of files, in order."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the files; six numbers a group are held in memory."""
        self._batches: list[pa.RecordBatch] = []
        for path in paths:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches += [
                reader.get_batch(number) for number in range(reader.num_record_batches)
            ]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.tokens = self._by_group(_token_counts)
        """Tokens that each group costs in a row."""
        self.attended = self._by_group(_attended_counts)
        """Pairs of a query and a key that meet in each group's row, as `costs.attended_pairs`
        counts them."""
        self.tokens_apart = self._by_group(_token_counts_apart)
        self.attended_apart = self._by_group(_attended_counts_apart)
        """The same two where each response brings its own prompt."""
        self.pairs = self._by_group(lambda batch: _lengths(batch.column("chosen")))
        self.weights = self._by_group(_weights)
        """Sum of the weights of each group's preferences."""

    def _by_group(self, of: Callable[[pa.RecordBatch], NDArray[Number]]) -> NDArray[Number]:
        return np.concatenate(
            [of(batch) for batch in [*self._batches, pa.RecordBatch.from_pylist([], schema=SCHEMA)]]
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    # no slices: a store is larger than memory
    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batches[number], index - int(self._starts[number])

        def cell(name: str) -> pa.Array:
            return batch.column(name)[row].values

        suffixes = cell("suffixes")
        encoded = EncodedGroup(
            cell("prefix").to_numpy(),
            [suffix.values.to_numpy() for suffix in suffixes],
            cell("response_tokens").to_pylist(),
            cell("truncated").to_pylist(),
        )
        columns = [cell(name).to_pylist() for name in PREFERENCE_FIELDS]
        return Example(
            batch.column("name")[row].as_py(),
            encoded,
            tuple(Preference(*values) for values in zip(*columns, strict=True)),
        )


def _lengths(column: pa.ListArray) -> NDArray[np.int64]:
    return np.asarray(column.value_lengths().to_numpy(), dtype=np.int64)


def _sums(values: NDArray[Number], lengths: NDArray[np.int64]) -> NDArray[Number]:
    """Sums of consecutive runs of the values."""
    totals = np.zeros(len(values) + 1, dtype=values.dtype)
    np.cumsum(values, out=totals[1:])
    ends = np.cumsum(lengths)
    found: NDArray[Number] = totals[ends] - totals[ends - lengths]
    return found


def _token_counts(batch: pa.RecordBatch) -> NDArray[np.int64]:
    suffixes = batch.column("suffixes")
    return _lengths(batch.column("prefix")) + _sums(
        _lengths(suffixes.flatten()), _lengths(suffixes)
    )


def _attended_counts(batch: pa.RecordBatch) -> NDArray[np.int64]:
    suffixes = batch.column("suffixes")
    prefix, lengths, responses = (
        _lengths(batch.column("prefix")),
        _lengths(suffixes.flatten()),
        _lengths(suffixes),
    )
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
    """Tokens of each prompt with one response, and each group's number of responses."""
    suffixes = batch.column("suffixes")
    responses = _lengths(suffixes)
    return np.repeat(_lengths(batch.column("prefix")), responses) + _lengths(
        suffixes.flatten()
    ), responses


def _weights(batch: pa.RecordBatch) -> NDArray[np.float64]:
    column = batch.column("weight")
    return _sums(column.flatten().to_numpy().astype(np.float64), _lengths(column))


def encode(
    groups: Iterable[PreferenceGroup],
    tokenizer: Path,
    frame: chat.Frame,
    limits: Limits,
    *,
    workers: int = 0,
) -> Iterator[Example]:
    """The groups as examples, in order, by so many worker processes; 0 does the work in this one.
    `tokenizer` is its folder.

    Raises:
        DataError: If a prompt has no message.
    """
    stream = iter(groups)
    tasks = iter(lambda: list(islice(stream, GROUPS_PER_TASK)), [])
    for examples in in_order(
        partial(_encode, tokenizer=tokenizer, frame=frame, limits=limits), tasks, workers=workers
    ):
        yield from examples


def _encode(
    groups: Sequence[PreferenceGroup], tokenizer: Path, frame: chat.Frame, limits: Limits
) -> list[Example]:
    encoder = Encoder(
        _tokenizer(tokenizer, (tokenizer / "tokenizer.json").stat().st_mtime_ns), frame, limits
    )
    return [
        Example(
            g.group_id,
            encoder.encode(g.prompt, [r.content for r in g.responses], name=g.group_id),
            g.preferences,
        )
        for g in groups
    ]


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, written_ns: int) -> PreTrainedTokenizerBase:
    """One load for each process, and each time that the folder was written."""
    return checkpoint.load_tokenizer(sources.Source(folder))
