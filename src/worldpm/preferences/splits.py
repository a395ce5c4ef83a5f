"""The split of a thread: by a hash of its id or its few words, by its site, or by its date.

A thread is in one split only.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

import xxhash

from worldpm.errors import ConfigError
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
    bucket = _bucket(key)

    # Test takes from the low end and validation from the high end: neither moves when the share of
    # the other grows.
    if bucket < rules.test_share * BUCKETS:
        return "test"
    return "validation" if bucket >= (1 - rules.validation_share) * BUCKETS else "train"


def _bucket(key: str) -> int:
    return xxhash.xxh64_intdigest(key.encode()) % BUCKETS


def of_sites(sites: Iterable[str], rules: GroupRules) -> dict[str, Split]:
    """The split of each site by the hash of its name. A split that got no site takes the nearest
    one of the splits with several.

    Raises:
        ConfigError: If there are fewer sites than splits with a share above 0.
    """
    ordered = sorted(sites, key=lambda site: (_bucket(site), site))
    split_of = {site: of_key(site, rules) for site in ordered}
    # in the order of the hashes: test takes from the low end, and validation from the high end
    shares: dict[Split, float] = {
        "test": rules.test_share,
        "train": 1.0,
        "validation": rules.validation_share,
    }
    filled = [split for split, share in shares.items() if share]
    if len(ordered) < len(filled):
        raise ConfigError(
            f"--split-by site: {len(ordered)} sites cannot fill {len(filled)} splits. Add sites,"
            " set --validation-share or --test-share to 0, or split by thread."
        )

    for number, split in enumerate(filled):
        sizes = Counter(split_of.values())
        if not sizes[split]:
            lower = [site for site in ordered if split_of[site] in filled[:number]]
            upper = [site for site in ordered if split_of[site] in filled[number + 1 :]]
            donors = [site for site in lower[::-1] + upper if sizes[split_of[site]] > 1]
            split_of[donors[0]] = split
    return split_of


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
