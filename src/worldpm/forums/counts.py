"""Counts of `worldpm ingest` by site, for the manifest."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

Drops = defaultdict[str, Counter[str]]
"""Dropped rows by site and reason."""


def no_drops() -> Drops:
    """Drops to count in."""
    return defaultdict(Counter)


@dataclass
class IngestCounts:
    """Contents of a site's threads. Mutable: batches are added one by one."""

    threads: int = 0
    """Threads written."""
    responses: int = 0
    """Answers of these threads."""
    threads_with_two_responses: int = 0
    """Threads with two or more answers; only these can become preferences."""

    responses_with_earlier_votes: int = 0
    """Answers that an older dump has too; 0 without --update."""

    def add(self, threads: pa.RecordBatch) -> None:
        """Count a batch of threads."""
        sizes = threads["responses"].value_lengths().to_pylist()
        self.threads += len(sizes)
        self.responses += sum(sizes)
        self.threads_with_two_responses += sum(size >= 2 for size in sizes)

        earlier = threads["responses"].flatten().field("earlier_votes").value_lengths()
        self.responses_with_earlier_votes += pc.sum(pc.greater(earlier, 0)).as_py() or 0
