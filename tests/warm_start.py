"""Commands as processes that start without import time: each is forked from a server that has
imported everything once."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from worldpm import cli

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])


@dataclass(frozen=True)
class Streams:
    """Standard streams of a new process."""

    output: Path
    error: Path
    """May be the same file as `output`, as with `2>&1`."""
    input: Connection | None = None
    """The reading end of a pipe, as in a shell; None for no input."""

    def redirect(self) -> None:
        """Make them the standard streams of this process."""
        appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        for number, path in ((1, self.output), (2, self.error)):
            opened = os.open(path, appending)
            os.dup2(opened, number)
            os.close(opened)
        if self.input is not None:
            os.dup2(self.input.fileno(), 0)
            self.input.close()
            # multiprocessing has replaced sys.stdin
            sys.stdin = os.fdopen(0, closefd=False)


@dataclass(frozen=True)
class Command:
    """A command that runs. It has the methods of `subprocess.Popen` that tests use."""

    process: BaseProcess
    streams: Streams

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal if it still runs."""
        if self.process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end. Return the exit code, negative for a signal."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            # otherwise pytest would wait for it on exit
            self.kill()
            self.process.join()
            raise AssertionError("the command did not end")
        return code

    def communicate(self, timeout: float = 120) -> tuple[bytes, bytes]:
        """Wait for the end. Return standard output and standard error."""
        self.wait(timeout)
        return self.streams.output.read_bytes(), self.streams.error.read_bytes()

    def finish(self, *, seconds: float = 120) -> tuple[int, str]:
        """Wait for the end. Return the exit code, negative for a signal, and standard error."""
        code = self.wait(seconds)
        return code, self.streams.error.read_text(errors="replace")

    def stop_when(self, sign: Callable[[], bool], how: signal.Signals) -> tuple[int, str]:
        """Wait until `sign()` is true, send the signal, and wait for the end."""
        deadline = time.monotonic() + 120
        while self.process.is_alive() and not sign() and time.monotonic() < deadline:
            time.sleep(0.002)
        self.send_signal(how)
        return self.finish(seconds=60)


@dataclass(frozen=True)
class Surroundings:
    """Surroundings of a process other than its streams."""

    limit_bytes: int | None = None
    """Maximum size of a file, to simulate a full disk."""
    directory: Path = field(default_factory=Path.cwd)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def start(
    folder: Path, *words: object, streams: Streams | None = None, limit_bytes: int | None = None
) -> Command:
    """Start a command. Its output goes to files in a folder if no streams are given."""
    return start_main(
        cli.main,
        [str(word) for word in words],
        streams or streams_in(folder),
        Surroundings(limit_bytes),
    )


def streams_in(folder: Path) -> Streams:
    """New files in a folder for the output and the errors of a process."""
    name = time.monotonic_ns()
    return Streams(folder / f"{name}.stdout", folder / f"{name}.stderr")


def start_main(
    main: Callable[[list[str]], int | None],
    words: Sequence[str],
    streams: Streams,
    surroundings: Surroundings | None = None,
) -> Command:
    """Start a process that calls a function of a module and ends with the code that it returns."""
    arguments = (main, [*words], streams, surroundings or Surroundings())
    process = FORKS.Process(target=_run, args=arguments)
    process.start()
    return Command(process, streams)


def finished(folder: Path, *words: object, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a command that reads its input from a pipe. Return its exit code and output."""
    reading, writing = FORKS.Pipe(duplex=False)
    with writing:
        with reading:
            streams = replace(streams_in(folder), input=reading)
            command = start(folder, *words, streams=streams)
        os.write(writing.fileno(), stdin)
    output, error = command.communicate()
    return subprocess.CompletedProcess([*map(str, words)], command.wait(), output, error)


def _run(
    main: Callable[[list[str]], int | None],
    words: list[str],
    streams: Streams,
    surroundings: Surroundings,
) -> None:
    # a test run in the background ignores Ctrl-C, and its processes would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(surroundings.environment)
    os.chdir(surroundings.directory)
    streams.redirect()
    if surroundings.limit_bytes is not None:
        limits = (surroundings.limit_bytes, surroundings.limit_bytes)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    sys.exit(main(words))
