"""Processes that hold the model, one per device, behind the queue of one server.

The server's process reads texts, keeps the queue and writes the decision log, so limits, drift,
metrics and the log's chain are those of one server. Replicas only turn tokens into rewards: a
replica that dies takes no decision with it.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch

from worldpm.errors import ConfigError, WorldPMError
from worldpm.model import sources
from worldpm.model.encoder import EncodedGroup
from worldpm.options.serve import ServeOptions
from worldpm.scoring import scorer as scoring
from worldpm.scoring.scorer import Scorer
from worldpm.serving.batcher import Worker, WorkerLostError
from worldpm.storage.workers import cores

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0
"""Most seconds between two attempts to start a replica."""
CLOSING_SECONDS = 5.0
"""Time for a replica to end by itself."""


class Loaded(NamedTuple):
    """The first message of a replica."""

    dtype: str
    """Compute type of its model."""
    sha256: str
    """Fingerprint of the model's files."""


@dataclass(frozen=True)
class Failure:
    """A replica's reply instead of rewards, or instead of `Loaded`."""

    error: Exception


class Replica(Worker):
    """A process with the model on one device. A thread starts it again whenever it ends."""

    def __init__(self, number: int, options: ServeOptions) -> None:
        """Start the process, which loads the model; `wait` waits for it."""
        super().__init__(self._computed)
        self._number, self._options = number, options
        self._connection, self._process = self._start()
        self._loaded: Loaded | None = None
        self._is_ready = self._is_broken = False
        self._closing = threading.Event()
        self.restarts = 0
        """How many times the process was started again."""

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded, and the process lives."""
        return self._is_ready

    @property
    def is_broken(self) -> bool:
        """Whether the last attempt to start failed."""
        return self._is_broken

    @property
    def pid(self) -> int | None:
        """The id of the process."""
        return self._process.pid

    def wait(self) -> Loaded:
        """Wait until the model is loaded. From then on the process is watched.

        Raises:
            WorldPMError: If the model cannot be loaded.
        """
        self._loaded = self._wait()
        self._is_ready = True
        threading.Thread(
            target=self._watch, name=f"watch-{self._process.name}", daemon=True
        ).start()
        return self._loaded

    def stop(self) -> None:
        """Let the process end, without waiting for it."""
        self._closing.set()
        self._is_ready = False
        # The replica ends when its connection ends
        self._connection.close()

    def close(self) -> None:
        """End the process."""
        self.stop()
        self._process.join(CLOSING_SECONDS)
        self._process.kill()
        self._process.join()

    def _wait(self) -> Loaded:
        try:
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorldPMError(
                f"replica {self._number} ended while it loaded the model, perhaps because memory"
                " ran out. Use fewer --replicas."
            ) from error
        if isinstance(message, Failure):
            raise message.error
        assert isinstance(message, Loaded)
        # Replies and the decision log name the model of the start
        if self._loaded is not None and message.sha256 != self._loaded.sha256:
            raise WorldPMError(
                f"{self._options.model}: its files changed since the server started. Restart the"
                " server to use them."
            )
        return message

    def _watch(self) -> None:
        """Start the process again whenever it ends, until the server stops."""
        while True:
            self._process.join()
            self._is_ready = False
            if self._closing.is_set():
                return
            logger.warning("replica %d ended, and is started again", self._number)
            self._restart()

    def _restart(self) -> None:
        """Start a new process, and wait until it is ready. Retry until the server stops."""
        pause = 1.0
        while not self._closing.is_set():
            self.restarts += 1
            try:
                self._connection.close()
                self._connection, self._process = self._start()
                self._wait()
                self._is_ready, self._is_broken = True, False
                return
            # Any error: a server with other replicas goes on
            except Exception:
                logger.exception("replica %d does not start", self._number)
                self._is_broken = True
                self._process.kill()
                self._process.join()
            self._closing.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _computed(self, groups: Sequence[EncodedGroup]) -> list[list[float]]:
        """Rewards of groups.

        Raises:
            WorkerLostError: If the process ended.
        """
        connection = self._connection
        was_alive = self._process.is_alive()
        try:
            connection.send(groups)
            reply = connection.recv()
        except (EOFError, OSError) as error:
            self._is_ready = False
            raise WorkerLostError(
                "the process that computes rewards ended, and again with another one. Try again"
                " later.",
                by_row=was_alive,
            ) from error
        if isinstance(reply, Failure):
            raise reply.error
        rewards: list[list[float]] = reply
        return rewards

    def _start(self) -> tuple[Connection, BaseProcess]:
        # Spawned, because CUDA does not work in a fork
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(theirs, self._number, self._options),
            name=f"replica-{self._number}",
            daemon=True,
        )
        process.start()
        # The only other end is the replica's, so its death ends the connection
        theirs.close()
        return ours, process


def start_replicas(options: ServeOptions) -> tuple[list[Replica], Loaded]:
    """Start the replicas of --replicas, and wait until all are ready.

    Raises:
        WorldPMError: If a replica cannot load the model.
    """
    replicas = [Replica(number, options) for number in range(options.replicas)]
    try:
        loaded = [replica.wait() for replica in replicas]
    except BaseException:
        for replica in replicas:
            replica.close()
        raise
    logger.info("%d replicas are ready", len(replicas))
    return replicas, loaded[0]


def device_name(options: ServeOptions, number: int) -> str | None:
    """The device of a replica: CUDA's GPUs in turn, or else --device."""
    if options.device not in (None, "cuda") or not torch.cuda.is_available():
        return options.device
    return f"cuda:{number % torch.cuda.device_count()}"


def _serve(connection: Connection, number: int, options: ServeOptions) -> None:
    """Load the model, and reply to each list of groups until the server closes the connection."""
    # Ctrl-C reaches all processes of a terminal. The server answers open requests first
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        device = device_name(options, number)
        if device is None or device == "cpu":
            torch.set_num_threads(max(1, (cores() or 1) // options.replicas))
        source = sources.of(options.model, options)
        sha256 = sources.fingerprint(source).sha256
        scorer = Scorer.of(source, replace(options, device=device))
        # The first use determines whether prompts are shared
        scorer.rewards("Is anybody there?", ["Yes."])
    except Exception as error:
        connection.send(Failure(_portable(error)))
        return

    connection.send(Loaded(scorer.precision, sha256))
    compute = partial(scoring.rewards_of, scorer.model, row_tokens=options.row_tokens)
    try:
        while True:
            connection.send(_reply(compute, connection.recv()))
    # The server ended or closed the connection
    except (EOFError, OSError):
        return


def _reply(
    compute: "partial[list[list[float]]]", groups: Sequence[EncodedGroup]
) -> list[list[float]] | Failure:
    try:
        return compute(groups)
    except Exception as error:
        return Failure(_portable(error))


def _portable(error: Exception) -> Exception:
    """The error in a form that other processes can read: some errors cannot be pickled."""
    if isinstance(error, ConfigError):
        return ConfigError(str(error))
    message = str(error)
    return WorldPMError(
        message if isinstance(error, WorldPMError) else f"{type(error).__name__}: {message}"
    )
