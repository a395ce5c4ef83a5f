"""Work handed to other processes, with its results in order and a bounded number of tasks on the
way."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from worldpm.errors import WorldPMError

TASKS_AHEAD = 3
"""For each process."""

LARGE_BYTES = 16 << 20

Task = TypeVar("Task")
Result = TypeVar("Result")

_work: Callable[[Any], Any]
"""What a process does with its tasks: sent once, not with each of them."""


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int
) -> Iterator[Result]:
    """The results of `work`, in the order of the tasks, by so many processes; 0 does the work in
    this one.

    What `work` is, takes and gives must be picklable. An error of a task is raised where its result
    would stand.

    Raises:
        WorldPMError: If a process was ended from outside.
    """
    if not workers:
        yield from map(work, tasks)
        return
    stream = iter(tasks)
    # spawned, because a fork of a process with threads may hang
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_keep, initargs=(work,)
    )
    done = False
    try:
        running = deque(pool.submit(_do, task) for task in islice(stream, workers * TASKS_AHEAD))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(_do, task) for task in islice(stream, 1))
        done = True
    except BrokenProcessPool as error:
        hint = (
            "perhaps for want of memory; ask for fewer --workers where the verb has them; run"
            " again, the same command goes on"
        )
        raise WorldPMError(f"a worker was ended from outside, {hint}") from error
    finally:
        for process in (
            [] if done else list(pool._processes.values())
        ):  # nobody waits for what it does
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _keep(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes of a terminal; the parent ends the others
    gc.set_threshold(100_000)  # a batch makes many objects that all live until it is done
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Where the parent is killed, nobody else would end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(task: Any) -> Any:
    return _work(task)


def cores() -> int:
    """Cores that this process may use; 0 where it is one, for then a second process is no help."""
    found = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return found if found > 1 else 0


def workers_for(size_bytes: int, asked: int | None) -> int:
    """How many are used: as many as asked, else one a core, or none where starting them would take
    longer than the work."""
    if asked is not None:
        return asked
    return cores() if size_bytes > LARGE_BYTES else 0
