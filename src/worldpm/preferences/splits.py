"""The split of a thread: by a hash of its id or its few words, by its site, or by its date.

A thread is in one split only.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import xxhash

from worldpm.options.group import GroupRules

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

BUCKETS = 10_000
"""Number of equal parts of the hashes; shares are multiples of one part."""


def of_key(key: str, rules: GroupRules) -> Split:
    """The split of a thread or a site by the hash of its key. It is the same on all machines, and a
    larger share takes keys only from training.

    The hash is independent of everything else, so each source and site gets about its share: the
    split is stratified by source.
    """
    bucket = xxhash.xxh64_intdigest(key.encode()) % BUCKETS

    # Test takes from the low end and validation from the high end: neither moves when the share of
    # the other grows.
    if bucket < rules.test_share * BUCKETS:
        return "test"
    return "validation" if bucket >= (1 - rules.validation_share) * BUCKETS else "train"


class Dates(NamedTuple):
    """First dates of two splits, in seconds since the epoch; infinite if a split is empty."""

    validation: float
    """Threads from then on are for validation."""
    test: float
    """Threads from then on are for testing."""


def cuts(created: Iterable[float], rules: GroupRules) -> Dates:
    """The dates that put the latest threads into the test split, and the threads before them into
    validation; infinite without threads."""
    ordered = sorted(created)
    if not ordered:
        return Dates(float("inf"), float("inf"))

    def cut(share: float) -> float:
        index = round((1 - share) * len(ordered))
        return ordered[index] if index < len(ordered) else float("inf")

    return Dates(cut(rules.validation_share + rules.test_share), cut(rules.test_share))


def of_date(created: float, dates: Dates) -> Split:
    """The split of a thread by its date: training comes before validation, and validation before
    test."""
    if created >= dates.test:
        return "test"
    return "validation" if created >= dates.validation else "train"
