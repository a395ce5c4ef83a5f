"""How a step speaks to its user: a progress bar on a terminal, plain lines elsewhere, and numbers
in tables and pages."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 10.0


logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Advance(Protocol):
    """Tell the bar that so much more is done, with a word on how it goes."""

    def __call__(self, amount: int = 1, *, note: str = "") -> None: ...


@contextmanager
def progress(what: str, *, total: int | None) -> Iterator[Advance]:
    """A bar on a terminal, of `total` units where that is known; elsewhere a line at most every ten
    seconds. Both go to stderr."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, note="")

            def advance_bar(amount: int = 1, *, note: str = "") -> None:
                bar.update(task, advance=amount, note=note)

            yield advance_bar
        return
    done, last = 0, time.monotonic()

    def advance_line(amount: int = 1, *, note: str = "") -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            logger.info(
                "%s: %s%s",
                what,
                f"{done:,} of {total:,}" if total else f"{done:,}",
                f", {note}" if note else "",
            )

    yield advance_line


def track(items: Iterable[Item], what: str, *, total: int | None) -> Iterator[Item]:
    """The items, with progress shown as they are taken."""
    with progress(what, total=total) as advance:
        for item in items:
            yield item
            advance()


def interval(ends: Sequence[float] | None) -> str:
    """`low to high` with three digits, or a dash where there is none."""
    return "-" if ends is None else "{:.3f} to {:.3f}".format(*ends)


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3f}"
