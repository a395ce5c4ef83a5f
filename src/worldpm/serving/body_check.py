"""Bodies of few bytes that would cost much work are rejected before they are parsed.

Validation makes an error of every wrong element and every unknown key, once for each format that a
route takes: 60 KB of `{}` became a reply of 8 MB. So the outline of a body, which is the body
without its strings, is checked first.
"""

import re
from itertools import accumulate

import msgspec

MOST_CONTAINERS = 4096
"""Objects and lists in a body; the largest known use is a list of ids for each of a few hundred
inputs."""
MOST_STRINGS = 65_536
"""Texts and keys in a body."""
MOST_KEYS = 256
"""Keys of one object."""
DEEPEST = 32
"""Objects and lists within each other."""
SMALL_BYTES = 8192
"""Bodies up to this size cost little, whatever they hold."""
# Possessive: no byte is read twice. The last quote is optional, because a string without one would
# be tried again from each of its escaped quotes.
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
OPENING, CLOSING = b"[{", b"]}"
NO_BRACKETS = bytes(byte for byte in range(256) if byte not in OPENING + CLOSING)


def fault_of(body: bytes, *, most_values: int = 2**20) -> str | None:
    """The fault of a body; None if it is fit to be validated. `most_values` are the elements
    of all its lists and objects."""
    if len(body) <= SMALL_BYTES:
        return None

    # One more than allowed, not all: a million strings would hold the interpreter for seconds
    outline, strings = STRING.subn(b"", body, count=MOST_STRINGS + 1)
    if strings > MOST_STRINGS:
        return f"the body has more than {MOST_STRINGS:,} texts and keys; send fewer at once"
    brackets = outline.translate(None, delete=NO_BRACKETS)
    if len(brackets) > 2 * MOST_CONTAINERS:
        return f"the body has more than {MOST_CONTAINERS:,} lists and objects; send fewer at once"
    if outline.count(b",") >= most_values:
        return f"the body has more than {most_values:,} values; send fewer at once"

    depths = accumulate(1 if bracket in OPENING else -1 for bracket in brackets)
    if max(depths, default=0) > DEEPEST:
        return f"the body nests lists and objects more than {DEEPEST} deep"
    # Only now is the body small enough to be parsed
    return _too_many_keys(body) if outline.count(b":") > MOST_KEYS else None


def _too_many_keys(body: bytes) -> str | None:
    """The fault of an object with too many keys."""
    try:
        level = [msgspec.json.decode(body)]
    # Other parsers take more, for instance NaN and UTF-16, and would see keys that this does not
    except msgspec.DecodeError as error:
        return f"the body is not JSON in UTF-8 ({error})"

    while level:
        most = max((len(value) for value in level if isinstance(value, dict)), default=0)
        if most > MOST_KEYS:
            return f"the body has {most:,} keys in an object; at most {MOST_KEYS} are allowed"
        level = [inner for value in level for inner in _inner(value)]
    return None


def _inner(value: object) -> list[object]:
    """The objects and lists that an object or list has."""
    if not isinstance(value, dict | list):
        return []
    values = value.values() if isinstance(value, dict) else value
    return [inner for inner in values if isinstance(inner, dict | list)]
