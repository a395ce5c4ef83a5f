"""Ray actors that hold the model, for `worldpm score --engine ray`.

The driver reads the rows, sends them in the parts of a run without Ray, and writes the parts in
order. Only the driver needs the files, and a resumed run continues after the finished parts.
"""

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import msgspec
import torch

from worldpm import extras
from worldpm.errors import ConfigError, WorldPMError, first_line
from worldpm.options.score import ScoreOptions
from worldpm.scoring.confidence import Settings
from worldpm.scoring.output_lines import Chunk, PartCounts, write_lines
from worldpm.scoring.requests import Line
from worldpm.scoring.scorer import Scorer

PARTS_AHEAD = 2
"""Parts that each actor has at once: it computes one while the next travels."""
RETRIES = 3
"""How many times a part is sent again after its actor died."""


class Actors:
    """Models on the cluster, and the parts that are computed."""

    def __init__(self, options: ScoreOptions, settings: Settings | None) -> None:
        """Join the cluster of RAY_ADDRESS, or start one on this machine, and load the models.

        Raises:
            ConfigError: If Ray is not installed, or the cluster has not enough devices.
        """
        self._ray = extras.load("ray", extra="ray", needed_by="--engine ray")
        if not self._ray.is_initialized():
            # Ray reports usage to its makers unless this is set
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            self._ray.init(log_to_driver=False, logging_level="error")

        everything = msgspec.convert(self._ray.nodes(), list[_Node])
        nodes = [node.resources for node in everything if node.alive]
        gpus = 0 if options.device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
        processors = [int(node.get("CPU", 0)) for node in nodes]
        count = options.actors or gpus or len(nodes)
        if count > (gpus or sum(processors)):
            raise ConfigError(
                f"--actors {count}: the cluster has {gpus or sum(processors)}"
                f" {'GPUs' if gpus else 'CPU cores'}. Use fewer."
            )
        cores = cores_of_an_actor(processors, count)

        # Ray starts an actor again after its process or its machine ended
        remote = self._ray.remote(
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else cores,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )(_Actor)
        threads = None if gpus else cores
        self._actors = [remote.remote(options, settings, threads) for _ in range(count)]
        self._submitted = 0
        self._results: dict[int, Any] = {}
        """References to results by the identity of the chunk."""

    def ahead(self, chunks: Iterator[Chunk], is_done: Callable[[int], bool]) -> Iterator[Chunk]:
        """The chunks, in order. Those ahead are being computed, except finished parts."""
        pending: deque[Chunk] = deque()
        for number, chunk in enumerate(chunks):
            if chunk.lines and not is_done(number):
                self._results[id(chunk)] = self._submit(chunk)
            pending.append(chunk)
            if len(pending) > PARTS_AHEAD * len(self._actors):
                yield pending.popleft()
        yield from pending

    def write(self, chunk: Chunk, target: IO[bytes]) -> PartCounts:
        """Write the lines of a chunk to a file.

        Raises:
            DataError: If a line is bad. The lines before it are written.
            WorldPMError: If the actors died with this part again and again.
        """
        counts = PartCounts()
        if chunk.lines:
            # A finished part that was damaged since then is computed only now
            reference = self._results.pop(id(chunk), None)
            content, counts = self._get(reference or self._submit(chunk))
            target.write(content)
        if chunk.failure:
            raise chunk.failure
        return counts

    def _submit(self, chunk: Chunk) -> Any:
        """Let the next actor compute a part."""
        self._submitted += 1
        actor = self._actors[self._submitted % len(self._actors)]
        return actor.lines.remote(chunk.lines)

    def _get(self, reference: Any) -> tuple[bytes, PartCounts]:
        try:
            result: tuple[bytes, PartCounts] | WorldPMError = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise WorldPMError(
                f"--engine ray: {first_line(error)}. Run the command again to continue."
            ) from error
        if isinstance(result, WorldPMError):
            raise result
        return result


class _Node(msgspec.Struct, rename="pascal"):
    """A machine of the cluster, in Ray's form."""

    alive: bool
    resources: dict[str, float]


def cores_of_an_actor(processors: Sequence[int], count: int) -> int:
    """The most cores that each of `count` actors can have, if each must fit on a node."""
    for cores in range(max(processors), 1, -1):
        if sum(node // cores for node in processors) >= count:
            return cores
    return 1


class _Actor:
    """A model on one device of the cluster."""

    def __init__(
        self, options: ScoreOptions, settings: Settings | None, threads: int | None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        # Ray shows an actor only its own GPU
        self._scorer, self._settings = Scorer.of(options.model, options), settings

    def lines(self, lines: Sequence[Line]) -> tuple[bytes, PartCounts] | WorldPMError:
        content, chunk = io.BytesIO(), Chunk(list(lines))
        try:
            counts = write_lines(self._scorer, chunk, content, settings=self._settings)
        # Return the error, because Ray logs the exceptions of tasks whose results are not read
        except WorldPMError as error:
            return error
        return content.getvalue(), counts
