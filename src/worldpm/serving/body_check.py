"""Rejection of small bodies that would be expensive to validate, before they are parsed.

Validation reports every wrong element and every unknown key, once for each format of a route. Thus
60 KB of `{}` became a reply of 8 MB. Therefore the outline of a body (the body without its strings)
is checked first.
"""

import re
from itertools import accumulate

import msgspec

MOST_CONTAINERS = 4096
"""Largest number of objects and lists in a body. The largest known use is a list of ids for each of
a few hundred inputs."""
MOST_STRINGS = 65_536
"""Largest number of texts and keys in a body."""
MOST_KEYS = 256
"""Largest number of keys of one object."""
DEEPEST = 32
"""Largest depth of nested objects and lists."""
SMALL_BYTES = 8192
"""Bodies up to this size are always cheap."""
# Possessive, so that no byte is read twice. The last quote is optional: otherwise, an unterminated
# string would be tried again from each of its escaped quotes.
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
OPENING, CLOSING = b"[{", b"]}"
NO_BRACKETS = bytes(byte for byte in range(256) if byte not in OPENING + CLOSING)


def fault_of(body: bytes, *, most_values: int = 2**20) -> str | None:
    """The fault of a body; None if it can be validated. `most_values` is the largest number of
    elements of all its lists and objects."""
    if len(body) <= SMALL_BYTES:
        return None

    # Stop one string after the limit, because a million strings would block the interpreter for
    # seconds
    outline, strings = STRING.subn(b"", body, count=MOST_STRINGS + 1)
    if strings > MOST_STRINGS:
        return f"the body has more than {MOST_STRINGS:,} texts and keys. Send fewer at once."
    brackets = outline.translate(None, delete=NO_BRACKETS)
    if len(brackets) > 2 * MOST_CONTAINERS:
        return f"the body has more than {MOST_CONTAINERS:,} lists and objects. Send fewer at once."
    if outline.count(b",") >= most_values:
        return f"the body has more than {most_values:,} values. Send fewer at once."

    depths = accumulate(1 if bracket in OPENING else -1 for bracket in brackets)
    if max(depths, default=0) > DEEPEST:
        return f"the body nests lists and objects more than {DEEPEST} deep. Send a flatter body."
    # Only now is the body small enough to be parsed
    return _too_many_keys(body) if outline.count(b":") > MOST_KEYS else None


def _too_many_keys(body: bytes) -> str | None:
    """The fault of an object with too many keys."""
    try:
        level = [msgspec.json.decode(body)]
    # Reject what other parsers accept, such as NaN and UTF-16: they would read unchecked keys
    except msgspec.DecodeError as error:
        return f"the body is not JSON in UTF-8 ({error}). Send valid JSON."

    while level:
        most = max((len(value) for value in level if isinstance(value, dict)), default=0)
        if most > MOST_KEYS:
            return f"an object of the body has {most:,} keys. Send at most {MOST_KEYS}."
        level = [inner for value in level for inner in _inner(value)]
    return None


def _inner(value: object) -> list[object]:
    """The objects and lists within an object or list."""
    if not isinstance(value, dict | list):
        return []
    values = value.values() if isinstance(value, dict) else value
    return [inner for inner in values if isinstance(inner, dict | list)]
