"""A benchmark: how to read its files, and how its authors aggregate results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from worldpm.benchmarks.items import Item, Judged
from worldpm.storage.json_files import Plain

MIXED = "mixed"
"""The domain of a benchmark with several domains, and of a subset that is in no domain."""


def item_itself(subset: str, item: str) -> str:
    """The cluster of an item that shares its prompt with no other item."""
    return f"{subset}/{item}"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A test set. Each module of a test set ends with its instance, which `catalogue` lists."""

    name: str
    """The name in `--on`, and the name of the folder."""
    home: str
    """The source of the files, for messages about absent files."""
    read: Callable[[Path], list[Item]]
    """Reads the items of a folder. Raises ConfigError if a file is absent, and DataError if a file
    is damaged."""
    native: Callable[[Judged], Plain]
    """The authors' aggregates, under the authors' names and with their rule for ties."""
    domains: Mapping[str, Sequence[str]]
    """Subsets by domain. A domain with an empty list has all subsets."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of items by subset, in the release that this code was written for; empty if
    unknown."""
    cluster: Callable[[str, str], str] = item_itself
    """The prompt id of an item, from its subset and name, for raw rewards without the benchmark's
    files."""

    @property
    def domain(self) -> str:
        """The only domain, or `mixed`."""
        return next(iter(self.domains)) if len(self.domains) == 1 else MIXED

    @property
    def named_subsets(self) -> set[str]:
        """The subsets in `sizes` or `domains`; empty if any name is possible."""
        return {*self.sizes, *chain.from_iterable(self.domains.values())}

    def by_domain(self, subsets: Sequence[str]) -> dict[str, list[str]]:
        """The given subsets by domain. Domains with none of them are left out."""
        present: dict[str, list[str]] = {}
        for domain, names in self.domains.items():
            # a domain with an empty list has all subsets
            members = [name for name in names or subsets if name in subsets]
            if members:
                present[domain] = members
        return present
