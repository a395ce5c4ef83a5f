"""Commands as processes that do not pay for their imports: each is forked from a server that has
imported everything once."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "tests.warm_start",
        "worldpm.forums.run",
        "worldpm.preferences.run",
        "worldpm.training.run",
        "worldpm.evaluation.run",
    ]
)


@dataclass(frozen=True)
class Command:
    """A command that runs."""

    process: BaseProcess
    error_path: Path
    """What it writes to standard error."""

    def finish(self, *, seconds: float = 120) -> tuple[int, str]:
        """Wait for its end: the exit code, negative for a signal, and what was said."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "the command did not end"
        return self.process.exitcode, self.error_path.read_text(errors="replace")

    def stop_when(self, sign: Callable[[], bool], how: signal.Signals) -> tuple[int, str]:
        """Wait for the sign, send the signal, and wait for the end."""
        deadline = time.monotonic() + 120
        while self.process.is_alive() and not sign() and time.monotonic() < deadline:
            time.sleep(0.002)
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, how)
        return self.finish(seconds=60)


def start(folder: Path, *words: object, limit_bytes: int | None = None) -> Command:
    """Start a command. Its output goes to files in a folder; `limit_bytes` is the size that a file
    may have, as on a full disk."""
    error_path = folder / f"{time.monotonic_ns()}.stderr"
    process = FORKS.Process(target=_run, args=([*map(str, words)], error_path, limit_bytes))
    process.start()
    return Command(process, error_path)


def _run(words: Sequence[str], error_path: Path, limit_bytes: int | None) -> None:
    from worldpm import cli

    # a suite in the background ignores Ctrl-C, and so would what it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    errors = os.open(error_path, os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    code = cli.main(list(words))
    sys.stderr.flush()
    os._exit(code)
