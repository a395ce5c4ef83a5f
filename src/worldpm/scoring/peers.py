"""Processes that share the work of a verb, as `torchrun` or `accelerate launch` start them.

Work has fixed parts, the same for any number of processes. Each process builds its parts in the
output folder, which all of them reach, and the first joins them.
"""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")

PATIENCE = timedelta(days=7)
"""How long processes wait for the slowest one."""


def launched() -> int:
    """The number of processes that a launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Peers:
    """The processes of this run."""

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """Number of processes."""

    @classmethod
    def here(cls) -> "Peers":
        """The processes that a launcher started, connected; one process without a launcher."""
        if launched() < 2:
            return cls()
        if not distributed.is_initialized():
            # they only wait for each other, so no fast network is needed
            distributed.init_process_group("gloo", timeout=PATIENCE)
        if torch.cuda.is_available():
            torch.cuda.set_device(
                int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
            )

        peers = cls(distributed.get_rank(), distributed.get_world_size())
        if not peers.is_first:
            logging.getLogger().setLevel(logging.WARNING)
        return peers

    @property
    def is_first(self) -> bool:
        """Whether this process writes the output."""
        return self.rank == 0

    def has(self, part: int) -> bool:
        """Whether this process builds a part, by its number."""
        return part % self.count == self.rank

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def of_first(self, value: Value) -> Value:
        """The value of the first process, in all processes; those of others have no effect."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]
