"""A benchmark: how its files are read, and how its authors sum up results on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from worldpm.benchmarks.items import Item, Judged
from worldpm.storage.json_files import Plain

MIXED = "mixed"
"""The domain of a benchmark of several, and of a subset that no domain names."""


def item_itself(subset: str, item: str) -> str:
    """The cluster of an item whose prompt no other item shares."""
    return f"{subset}/{item}"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A test set. Its module ends with the one instance of it, which `catalogue` lists."""

    name: str
    """The word of `--on`, and the name of its folder."""
    home: str
    """Where its files come from, for messages about absent ones."""
    read: Callable[[Path], list[Item]]
    """The items of a folder with its files; raises ConfigError if a file is absent, DataError if
    one is damaged."""
    native: Callable[[Judged], Plain]
    """Its authors' own aggregates under their own names, with their own rule for ties."""
    domains: Mapping[str, Sequence[str]]
    """Subsets by domain; a domain without subsets has all of them."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Items by subset in the release that was read for this code; empty if not known."""
    cluster: Callable[[str, str], str] = item_itself
    """The prompt of an item by its subset and name, for raw rewards without the benchmark's
    files."""

    @property
    def domain(self) -> str:
        """Its only domain, or `mixed`."""
        return next(iter(self.domains)) if len(self.domains) == 1 else MIXED

    @property
    def named_subsets(self) -> set[str]:
        """The subsets that its sizes or domains name; empty if any name is possible."""
        return {*self.sizes, *chain.from_iterable(self.domains.values())}

    def by_domain(self, subsets: Sequence[str]) -> dict[str, list[str]]:
        """Some of its subsets by domain; domains with none of them are left out."""
        present: dict[str, list[str]] = {}
        for domain, names in self.domains.items():
            # a domain without names has all subsets
            members = [name for name in names or subsets if name in subsets]
            if members:
                present[domain] = members
        return present
