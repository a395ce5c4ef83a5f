"""Near-duplicates by MinHash: of texts that share most of their runs of words, the text with the
most votes is kept.

The questions of threads are compared first, then the answers to the remaining questions. So one
copy of a thread stays, with all its answers.

Source: Broder 1997; bands as in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section
3.4. With 8 bands of 16 rows, two texts whose runs of five words have a Jaccard similarity of 0.8
share a band in 20 % of cases, of 0.9 in 80 %, of 0.95 in 99 %.
"""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rensa import RMinHash

from worldpm.options.shared import Engine
from worldpm.preferences.word_breaks import spaced
from worldpm.storage import parquet
from worldpm.storage.tables import database

PERMUTATIONS, BANDS = 128, 8
ROWS_A_BAND = PERMUTATIONS // BANDS
MINHASH_SEED = 42
QUESTION, ANSWER = 0, 1
RUN_WORDS = 5
"""Words of a run."""
LEAST_WORDS = 40
"""Shorter texts follow patterns and are not duplicates: `Yes, it is.` answers many questions."""
SCHEMA = pa.schema(
    [("name", pa.string()), ("thread", pa.string()), ("votes", pa.int64()), ("band", pa.int64())]
)
"""One row for each band of each text."""

Hashes = NDArray[np.uint64]

IN_A_WORD = np.array(
    [chr(byte).isalnum() or chr(byte) == "_" or byte >= 128 for byte in range(256)]
)
"""Whether a byte is part of a word: letters, digits, underscores, and every byte beyond ASCII,
where only letters and digits remain."""
WORD, NO_WORD = re.compile(r"\w+"), re.compile(r"\W")
BASE = 0x01000193
"""Base of the polynomial hash of a word: the prime of FNV-1, which is odd and so invertible modulo
2^32."""
FACTORS = np.cumprod(np.full(ROWS_A_BAND, 0x9E3779B97F4A7C15, dtype=np.uint64))
"""Powers of 2^64 over the golden ratio, which weight the parts of a sequence of hashes."""


class Text(NamedTuple):
    """A text that may have near-duplicates."""

    kind: int
    """QUESTION or ANSWER; texts of different kinds are not duplicates of each other."""
    name: str
    votes: int
    text: str
    thread: str
    """The name of its thread; for a question, its own name."""


class _Words(NamedTuple):
    """The words of several texts, one text after another."""

    hashes: Hashes
    """Hash of each word."""
    borders: NDArray[np.int64]
    """Number of words before each text, and of all words at the end; shape `(texts + 1,)`."""


class _Runs(NamedTuple):
    """The runs of words of several texts, one text after another."""

    hashes: Hashes
    """Hash of each run."""
    borders: NDArray[np.int64]
    """Number of runs before each text, and of all runs at the end; shape `(texts + 1,)`."""


def bands(texts: Sequence[Text]) -> pa.RecordBatch:
    """The texts' bands, as a batch of SCHEMA; a text with fewer than LEAST_WORDS words has none.
    Case, punctuation and white space do not count.

    A band is a signed number of 64 bits, because Spark has no unsigned numbers.
    """
    runs = _runs(_words([text.text for text in texts]))
    digests = RMinHash.digest_matrix_from_flat_token_hashes(
        runs.hashes, runs.borders.tolist(), PERMUTATIONS, MINHASH_SEED
    )
    rows = np.array(digests.to_rows(), dtype=np.uint64).reshape(len(texts), BANDS, ROWS_A_BAND)

    # The hashes include the number of the band and the kind of the text, so that bands of different
    # numbers or kinds are never equal.
    kinds = np.array([text.kind for text in texts])[:, None]
    numbers = (np.arange(BANDS) + BANDS * kinds).astype(np.uint64)
    hashes = _mixed((rows * FACTORS).sum(axis=2) + _mixed(numbers)).view(np.int64)

    # A text of n words has n - RUN_WORDS + 1 runs.
    long = np.flatnonzero(np.diff(runs.borders) > LEAST_WORDS - RUN_WORDS)
    banded = [texts[index] for index in long.repeat(BANDS).tolist()]
    columns = (
        [text.name for text in banded],
        [text.thread for text in banded],
        [text.votes for text in banded],
        pa.array(hashes[long].ravel()),
    )
    return pa.RecordBatch.from_arrays(list(columns), schema=SCHEMA)


def words_of_short(text: str) -> str | None:
    """The words of a text that is too short for bands, as a key that repeats of the text share;
    None for a text of LEAST_WORDS words or more."""
    tokens = [match[0] for match in islice(WORD.finditer(spaced(text.lower())), LEAST_WORDS)]
    return " ".join(tokens) if len(tokens) < LEAST_WORDS else None


