"""The state of a run that a resume needs: weights, optimizer and random state, in one file whatever
the processes.

The tensors are gathered under the model's own names, so a run may go on with another number of
processes or another way of sharding. A state is written aside, hashed, and named by its note last;
a damaged one is skipped. The note is

    {"sha256": "5d...", "seen": {"step": 40, "groups": 812, "pairs": 2560, ..., "best": {...}}}
"""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from worldpm.errors import DataError
from worldpm.storage.folders import sync_file
from worldpm.storage.json_files import read_record, to_json, write_atomically
from worldpm.storage.manifest import sha256
from worldpm.training import zero
from worldpm.training.step_metrics import Position, ValidationMetrics
from worldpm.training.zero import Tensors

logger = logging.getLogger(__name__)

STATES_ON_DISK = 2
"""The older one is a reserve, should the disk have lost part of the newer."""
TENSORS, NOTE = "state.safetensors", "state.json"
MODEL, OPTIMIZER, BEST, RANDOM = "model/", "optimizer/", "best/", "random/torch"
"""Prefixes of the tensors in a state, and the name of torch's random state."""


@dataclass(frozen=True)
class Totals:
    """How far a run has come; its position in the data is a function of `step`."""

    step: int = 0
    """Optimizer steps."""
    groups: int = 0
    """Groups, repeated ones counted each time."""
    pairs: int = 0
    """Preference pairs of these groups."""
    effective_pairs: float = 0.0
    """Sum of the weights of these pairs, not rounded."""
    tokens: int = 0
    """Tokens of these groups, a prompt counted once for all its responses."""
    flops: int = 0
    """Operations of forward and backward: a prompt once where the model shares it, and else once
    for each response."""
    best: ValidationMetrics | None = None
    """The validation of least loss; None before the first."""

    def plus(
        self, *, groups: int, pairs: int, effective_pairs: float, tokens: int, flops: int
    ) -> "Totals":
        """The totals after one more step."""
        return replace(
            self,
            step=self.step + 1,
            groups=self.groups + groups,
            pairs=self.pairs + pairs,
            effective_pairs=self.effective_pairs + effective_pairs,
            tokens=self.tokens + tokens,
            flops=self.flops + flops,
        )

    @property
    def position(self) -> Position:
        """The totals as the rows of `metrics.jsonl` hold them."""
        return Position(
            step=self.step,
            groups_seen=self.groups,
            pairs_seen=self.pairs,
            effective_pairs_seen=round(self.effective_pairs, 6),
            tokens_seen=self.tokens,
            flops_seen=self.flops,
        )


@dataclass(frozen=True)
class Note:
    """The note beside the tensors of a state, written after them."""

    sha256: str
    """Of the file of tensors."""
    seen: Totals
    """How far the run had come."""


class SavedState(NamedTuple):
    """A state that the model and the optimizer were given."""

    totals: Totals
    best_weights: Tensors
    """Trained weights of least validation loss, in the first process; empty elsewhere, or before
    the first validation."""


def weights_of(model: nn.Module, *, trained_only: bool = False) -> Tensors:
    """All weights, or the trained ones, in the memory of the first process; every process must
    call, and the others get nothing."""
    if _is_engine(model):
        return zero.weights_of(model, trained_only=trained_only)

    _reshard(model)
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only
    )
    weights = get_model_state_dict(model, options=options)
    # a state dict of one process is the parameters themselves, which the next step changes
    return {name: torch.as_tensor(tensor).clone() for name, tensor in weights.items()}


def _is_engine(model: nn.Module) -> bool:
    """Whether the model is DeepSpeed's engine, which holds weights and moments in partitions."""
    return hasattr(model, "zero_optimization_stage")


def _moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensors]:
    """The optimizer's moments, by the names of the weights."""
    if _is_engine(model):
        return zero.moments_of(model)

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    return cast(dict[str, Tensors], state.get("state", {}))


def _put_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensors]
) -> None:
    """Give the optimizer the moments that the first process holds."""
    if _is_engine(model):
        zero.put_moments(model, broadcast_object_list([moments])[0])
        return

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # the groups of parameters stay those of this run; only the moments are replaced
    state: dict[str, Any] = {**get_optimizer_state_dict(model, optimizer, options=options)}
    state["state"] = moments
    set_optimizer_state_dict(
        model, optimizer, state if moments else {}, options=_from_first_process(strict=True)
    )


