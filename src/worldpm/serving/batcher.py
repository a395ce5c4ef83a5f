"""A queue that fills rows up to a token budget with groups of many requests, oldest first."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from worldpm.model.encoder import EncodedGroup

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Compute = Callable[[Sequence[EncodedGroup]], list[list[float]]]
NONE_STARTS = "no process that computes rewards can start; see the server's log. Try again later."
SECONDS_TO_LOOK = 0.05
"""Time between two looks whether a worker is ready again."""
MOST_LOSSES = 2
"""Number of lost workers after which a row that was at them gets an error, not a third worker."""
MEMORY = 0.9
"""Weight of earlier rows or requests in a moving average."""

LARGEST_COMING = 16
"""A request that is being read counts with at most the queue's tokens divided by this number."""
LARGEST_EXPECTED = 2
"""A new request counts with at most the queue's tokens divided by this number."""


class BusyError(Exception):
    """The queue is full. `seconds`, at least 1, is the expected time until it is empty."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full. Try again in {seconds} s.")
        self.seconds = seconds


class ExpiredError(Exception):
    """The deadline passed before the work was done."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before the request was computed")


class TooLargeError(Exception):
    """A request has more tokens than the queue can hold."""


class WorkerLostError(Exception):
    """The process of a worker ended."""

    def __init__(self, message: str, *, by_row: bool) -> None:
        """`by_row` is whether it ended while it computed a row, which may be the cause."""
        super().__init__(message)
        self.by_row = by_row


class Worker:
    """Computes rows, one at a time: the model in this process, or `replicas.Replica`."""

    def __init__(self, compute: Compute) -> None:
        """Rows are computed by `compute`, which may raise `WorkerLostError`."""
        self.compute = compute

    @property
    def is_ready(self) -> bool:
        """Whether rows can be computed now."""
        return True

    @property
    def is_broken(self) -> bool:
        """Whether the last attempt to start failed."""
        return False

    def stop(self) -> None:
        """Begin to end the worker."""

    def close(self) -> None:
        """Release what the worker holds."""


