"""The saved state from which a run resumes: weights, optimizer and random state, in one file for
all processes.

The file holds complete tensors under the model's parameter names. A run can therefore resume with
another number of processes or another way of sharding. A state is written to a partial file, hashed
and renamed; its note is written last. Damaged states are skipped. The note is

    {"sha256": "5d...", "seen": {"step": 40, "groups": 812, "pairs": 2560, ..., "best": {...}}}
"""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
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
"""Two, so that a run can use the older state if the newer one is damaged."""
TENSORS, NOTE = "state.safetensors", "state.json"
MODEL, OPTIMIZER, BEST, RANDOM = "model/", "optimizer/", "best/", "random/torch"
"""Prefixes of the tensors in a state, and the name of torch's random state."""


@dataclass(frozen=True)
class Totals:
    """Totals of a run so far. Its position in the data is a function of `step`."""

    step: int = 0
    """Number of optimizer steps."""
    groups: int = 0
    """Number of groups; repeated groups count each time."""
    pairs: int = 0
    """Preference pairs of these groups."""
    effective_pairs: float = 0.0
    """Sum of the weights of these pairs, not rounded."""
    tokens: int = 0
    """Tokens of these groups; a prompt counts once for all its responses."""
    flops: int = 0
    """Operations of forward and backward passes. A prompt counts once if the model shares it, and
    otherwise once for each response."""
    best: ValidationMetrics | None = None
    """The validation of least loss; None before the first validation."""

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


class Note(msgspec.Struct, frozen=True):
    """The note beside the tensors of a state, written after them."""

    sha256: str
    """Hash of the file of tensors."""
    totals: Totals = msgspec.field(name="seen")
    """Totals of the run up to this state."""


class SavedState(NamedTuple):
    """The parts of a state that are not in the model and the optimizer."""

    totals: Totals
    best_weights: Tensors
    """Trained weights of least validation loss. Empty before the first validation, and in all
    processes but the first."""


def weights_of(model: nn.Module, *, trained_only: bool = False) -> Tensors:
    """All weights, or only the trained ones, in the memory of the first process. Every process must
    call this; the others get nothing."""
    if _is_engine(model):
        return zero.weights_of(model, trained_only=trained_only)

    _reshard(model)
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only
    )
    weights = get_model_state_dict(model, options=options)
    # in a single process, the state dict holds the parameters themselves, and the next step would
    # change them
    return {name: torch.as_tensor(tensor).clone() for name, tensor in weights.items()}


def _is_engine(model: nn.Module) -> bool:
    """Whether the model is a DeepSpeed engine, which holds weights and moments in partitions."""
    return hasattr(model, "zero_optimization_stage")


def _moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The optimizer's moments, by names of weights."""
    if _is_engine(model):
        return zero.moments_of(model)

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    return cast(dict[str, dict[str, Any]], state.get("state", {}))


def _put_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, dict[str, Any]]
) -> None:
    """Load the moments that the first process holds into the optimizer."""
    if _is_engine(model):
        zero.put_moments(model, broadcast_object_list([moments])[0])
        return

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # replace only the moments, and keep this run's groups of parameters
    state: dict[str, Any] = {**get_optimizer_state_dict(model, optimizer, options=options)}
    state["state"] = moments
    set_optimizer_state_dict(
        model, optimizer, state if moments else {}, options=_from_first_process(strict=True)
    )


def _reshard(model: nn.Module) -> None:
    """Shard FSDP's outer weights again. They stay gathered after a forward pass without gradients,
    and the optimizer does not know the gathered tensors."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def put_weights(model: nn.Module, weights: Tensors) -> None:
    """Load the weights that the first process holds into the model. Weights that are not in
    `weights` stay unchanged."""
    if _is_engine(model):
        zero.put_weights(model, broadcast_object_list([weights])[0])
        return

    _reshard(model)
    # not strict, because a state holds no frozen weights
    set_model_state_dict(model, dict(weights), options=_from_first_process(strict=False))


def _from_first_process(*, strict: bool) -> StateDictOptions:
    """Options for complete tensors in the first process, which are sent to any other processes."""
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
    """Write the state after a step, and remove old states. Every process must call this."""
    weights = weights_of(model, trained_only=True)
    moments = _moments_of(model, optimizer)
    if not accelerator.is_main_process:
        return

    tensors = _with_prefix(MODEL, weights)
    for name, values in moments.items():
        for moment, value in values.items():
            # bitsandbytes packs moments in 8 bits, with their scales, in a dictionary
            packed = isinstance(value, dict)
            parts = {f"/{key}": part for key, part in value.items()} if packed else {"": value}
            for key, part in parts.items():
                # Weights may share a table of scales, which a file cannot
                tensors[f"{OPTIMIZER}{name}/{moment}{key}"] = torch.as_tensor(part).clone()
    tensors |= _with_prefix(BEST, state.best_weights)
    tensors[RANDOM] = torch.get_rng_state()

    _write(folder / f"{state.totals.step:08d}", tensors, state.totals)
    _remove_old(folder, state.totals.step)


def _write(target: Path, tensors: Tensors, totals: Totals) -> None:
    """Write one state, and its note last, so that a state with a note is complete."""
    target.mkdir(parents=True, exist_ok=True)
    # the run may have stopped at this step before
    (target / NOTE).unlink(missing_ok=True)
    aside = target / f"{TENSORS}.partial"
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside)
    # a later run checks the hash, to find damaged files
    digest = sync_file(aside)
    aside.replace(target / TENSORS)
    write_atomically(target / NOTE, to_json(Note(digest, totals)))


def _remove_old(folder: Path, step: int) -> None:
    """Remove all states except the last complete ones up to a step."""
    # an incomplete state of a later step, from before a restart, would hide this run's states
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
    """Load the last complete state into model and optimizer, and return it; None if there is none.
    Every process must call this."""
    # only the first process reads, and sends the tensors to the others
    totals, tensors = _read_last(folder) if accelerator.is_main_process else (None, {})
    (totals,) = broadcast_object_list([totals])
    if totals is None:
        return None

    put_weights(model, _without_prefix(MODEL, tensors))
    _put_moments(model, optimizer, _moments_in(_without_prefix(OPTIMIZER, tensors)))

    # only the first process has read tensors
    if tensors:
        torch.set_rng_state(tensors[RANDOM])
    return SavedState(totals, _without_prefix(BEST, tensors))


def _moments_in(tensors: Tensors) -> dict[str, dict[str, Any]]:
    """The optimizer's moments, by names of weights, of a file's tensors."""
    moments: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parameter, moment, *key = name.split("/")
        values = moments.setdefault(parameter, {})
        if key:
            values.setdefault(moment, {})[key[0]] = tensor
        else:
            values[moment] = tensor

    for values in moments.values():
        # Beside packed moments, bitsandbytes expects the step as a number
        if any(isinstance(value, dict) for value in values.values()):
            values |= {"step": int(values.get("step", 0))}
    return moments


def _read_last(folder: Path) -> tuple[Totals | None, Tensors]:
    """The last state whose file matches the hash in its note; None if there is none."""
    for state in sorted(folder.glob("*"), reverse=True):
        try:
            note = read_record(state / NOTE, Note)
            digest = sha256(state / TENSORS)
        except (OSError, DataError):
            logger.warning("%s: this state is incomplete, so it is not used", state)
            continue

        if digest == note.sha256:
            return note.totals, load_file(state / TENSORS)
        logger.warning("%s: this state changed after it was saved, so it is not used", state)
    return None, {}


def _with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
