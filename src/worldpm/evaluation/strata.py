"""Stratified test sets: so much of each kind, drawn by a hash, so that the same set comes out
everywhere."""

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


def stratum(item: Item) -> str:
    """`controversial`, `technical` or `open`, of an item of a forum; its subset where votes are not
    known.

    Controversial: the two responses of most votes have close votes, both above 0. Technical: else,
    prompt or a response has code or mathematics (a fence, backticks, dollars, an indented line).
    Open: else.
    """
    votes = [response.votes for response in item.responses]
    if any(vote is None for vote in votes):
        return item.subset
    most = sorted((vote for vote in votes if vote is not None), reverse=True)[:2]
    if len(most) == 2 and most[1] > 0 and most[0] <= CLOSE * most[1]:
        return "controversial"
    texts = (
        *(message.content for message in item.prompt),
        *(response.content for response in item.responses),
    )
    return "technical" if any(TECHNICAL.search(text) for text in texts) else "open"


def shares(words: str) -> dict[str, float]:
    """`NAME=share,...`, or the preset `forum`; shares are made to add up to 1.

    Raises:
        ConfigError: If it is neither.
    """
    if words == "forum":
        return FORUM
    try:
        found = {
            name: float(share)
            for name, _, share in (part.partition("=") for part in words.split(","))
        }
    except ValueError:
        found = {}
    if not found or not all(0 < share < math.inf for share in found.values()):
        raise ConfigError(
            f"--strata {words}: expected NAME=share,... with shares above 0, or forum, for instance"
            " technical=0.7,open=0.3"
        )
    return {name: share / sum(found.values()) for name, share in found.items()}


def draw(
    items: Sequence[Item], wanted: Mapping[str, float], *, kind: Callable[[Item], str] = stratum
) -> list[Item]:
    """The largest set with these shares, in the items' order; the rarest kind decides its size.

    Raises:
        ConfigError: If a kind has no item.
    """
    kinds = [kind(item) for item in items]
    there = {name: kinds.count(name) for name in wanted}
    if empty := [name for name, count in there.items() if not count]:
        raise ConfigError(
            f"--strata: no item is {empty[0]!r}; there are {', '.join(sorted(set(kinds)))}"
        )
    size = min(count / wanted[name] for name, count in there.items())
    kept: set[str] = set()
    for name, share in wanted.items():
        mine = sorted(
            (item.item for item, own in zip(items, kinds, strict=True) if own == name), key=_place
        )
        kept |= set(mine[: max(1, int(size * share + 1e-9))])
    return [
        item for item, own in zip(items, kinds, strict=True) if own in wanted and item.item in kept
    ]


def _place(name: str) -> int:
    return xxhash.xxh64_intdigest(f"strata/{name}".encode())