def _words(texts: Sequence[str]) -> _Words:
    """Hashes of all words. The texts are one array of bytes, because a Python object for every word
    would be slow."""
    # Beyond ASCII, punctuation has bytes like those of letters, so it is removed first.
    plain = [text if text.isascii() else NO_WORD.sub(" ", spaced(text)) for text in texts]
    lowered = pc.utf8_lower(pa.array(plain, pa.large_string()))
    _, offset_buffer, byte_buffer = lowered.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64, count=len(texts) + 1)
    letters = np.frombuffer(byte_buffer or b"", dtype=np.uint8, count=int(offsets[-1]))

    # A word begins at its first byte after a byte that is not in a word, or where a text begins.
    inside = IN_A_WORD[letters]
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    text_starts = offsets[offsets < len(letters)]
    begins[text_starts] = inside[text_starts]

    # From here on, arrays have only the bytes of words, without the bytes between words.
    word_starts = np.flatnonzero(begins[inside])
    hashes = _hashes_of_words(letters[inside], word_starts)
    letters_before = np.concatenate([[0], np.cumsum(inside)])[offsets]
    return _Words(hashes, np.searchsorted(word_starts, letters_before))


def _hashes_of_words(letters: NDArray[np.uint8], starts: NDArray[np.intp]) -> Hashes:
    """A hash for each word of a row of letters; `starts` are the indices of the first letters."""
    if not len(starts):
        return np.zeros(0, dtype=np.uint64)

    # A word's hash is a number with its letters as digits, in powers of BASE modulo 2^32. The
    # powers run on over all words, so each sum is divided by the first power of its word.
    sums = np.add.reduceat(letters * _powers(BASE, len(letters)), starts, dtype=np.uint32)
    inverses = _powers(pow(BASE, -1, 1 << 32), len(letters))
    return _mixed((sums * inverses[starts]).astype(np.uint64))


def _runs(hashed: _Words) -> _Runs:
    """Hashes of all runs of RUN_WORDS words within a text."""
    # First treat all texts as one text: the hash of a run is the sum of its words' hashes, each
    # times the factor of its index in the run.
    count = max(0, len(hashed.hashes) - RUN_WORDS + 1)
    sums = np.zeros(count, dtype=np.uint64)
    for index, factor in enumerate(FACTORS[:RUN_WORDS]):
        sums += hashed.hashes[index : index + count] * factor

    # Then drop the runs whose first and last word are in different texts.
    texts = len(hashed.borders) - 1
    text_of_word = np.repeat(np.arange(texts), np.diff(hashed.borders))
    first, last = text_of_word[:count], text_of_word[len(text_of_word) - count :]
    within = first == last
    lengths = np.bincount(first[within], minlength=texts)
    return _Runs(_mixed(sums[within]), np.concatenate([[0], np.cumsum(lengths)]))


def _powers(base: int, count: int) -> NDArray[np.uint32]:
    """The powers 1, 2, ... of a base, modulo 2^32."""
    return np.cumprod(np.full(count, base, dtype=np.uint32), dtype=np.uint32)


def _mixed(hashes: Hashes) -> Hashes:
    """Mix the hashes, so that every bit depends on every bit.

    Source: the finalizer of SplitMix64, Steele, Lea and Flood 2014.
    """
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def among(names: set[str], path: Path) -> set[str]:
    """The names that are in a table of bands, because work on a site needs only the site's
    duplicates."""
    if not names:
        return set()

    in_table: set[str] = set()
    for batch in parquet.read_batches(path, ["name"]):
        in_table.update(batch["name"].to_pylist())
    return in_table & names


def duplicates(paths: Sequence[Path], *, spill: Path, engine: Engine = "duckdb") -> set[str]:
    """The names of questions that share a band with a question of more votes, or of equal votes and
    an earlier name; likewise of answers to the remaining questions.

    The tables have SCHEMA. Questions come first, so that an answer in a duplicate thread does not
    replace another answer.
    """
    if not paths:
        return set()

    tables = database(engine, spill)
    tables.read("bands", paths)
    tables.keep("later_questions", _later("name = thread"))
    # An answer's thread is never null, so NOT IN is an anti join.
    tables.keep(
        "later_answers",
        _later("name <> thread AND thread NOT IN (SELECT name FROM later_questions)"),
    )

    names: set[str] = set()
    query = "SELECT name FROM later_questions UNION ALL SELECT name FROM later_answers"
    for batch in tables.batches(query):
        names.update(batch["name"].to_pylist())
    return names


def _later(condition: str) -> str:
    """A query for the names in rows that meet a condition and are not the first of some band."""
    # Most bands have one text: counting them needs little memory, and few remain to be ranked.
    return f"""
        WITH single AS (SELECT name, votes, band FROM bands WHERE {condition}),
        met AS (SELECT band FROM single GROUP BY band HAVING count(*) > 1),
        ranked AS (
            SELECT name, row_number() OVER (
                PARTITION BY band ORDER BY votes DESC NULLS LAST, name
            ) AS number
            FROM single WHERE band IN (SELECT band FROM met)
        )
        SELECT DISTINCT name FROM ranked WHERE number > 1
    """