# Compared by identity, because `deque.remove` must find exactly this group
@dataclass(eq=False)
class Waiting:
    """A group in the queue."""

    group: EncodedGroup
    deadline: float
    """Seconds on the monotonic clock."""
    entered: float = field(default_factory=time.monotonic)
    """Seconds on the monotonic clock."""
    queued: bool = True
    """False once the group is in a row or was removed."""
    losses: int = 0
    """Number of workers that were lost with the group."""
    done: asyncio.Future[list[float]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """The group's rewards, or the error that its request gets."""


class _Entry(NamedTuple):
    """A request that waits until the queue has room for it."""

    tokens: int
    turn: asyncio.Future[None]
    """Done once the request has its room in the queue."""


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of one computed row."""

    groups: int
    tokens: int
    budget_tokens: int
    """Tokens that the row could hold."""
    seconds: float
    """Time to compute the row."""
    waited_seconds: tuple[float, ...]
    """Time that each group spent in the queue."""


class Batcher:
    """Gives rows to workers, oldest group first. Each worker has a thread and computes one row at a
    time."""

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        row_tokens: int,
        queue_tokens: int,
        queue_wait: float = 0.0,
        on_row: Callable[[RowStatistics], None] = lambda _: None,
    ) -> None:
        """If the queue is full, requests wait for up to `queue_wait` seconds."""
        self._workers, self._on_row = workers, on_row
        self._row_tokens, self._queue_tokens = row_tokens, queue_tokens
        self._queue_wait = queue_wait
        self._queue: deque[Waiting] = deque()
        self._entries: deque[_Entry] = deque()
        self._request_tokens = 0.0
        self._arrived = asyncio.Event()
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="rows") for _ in workers]
        self._tokens_per_second = 0.0
        self.waiting_tokens = 0
        """Tokens in the queue, and of requests that are about to enter it."""

    @property
    def waiting(self) -> int:
        """Number of groups in the queue."""
        return len(self._queue)

    def seconds_to_wait(self) -> int:
        """Expected seconds until the queue is computed, at least 1."""
        if not self._tokens_per_second:
            return 1
        speed = len(self._workers) * self._tokens_per_second
        return max(1, math.ceil(self.waiting_tokens / speed))

    def seconds_until_room(self, tokens: float = 0.0, *, coming: int = 0) -> int | None:
        """Expected seconds until a request of about this number of tokens fits, after `coming`
        others of average size; None if it fits now."""
        if not self.waiting_tokens and not coming:
            return None
        # At most a small share of the queue, so that one client's large requests do not exclude
        # others
        average = min(self._request_tokens, self._queue_tokens / LARGEST_COMING)
        # The estimate may be wrong, so an almost empty queue tries every request
        expected = min(tokens, self._queue_tokens / LARGEST_EXPECTED)
        in_all = self.waiting_tokens + coming * average + expected
        return self.seconds_to_wait() if in_all > self._queue_tokens else None

    async def rewards(
        self, groups: Sequence[EncodedGroup], *, deadline: float
    ) -> list[list[float]]:
        """Rewards of each group's responses. The queue takes all groups of a request, or none.

        The deadline is on the monotonic clock.

        Raises:
            TooLargeError: If the groups do not fit into an empty queue.
            BusyError: If the groups do not fit into the queue in time.
            ExpiredError: If the deadline passed before the groups were computed.
            WorkerLostError: If no worker can start, or a group ended several workers.
        """
        if all(worker.is_broken for worker in self._workers):
            raise WorkerLostError(NONE_STARTS, by_row=False)
        tokens = sum(group.tokens for group in groups)
        await self._take_room(tokens, deadline)
        self._request_tokens = MEMORY * self._request_tokens + (1 - MEMORY) * tokens

        items = [Waiting(group, deadline) for group in groups]
        for item in items:
            # Read every exception, or asyncio warns about it; gather raises only the first
            item.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._queue.extend(items)
        # Wakes `run`
        self._arrived.set()

        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return list(await asyncio.gather(*(item.done for item in items)))
        except TimeoutError:
            raise ExpiredError from None
        finally:
            # Drop the remaining groups of a cancelled or failed request
            for item in items:
                item.done.cancel()
                if item.queued:
                    self._queue.remove(item)
                    self._dequeued(item)

    async def _take_room(self, tokens: int, deadline: float) -> None:
        """Count the tokens as waiting, once the queue has room for them.

        Raises:
            TooLargeError: If the queue can never hold the tokens.
            BusyError: If the queue has no room in time.
        """
        if tokens > self._queue_tokens:
            raise TooLargeError(
                f"the request has {tokens:,} tokens, but at most {self._queue_tokens:,} are"
                " accepted. Send less at once."
            )
        # Waiting requests come first, so that small ones cannot overtake a large one forever
        if not self._entries and self.waiting_tokens + tokens <= self._queue_tokens:
            self.waiting_tokens += tokens
            return
        if self._queue_wait <= 0:
            raise BusyError(self.seconds_to_wait())

        entry = _Entry(tokens, asyncio.get_running_loop().create_future())
        self._entries.append(entry)
        try:
            async with asyncio.timeout(min(self._queue_wait, deadline - time.monotonic())):
                await entry.turn
        except (TimeoutError, asyncio.CancelledError) as error:
            self._leave(entry)
            if isinstance(error, TimeoutError):
                raise BusyError(self.seconds_to_wait()) from None
            raise

    def _leave(self, entry: _Entry) -> None:
        """Remove an entry that no longer waits, and give its room to the next."""
        # The entry may have got its turn at the same moment; a cancelled wait cancels the future
        if entry.turn.done() and not entry.turn.cancelled():
            self.waiting_tokens -= entry.tokens
        elif entry in self._entries:
            self._entries.remove(entry)
        self._admit()

    def _admit(self) -> None:
        """Give room to waiting requests, in order."""
        while self._entries:
            first = self._entries[0]
            if self.waiting_tokens + first.tokens > self._queue_tokens:
                return
            self._entries.popleft()
            if not first.turn.done():
                self.waiting_tokens += first.tokens
                first.turn.set_result(None)

    @property
    def can_work(self) -> bool:
        """Whether a worker is ready."""
        return any(worker.is_ready for worker in self._workers)

    def between_rows(self, work: Callable[[], Result]) -> Result:
        """The result of other work with the first worker's model, which runs after its row.

        This blocks until the work is done, so do not call it from the event loop's thread.
        """
        # The rows' thread, so that the model does one thing at a time
        return self._threads[0].submit(work).result()

    async def run(self) -> None:
        """Compute rows until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for worker, thread in zip(self._workers, self._threads, strict=True):
                    tasks.create_task(self._work(worker, thread))
        finally:
            # All end at once, and then each is waited for
            for worker in self._workers:
                worker.stop()
            for worker in self._workers:
                worker.close()

    async def _work(self, worker: Worker, thread: ThreadPoolExecutor) -> None:
        """Compute one row after another with a worker."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            # A worker that is not ready leaves the row to others
            if not worker.is_ready:
                await asyncio.sleep(SECONDS_TO_LOOK)
                continue
            row = self._next_row()
            if row:
                started = time.monotonic()
                try:
                    outcomes = await loop.run_in_executor(
                        thread, self._outcomes, worker.compute, row
                    )
                except WorkerLostError as error:
                    self._put_back(row, error)
                    continue
                for item, outcome in zip(row, outcomes, strict=True):
                    _resolve(item.done, outcome)
                self._count(row, started)

            # Clear only here, after the last await, so that no new group is missed
            if not self._queue:
                self._arrived.clear()

    def _put_back(self, row: Sequence[Waiting], error: WorkerLostError) -> None:
        """Let another worker compute a row that is lost, unless the row may be the cause."""
        for item in reversed(row):
            item.losses += error.by_row
            if item.losses >= MOST_LOSSES:
                _resolve(item.done, error)
            elif not item.done.done():
                item.queued = True
                self._queue.appendleft(item)
                # Without `_take_room`: the group had its room before
                self.waiting_tokens += item.group.tokens
        self._arrived.set()

    def _next_row(self) -> list[Waiting]:
        """The oldest groups up to the budget. A group over the budget is a row alone, and so is one
        whose worker was lost, because it may be the cause."""
        row: list[Waiting] = []
        tokens = 0
        while self._queue and (not row or self._fits(tokens, self._queue[0])):
            item = self._queue.popleft()
            self._dequeued(item)
            row.append(item)
            tokens += item.group.tokens
            if item.losses:
                break
        return row

    def _fits(self, tokens: int, item: Waiting) -> bool:
        """Whether a row of this number of tokens takes one more group."""
        return not item.losses and tokens + item.group.tokens <= self._row_tokens

    def _dequeued(self, item: Waiting) -> None:
        item.queued = False
        self.waiting_tokens -= item.group.tokens
        self._admit()

    def _outcomes(self, compute: Compute, row: Sequence[Waiting]) -> list[list[float] | Exception]:
        """Rewards of each group, or its error.

        This runs in the model's thread, perhaps after other work there, so it first leaves out
        cancelled and expired groups.
        """
        now = time.monotonic()
        live = [item for item in row if not item.done.done() and now <= item.deadline]
        outcomes = dict(zip(map(id, live), self._computed(compute, live), strict=True))
        return [outcomes.get(id(item), ExpiredError()) for item in row]

    def _computed(self, compute: Compute, row: Sequence[Waiting]) -> list[list[float] | Exception]:
        """Rewards of each group. If the row fails, its groups are computed one by one."""
        if not row:
            return []
        try:
            return [*compute([item.group for item in row])]
        except WorkerLostError:
            raise
        # Catch any error, because the other requests of the row must be answered
        except Exception as error:
            logger.exception("a row of %d groups failed", len(row))
            if len(row) == 1:
                return [error]

        outcomes: list[list[float] | Exception] = []
        for item in row:
            outcomes += self._outcomes(compute, [item])
        return outcomes

    def _count(self, row: Sequence[Waiting], started: float) -> None:
        """Update the average speed, and report the row."""
        seconds = time.monotonic() - started
        tokens = sum(item.group.tokens for item in row)
        # The clock may not advance during a tiny row
        speed = tokens / max(seconds, 1e-9)
        if self._tokens_per_second:
            speed = MEMORY * self._tokens_per_second + (1 - MEMORY) * speed
        self._tokens_per_second = speed

        self._on_row(
            RowStatistics(
                groups=len(row),
                tokens=tokens,
                budget_tokens=self._row_tokens,
                seconds=seconds,
                waited_seconds=tuple(started - item.entered for item in row),
            )
        )


def _resolve(done: asyncio.Future[list[float]], outcome: list[float] | Exception) -> None:
    """Give a group its rewards or its error, unless its request was cancelled."""
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
