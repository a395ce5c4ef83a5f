"""Stratified test sets with a share of each kind of item. A hash selects the items, so every
machine draws the same set."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import xxhash

from worldpm.benchmarks.items import Item
from worldpm.errors import ConfigError
from worldpm.preferences.votes import CLOSE

FORUM = {"technical": 0.7, "open": 0.2, "controversial": 0.1}
"""The preset `forum`."""
TECHNICAL = re.compile(r"```|`[^`\n]+`|\$[^$\n]+\$|\\begin\{|^(?: {4}|\t)\S", re.MULTILINE)
"""Finds code or mathematics: a fence, backticks, dollars, a LaTeX block, an indented line."""


def stratum(item: Item) -> str:
    """The kind of a forum item: `controversial`, `technical` or `open`. If votes are unknown, the
    item's subset.

    An item is controversial if its two responses with the most votes have close votes, both above
    0. It is technical if it is not controversial and has code or mathematics in prompt or responses
    (TECHNICAL). All other items are open.
    """
    # items of test sets have no votes
    votes = [response.votes for response in item.responses if response.votes is not None]
    if len(votes) < len(item.responses):
        return item.subset

    most = sorted(votes, reverse=True)[:2]
    if len(most) == 2 and most[1] > 0 and most[0] <= CLOSE * most[1]:
        return "controversial"
    return "technical" if any(TECHNICAL.search(text) for text in item.texts) else "open"


def shares(option: str) -> dict[str, float]:
    """Parse `NAME=share,...` or the preset `forum`, and scale the shares to a sum of 1.

    Raises:
        ConfigError: If `option` has neither form.
    """
    if option == "forum":
        return FORUM

    share_of: dict[str, float] = {}
    try:
        for part in option.split(","):
            name, _, share = part.partition("=")
            share_of[name] = float(share)
    except ValueError:
        share_of = {}

    if not share_of or not all(0 < share < math.inf for share in share_of.values()):
        raise ConfigError(
            f"--strata {option}: does not have the form NAME=share,... with shares above 0. Use for"
            " instance technical=0.7,open=0.3, or the preset forum."
        )
    return {name: share / sum(share_of.values()) for name, share in share_of.items()}


def draw(
    items: Sequence[Item], share_of: Mapping[str, float], *, kind: Callable[[Item], str] = stratum
) -> list[Item]:
    """The largest set with these shares, in the items' order. The rarest kind limits its size.

    Raises:
        ConfigError: If a kind has no items.
    """
    kinds = [kind(item) for item in items]
    counts = {name: kinds.count(name) for name in share_of}
    if empty := [name for name, count in counts.items() if not count]:
        raise ConfigError(
            f"--strata: no item is {empty[0]!r}. Use one of {', '.join(sorted(set(kinds)))}."
        )

    # a kind limits the set's size to the kind's number of items divided by its share
    size = min(count / share_of[name] for name, count in counts.items())

    # a hash of the name selects the same items for every order and on every machine
    drawn: set[str] = set()
    for name, share in share_of.items():
        names = [item.item for item, its_kind in zip(items, kinds, strict=True) if its_kind == name]
        # a share such as 0.1 of 10 items can be 0.9999... in floats, but must give one item
        number = max(1, int(size * share + 1e-9))
        drawn |= set(sorted(names, key=_hash)[:number])

    return [
        item
        for item, its_kind in zip(items, kinds, strict=True)
        if its_kind in share_of and item.item in drawn
    ]


def _hash(name: str) -> int:
    return xxhash.xxh64_intdigest(f"strata/{name}".encode())