def _reshard(model: nn.Module) -> None:
    """FSDP leaves outer weights gathered after a forward without gradients, and the optimizer does
    not know the gathered ones."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def put_weights(model: nn.Module, weights: Tensors) -> None:
    """Give the model the weights that the first process holds; weights without a name in it stay as
    they are."""
    if _is_engine(model):
        zero.put_weights(model, broadcast_object_list([weights])[0])
        return

    _reshard(model)
    # not strict: a state holds no frozen weights
    set_model_state_dict(model, dict(weights), options=_from_first_process(strict=False))


def _from_first_process(*, strict: bool) -> StateDictOptions:
    """Complete tensors in the first process, sent to the others where there are any."""
    many = torch.distributed.is_available() and torch.distributed.is_initialized()
    return StateDictOptions(
        full_state_dict=True, cpu_offload=not many, broadcast_from_rank0=many, strict=strict
    )


def save(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: SavedState,
) -> None:
    """Write the state after a step, and remove all but the last few; every process must call."""
    weights = weights_of(model, trained_only=True)
    moments = _moments_of(model, optimizer)
    if not accelerator.is_main_process:
        return

    tensors = _with_prefix(MODEL, weights)
    for name, values in moments.items():
        for moment, value in values.items():
            tensors[f"{OPTIMIZER}{name}/{moment}"] = torch.as_tensor(value)
    tensors |= _with_prefix(BEST, state.best_weights)
    tensors[RANDOM] = torch.get_rng_state()

    _write(folder / f"{state.totals.step:08d}", tensors, state.totals)
    _remove_old(folder, state.totals.step)


def _write(target: Path, tensors: Tensors, totals: Totals) -> None:
    """Write one state; its note comes last, so a state with a note is complete."""
    target.mkdir(parents=True, exist_ok=True)
    # an earlier run may have stopped at the same step
    (target / NOTE).unlink(missing_ok=True)
    aside = target / f"{TENSORS}.partial"
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside)
    # the hash shows later whether the disk kept the whole file
    digest = sync_file(aside)
    aside.replace(target / TENSORS)
    write_atomically(target / NOTE, to_json(Note(digest, totals)))


def _remove_old(folder: Path, step: int) -> None:
    """Remove all states but the last complete ones up to a step."""
    # an incomplete one of a later step, from before a restart, would hide the states of this run
    complete = [
        state
        for state in sorted(folder.iterdir())
        if int(state.name) <= step and (state / NOTE).is_file()
    ]

    for state in set(folder.iterdir()) - set(complete[-STATES_ON_DISK:]):
        shutil.rmtree(state)


def load_last(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> SavedState | None:
    """Give model and optimizer the last complete state; None where there is none. Every process
    must call."""
    # only the first process reads; the others get the tensors from it
    totals, tensors = _read_last(folder) if accelerator.is_main_process else (None, {})
    (totals,) = broadcast_object_list([totals])
    if totals is None:
        return None

    put_weights(model, _without_prefix(MODEL, tensors))
    moments: dict[str, Tensors] = {}
    for name, tensor in _without_prefix(OPTIMIZER, tensors).items():
        parameter, _, moment = name.rpartition("/")
        moments.setdefault(parameter, {})[moment] = tensor
    _put_moments(model, optimizer, moments)

    # only the first process read them
    if tensors:
        torch.set_rng_state(tensors[RANDOM])
    return SavedState(totals, _without_prefix(BEST, tensors))


def _read_last(folder: Path) -> tuple[Totals | None, Tensors]:
    """The last state whose file has the hash of its note; None where there is none."""
    for state in sorted(folder.glob("*"), reverse=True):
        try:
            note = read_record(state / NOTE, Note)
            digest = sha256(state / TENSORS)
        except (OSError, DataError):
            logger.warning("%s: incomplete, so not used", state)
            continue

        if digest == note.sha256:
            return note.seen, load_file(state / TENSORS)
        logger.warning("%s: not as it was saved, so not used", state)
    return None, {}


def _with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
