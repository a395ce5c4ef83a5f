"""Work in other processes, with results in order and a bounded number of pending tasks."""

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

import psutil

from worldpm.errors import WorldPMError

TASKS_AHEAD = 3
"""Pending tasks for each process: one is computed, the others wait."""
LARGE_BYTES = 16 << 20
"""Above this size of the input, processes save more time than their start takes."""
GARBAGE_THRESHOLD = 100_000
"""New objects between two garbage collections of a worker; Python's default is 700."""

Task = TypeVar("Task")
Result = TypeVar("Result")

_work: Callable[[Any], Any]
"""The function of a worker process, which is sent once, not with every task."""


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int
) -> Iterator[Result]:
    """The results of `work` in the order of the tasks, computed in `workers` processes; with 0, in
    this process.

    `work`, its tasks and its results must be picklable. The error of a task is raised in place of
    its result.

    Raises:
        WorldPMError: If a worker process was killed.
    """
    if not workers:
        yield from map(work, tasks)
        return

    stream = iter(tasks)
    # Spawned, because a fork of a process with threads may deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_prepare, initargs=(work,))
    done = False

    try:
        running = deque(pool.submit(_do, task) for task in islice(stream, workers * TASKS_AHEAD))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(_do, task) for task in islice(stream, 1))
        done = True
    except BrokenProcessPool as error:
        raise WorldPMError(
            "a worker process was killed, perhaps because memory ran out. Run the command again to"
            " continue, with fewer --workers if the verb has this option."
        ) from error
    finally:
        # After an error or an early close the results are not needed, so the workers are ended.
        # `shutdown` alone would wait for their current tasks.
        if not done:
            for process in list(pool._processes.values()):
                process.terminate()
        pool.shutdown(cancel_futures=True)


def _prepare(work: Callable[[Any], Any]) -> None:
    """Prepare a worker process."""
    global _work
    _work = work

    # Ctrl-C reaches all processes of a terminal. Only the parent reacts, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A batch makes many objects that live until it is done, and each collection visits them all.
    gc.set_threshold(GARBAGE_THRESHOLD)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent and end this process: a killed parent cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(task: Any) -> Any:
    return _work(task)


def cores() -> int:
    """Usable cores, or 0 if there is only one: a second process would not help."""
    process = psutil.Process()
    # macOS binds no process to cores
    if hasattr(process, "cpu_affinity"):
        count = len(process.cpu_affinity())
    else:
        count = psutil.cpu_count() or 1
    return count if count > 1 else 0


def workers_for(size_bytes: int, workers: int | None) -> int:
    """The number of processes for an input: `workers` if set, else one per core for a large input.
    It is 0 for a small input, because starting processes would take longer than the work."""
    if workers is not None:
        return workers
    return cores() if size_bytes > LARGE_BYTES else 0
