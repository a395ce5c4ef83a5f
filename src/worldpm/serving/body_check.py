"""Bodies of few bytes that would cost much work are rejected before they are validated.

Validation makes an error of every wrong element and every unknown key, once for each format that a
route takes: 60 KB of `{}` became a reply of 8 MB. So the shape of a body is checked first.
"""

import msgspec

MOST_CONTAINERS = 4096
"""Objects and lists in a body; the largest known use is a list of ids for each of a few hundred
inputs."""
MOST_KEYS = 256
"""Keys of one object."""
DEEPEST = 32
"""Objects and lists within each other."""
SMALL_BYTES = 8192
"""Bodies up to this size cost little, whatever they hold."""


def fault_of(body: bytes) -> str | None:
    """What a body has too much of; None if it is fit to be validated.

    A body that is not JSON is left to the validation.
    """
    if len(body) <= SMALL_BYTES:
        return None
    try:
        content = msgspec.json.decode(body)
    except RecursionError:
        return f"lists and objects within each other; at most {DEEPEST} are allowed"
    except msgspec.DecodeError:
        return None
    return _fault_of_content(content)


def _fault_of_content(content: object) -> str | None:
    level, containers = [content], 0
    for depth in range(DEEPEST + 1):
        inner: list[object] = []
        for value in level:
            if not isinstance(value, dict | list):
                continue
            if isinstance(value, dict) and len(value) > MOST_KEYS:
                return f"{len(value):,} keys in an object; at most {MOST_KEYS} are allowed"

            # counted before they are collected: a list may hold a million
            values = value.values() if isinstance(value, dict) else value
            inner += [element for element in values if isinstance(element, dict | list)]
            containers += 1
            if containers + len(inner) > MOST_CONTAINERS:
                return f"more than {MOST_CONTAINERS:,} lists and objects; send fewer at once"
        if not inner:
            return None
        level = inner
        if depth == DEEPEST:
            break
    return f"lists and objects within each other; at most {DEEPEST} are allowed"
