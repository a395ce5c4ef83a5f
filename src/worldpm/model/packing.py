"""Rows of complete groups, each filled up to a budget of tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(sizes: Sequence[int], *, row_tokens: int) -> list[list[int]]:
    """Pack groups of these sizes, in tokens, into rows of up to `row_tokens`, longest group first.
    A row is a list of indices into `sizes`.

    Best-fit decreasing, so the same sizes always give the same rows. A group longer than a row gets
    its own row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        # the first entry with enough room is the fullest row that the group fits into
        entry = bisect_left(room, (sizes[index], -1))
        if entry == len(room):
            rows.append([])
            free_tokens, row = row_tokens, len(rows) - 1
        else:
            free_tokens, row = room.pop(entry)

        rows[row].append(index)
        insort(room, (free_tokens - sizes[index], row))
    return rows
