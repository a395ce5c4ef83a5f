"""Rows of whole groups, each filled up to a budget of tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(sizes: Sequence[int], *, row_tokens: int) -> list[list[int]]:
    """Rows of whole groups, as indices into their sizes in tokens: each filled up to `row_tokens`,
    longest group first.

    Best-fit decreasing, so the same sizes always make the same rows. A group longer than a row is a
    row of its own.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = bisect_left(room, (sizes[index], -1))
        if place == len(room):
            rows.append([])
            left, row = row_tokens, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        insort(room, (left - sizes[index], row))
    return rows
