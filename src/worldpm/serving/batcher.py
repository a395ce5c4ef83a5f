"""Groups of many requests become rows filled to a token budget, the oldest first."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from worldpm.model.encoder import EncodedGroup

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Compute = Callable[[Sequence[EncodedGroup]], list[list[float]]]
SPEED_MEMORY = 0.9
"""What of the known speed remains after each row."""


class BusyError(Exception):
    """The queue is full; `seconds` until what waits now is done, at least 1."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class ExpiredError(Exception):
    """The deadline passed before the work was done."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before it was computed")


class TooLargeError(Exception):
    """More than the queue could ever hold."""


@dataclass(eq=False)
class Waiting:
    """A group in the queue."""

    group: EncodedGroup
    deadline: float
    """In seconds of the monotonic clock."""
    entered: float = field(default_factory=time.monotonic)
    queued: bool = True
    done: asyncio.Future[list[float]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(frozen=True)
class Ran:
    """What one row was, for who counts."""

    groups: int
    tokens: int
    budget_tokens: int
    seconds: float
    waited_seconds: tuple[float, ...]


class Batcher:
    """One row after another in a thread of its own; who waits longest goes first."""

    def __init__(
        self,
        compute: Compute,
        *,
        row_tokens: int,
        queue_tokens: int,
        on_row: Callable[[Ran], None] = lambda _: None,
    ) -> None:
        self._compute, self._on_row = compute, on_row
        self._row_tokens, self._queue_tokens = row_tokens, queue_tokens
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._tokens_per_second = 0.0
        self.waiting_tokens = 0

    @property
    def waiting(self) -> int:
        """Groups in the queue."""
        return len(self._queue)

    def seconds_to_wait(self) -> int:
        """Until what waits now is computed, at the speed of late, at least 1."""
        return (
            max(1, math.ceil(self.waiting_tokens / self._tokens_per_second))
            if self._tokens_per_second
            else 1
        )

    async def rewards(
        self, groups: Sequence[EncodedGroup], *, deadline: float
    ) -> list[list[float]]:
        """Rewards of each group's responses; all of a request's groups get in, or none.

        Raises:
            TooLargeError: If they would not fit into an empty queue.
            BusyError: If they do not fit into the queue now.
            ExpiredError: If the deadline, on the monotonic clock, passed before they were computed.
        """
        tokens = sum(group.tokens for group in groups)
        if tokens > self._queue_tokens:
            raise TooLargeError(
                f"{tokens:,} tokens in one request; at most {self._queue_tokens:,} are taken: send"
                " less at once"
            )
        if self.waiting_tokens + tokens > self._queue_tokens:
            raise BusyError(self.seconds_to_wait())
        items = [Waiting(group, deadline) for group in groups]
        for item in items:
            item.done.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # only the first of a request's is raised
        self._queue.extend(items)
        self.waiting_tokens += tokens
        self._arrived.set()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return list(await asyncio.gather(*(item.done for item in items)))
        except TimeoutError:
            raise ExpiredError from None
        finally:  # who left, or failed in part, leaves nothing to compute
            for item in items:
                item.done.cancel()
                if item.queued:
                    self._queue.remove(item)
                    self._left(item)

    def between_rows(self, work: Callable[[], Result]) -> Result:
        """Other work with the model, for which another thread waits: it comes after the row that
        runs, and before the next one."""
        return self._thread.submit(work).result()

    async def run(self) -> None:
        """Compute what arrives, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if row := self._next_row():
                started = time.monotonic()
                for item, answer in zip(
                    row, await loop.run_in_executor(self._thread, self._answers, row), strict=True
                ):
                    if not item.done.done():
                        (
                            item.done.set_exception(answer)
                            if isinstance(answer, Exception)
                            else item.done.set_result(answer)
                        )
                self._count(row, started)
            if not self._queue:
                self._arrived.clear()

    def _next_row(self) -> list[Waiting]:
        """The oldest groups, up to the budget; one that is larger than it goes alone."""
        row: list[Waiting] = []
        tokens = 0
        while self._queue and (not row or tokens + self._queue[0].group.tokens <= self._row_tokens):
            item = self._queue.popleft()
            self._left(item)
            row.append(item)
            tokens += item.group.tokens
        return row

    def _left(self, item: Waiting) -> None:
        item.queued = False
        self.waiting_tokens -= item.group.tokens

    def _answers(self, row: Sequence[Waiting]) -> list[list[float] | Exception]:
        """Rewards of each, or what went wrong; where a row fails, its groups run alone, so that one
        harms no other.

        This runs in the model's thread, maybe after other work there: what nobody waits for any
        more is not computed.
        """
        wanted = [
            item for item in row if not item.done.done() and time.monotonic() <= item.deadline
        ]
        if len(wanted) < len(row):
            found = dict(zip(map(id, wanted), self._answers(wanted) if wanted else [], strict=True))
            return [found.get(id(item), ExpiredError()) for item in row]
        try:
            return [*self._compute([item.group for item in row])]
        except Exception as error:  # whatever it is, the other requests must be answered
            logger.exception("a row of %d groups failed", len(row))
            if len(row) == 1:
                return [error]
            return [answer for item in row for answer in self._answers([item])]

    def _count(self, row: Sequence[Waiting], started: float) -> None:
        seconds = time.monotonic() - started
        tokens = sum(item.group.tokens for item in row)
        speed = tokens / max(seconds, 1e-9)
        self._tokens_per_second = (
            SPEED_MEMORY * self._tokens_per_second + (1 - SPEED_MEMORY) * speed
            if self._tokens_per_second
            else speed
        )
        self._on_row(
            Ran(
                len(row),
                tokens,
                self._row_tokens,
                seconds,
                tuple(started - item.entered for item in row),
            )
        )
