"""Counts of `worldpm ingest` by site, for the manifest."""

from dataclasses import dataclass


@dataclass
class IngestCounts:
    """Contents of a site's threads. Mutable: batches are added one by one."""

    threads: int = 0
    """Threads written."""
    responses: int = 0
    """Answers of these threads."""
    threads_with_two_responses: int = 0
    """Threads with two or more answers; only these can become preferences."""

    def add(self, sizes: list[int]) -> None:
        """Count a batch of threads by their numbers of answers."""
        self.threads += len(sizes)
        self.responses += sum(sizes)
        self.threads_with_two_responses += sum(size >= 2 for size in sizes)
