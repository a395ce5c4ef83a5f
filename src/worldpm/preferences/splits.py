"""Which split a thread is in: by a hash of its id or its few words, by its site, or by its date;
never two for one thread."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import xxhash

from worldpm.options.group import GroupRules

Split = Literal["train", "validation", "test"]

BUCKETS = 10_000


def of_key(key: str, rules: GroupRules) -> Split:
    """The split of a thread or a site by the hash of what it is known by: the same everywhere, and
    a larger share only takes from training.

    The hash is independent of everything else, so each source and site gets about its share: the
    split is stratified by source.
    """
    bucket = xxhash.xxh64_intdigest(key.encode()) % BUCKETS
    if bucket < rules.test_share * BUCKETS:
        return "test"
    return "validation" if bucket >= (1 - rules.validation_share) * BUCKETS else "train"


class Dates(NamedTuple):
    """From when on threads are for validation and for testing, in seconds since the epoch."""

    validation: float
    test: float


def cuts(created: Iterable[float], rules: GroupRules) -> Dates:
    """The dates that leave the latest threads to the test split, and those before them to
    validation; none: never."""
    ordered = sorted(created)
    if not ordered:
        return Dates(float("inf"), float("inf"))

    def cut(share: float) -> float:
        place = round((1 - share) * len(ordered))
        return ordered[place] if place < len(ordered) else float("inf")

    return Dates(cut(rules.validation_share + rules.test_share), cut(rules.test_share))


def of_date(created: float, dates: Dates) -> Split:
    """The split of a thread by its date: training lies before validation, and that before the
    test."""
    if created >= dates.test:
        return "test"
    return "validation" if created >= dates.validation else "train"
