"""Near-duplicates by MinHash: of texts that share most of their runs of words, the most voted one
is kept.

Threads are told apart by their questions, and then the answers of those that stay: so one copy of a
thread stays, with all its own.

Source: Broder 1997; bands as in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section
3.4. With 8 bands of 16 rows two texts whose runs of five words have a Jaccard similarity of 0.8
meet in a band in 20 % of cases, of 0.9 in 80 %, of 0.95 in 99 %.
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
from worldpm.storage import parquet
from worldpm.storage.tables import database

PERMUTATIONS, BANDS = 128, 8
QUESTION, ANSWER = 0, 1
WORDS = 5
"""Words of a run."""
LEAST_WORDS = 40
"""Shorter texts follow patterns and are no duplicates: `Yes, it is.` answers many questions."""
SCHEMA = pa.schema(
    [("name", pa.string()), ("thread", pa.string()), ("votes", pa.int64()), ("band", pa.int64())]
)
"""One row for each band of each text."""

Hashes = NDArray[np.uint64]

IN_A_WORD = np.array(
    [chr(byte).isalnum() or chr(byte) == "_" or byte >= 128 for byte in range(256)]
)
"""Letters, digits, underscores, and every byte of what lies beyond ASCII, for of that only letters
and digits are left."""
WORD, NO_WORD = re.compile(r"\w+"), re.compile(r"\W")
BASE = 0x01000193
FACTORS = np.cumprod(np.full(PERMUTATIONS // BANDS, 0x9E3779B97F4A7C15, dtype=np.uint64))


class Text(NamedTuple):
    """A text that may stand twice."""

    kind: int
    """QUESTION or ANSWER; texts of different kinds are no duplicates of each other."""
    name: str
    votes: int
    text: str
    thread: str
    """The name of its thread, which is its own where it is a question."""


def bands(texts: Sequence[Text]) -> pa.RecordBatch:
    """The texts' bands, as a batch of SCHEMA: none for a text of fewer than LEAST_WORDS; case,
    punctuation and white space do not count.

    A band is a signed number of 64 bits: Spark knows no others.
    """
    runs, ends = _runs([text.text for text in texts])
    starts = np.concatenate([[0], ends[:-1]])
    digests = RMinHash.digest_matrix_from_flat_token_hashes(
        runs, [0, *ends.tolist()], PERMUTATIONS, 42
    ).to_rows()
    rows = np.array(digests, dtype=np.uint64).reshape(len(texts), BANDS, PERMUTATIONS // BANDS)
    numbers = np.arange(BANDS) + BANDS * np.array([text.kind for text in texts])[:, None]
    hashes = _mixed((rows * FACTORS).sum(axis=2) + _mixed(numbers.astype(np.uint64))).view(np.int64)
    long = np.flatnonzero(ends - starts > LEAST_WORDS - WORDS)
    banded = [texts[index] for index in long.repeat(BANDS).tolist()]
    columns = [[getattr(text, name) for text in banded] for name in ("name", "thread", "votes")]
    return pa.RecordBatch.from_arrays([*columns, pa.array(hashes[long].ravel())], schema=SCHEMA)


def words_of_short(text: str) -> str | None:
    """The words of a text that has no bands, by which to know it again; None where it has
    LEAST_WORDS or more."""
    words = [match[0] for match in islice(WORD.finditer(text.lower()), LEAST_WORDS)]
    return " ".join(words) if len(words) < LEAST_WORDS else None


def _runs(texts: Sequence[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of all runs of WORDS words, one text after the other, and where each text's end."""
    plain = [text if text.isascii() else NO_WORD.sub(" ", text) for text in texts]
    lowered = pc.utf8_lower(pa.array(plain, pa.large_string()))
    offsets = np.frombuffer(lowered.buffers()[1], dtype=np.int64, count=len(texts) + 1)
    letters = np.frombuffer(lowered.buffers()[2] or b"", dtype=np.uint8, count=int(offsets[-1]))
    inside = IN_A_WORD[letters]
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    borders = offsets[offsets < len(letters)]
    begins[borders] = inside[borders]
    letters, begins = letters[inside], begins[inside]
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), np.zeros(len(texts), dtype=np.int64)
    # a word is the number whose digits are its bytes, in powers of BASE modulo 2^32, whatever
    # stands before it
    sums = np.add.reduceat(letters * _powers(BASE, len(letters)), starts, dtype=np.uint32)
    words = _mixed((sums * _powers(pow(BASE, -1, 1 << 32), len(letters))[starts]).astype(np.uint64))
    counts = np.searchsorted(
        starts, np.concatenate([[0], np.cumsum(inside)])[offsets]
    )  # words before each text's border
    runs = np.zeros(max(0, len(words) - WORDS + 1), dtype=np.uint64)
    for number, factor in enumerate(FACTORS[:WORDS]):
        runs += words[number : number + len(runs)] * factor
    of_text = np.repeat(np.arange(len(texts)), np.diff(counts))
    whole = of_text[: len(runs)] == of_text[len(words) - len(runs) :]
    return _mixed(runs[whole]), np.cumsum(
        np.bincount(of_text[: len(runs)][whole], minlength=len(texts))
    )


def _powers(base: int, count: int) -> NDArray[np.uint32]:
    return np.cumprod(np.full(count, base, dtype=np.uint32), dtype=np.uint32)


def _mixed(hashes: Hashes) -> Hashes:
    """Every bit depends on every bit. Source: the finalizer of SplitMix64, Steele, Lea and Flood
    2014."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def among(names: set[str], path: Path) -> set[str]:
    """Those of the names that are in a table of bands: what the work on one site's threads must
    know."""
    if not names:
        return set()
    return {
        name
        for batch in parquet.read_batches(path, pa.schema([SCHEMA.field("name")]))
        for name in batch["name"].to_pylist()
    } & names


def duplicates(paths: Sequence[Path], *, spill: Path, engine: Engine = "duckdb") -> set[str]:
    """The names of questions that share a band with one of more votes, or of as many and an earlier
    name, and likewise of the answers that those leave.

    The tables are as SCHEMA. Questions come first; an answer of a thread that is one of those names
    ousts no other.
    """
    if not paths:
        return set()
    tables = database(engine, spill)
    tables.read("bands", paths)
    tables.keep("later_questions", _later("name = thread"))
    # an answer's thread is never null, so this is an anti join
    tables.keep(
        "later_answers",
        _later("name <> thread AND thread NOT IN (SELECT name FROM later_questions)"),
    )
    both = tables.batches(
        "SELECT name FROM later_questions UNION ALL SELECT name FROM later_answers"
    )
    return {name for batch in both for name in batch["name"].to_pylist()}


def _later(condition: str) -> str:
    """A query for the names, of rows under a condition, that are not the first of some band."""
    # most bands are of one text: counting them needs little memory, and few are left to be ranked
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
