"""What a run needs to go on: weights, optimizer and random state, whole and in one file whatever
the processes.

The tensors are gathered under the model's own names, so a run may go on with another number of
processes or another way of sharding. A state is written aside, hashed, and named by its note last;
one that is torn is passed over.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from worldpm.storage import folders
from worldpm.training import zero

logger = logging.getLogger(__name__)

KEPT = 2
"""States that stay; the older one is there should the disk have lost part of the newer."""
TENSORS, NOTE = "state.safetensors", "state.json"
Json = dict[str, Any]
Tensors = dict[str, Tensor]


def weights_of(model: nn.Module, *, trained_only: bool = False) -> Tensors:
    """All weights, or those that are trained, in this process's memory; every process must call,
    and only the first gets them."""
    if _is_engine(model):
        return zero.weights_of(model, trained_only=trained_only)
    _reshard(model)
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only
    )
    found = get_model_state_dict(model, options=options)
    # a state dict of one process is the parameters themselves, which the next step changes
    return {name: torch.as_tensor(tensor).clone() for name, tensor in found.items()}


def _is_engine(model: nn.Module) -> bool:
    """DeepSpeed's engine, which keeps what it knows in partitions of its own."""
    return hasattr(model, "zero_optimization_stage")


def _moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensors]:
    """What the optimizer knows, by the names of the weights."""
    if _is_engine(model):
        return zero.moments_of(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(
        dict[str, Tensors],
        get_optimizer_state_dict(model, optimizer, options=options).get("state", {}),
    )


def _put_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensors]
) -> None:
    """Give the optimizer what the first process holds of what it knew."""
    if _is_engine(model):
        zero.put_moments(model, broadcast_object_list([moments])[0])
        return
    whole: Json = {
        **get_optimizer_state_dict(
            model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
    }
    whole["state"] = moments
    set_optimizer_state_dict(
        model, optimizer, whole if moments else {}, options=_whole(strict=True)
    )


def _reshard(model: nn.Module) -> None:
    """FSDP leaves outer weights whole after a forward without gradients, where the optimizer does
    not know them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def put_weights(model: nn.Module, weights: Tensors) -> None:
    """Give the model the weights that the first process holds; those that are not named stay."""
    if _is_engine(model):
        zero.put_weights(model, broadcast_object_list([weights])[0])
        return
    _reshard(model)
    set_model_state_dict(model, dict(weights), options=_whole(strict=False))


def _whole(*, strict: bool) -> StateDictOptions:
    spread = torch.distributed.is_available() and torch.distributed.is_initialized()
    return StateDictOptions(
        full_state_dict=True, cpu_offload=not spread, broadcast_from_rank0=spread, strict=strict
    )


def save(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Tensors,
    *,
    step: int,
    seen: Json,
) -> None:
    """Write the state after a step, and remove all but the last few; every process must call."""
    tensors = {
        f"model/{name}": tensor for name, tensor in weights_of(model, trained_only=True).items()
    }
    moments = _moments_of(model, optimizer)
    if not accelerator.is_main_process:
        return
    for name, values in moments.items():
        tensors |= {
            f"optimizer/{name}/{moment}": torch.as_tensor(value) for moment, value in values.items()
        }
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors["random/torch"] = torch.get_rng_state()
    place = folder / f"{step:08d}"
    place.mkdir(parents=True, exist_ok=True)
    (place / NOTE).unlink(missing_ok=True)
    aside = place / f"{TENSORS}.partial"
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside)
    digest = folders.sync_file(aside)
    aside.replace(place / TENSORS)
    folders.write_atomically(place / NOTE, folders.to_json({"sha256": digest, "seen": seen}))
    # a torn one of a later step, from before a restart, would stand in the way of what is run again
    whole = [
        other
        for other in sorted(folder.iterdir())
        if int(other.name) <= step and (other / NOTE).is_file()
    ]
    for other in set(folder.iterdir()) - set(whole[-KEPT:]):
        shutil.rmtree(other)


def load_last(
    folder: Path, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Json, Tensors] | None:
    """Give model and optimizer the last whole state; how far it was and its best weights, or None
    where there is none."""
    found = _last_whole(folder) if accelerator.is_main_process else None
    seen, tensors = found or (None, {})
    (seen,) = broadcast_object_list([seen])
    if seen is None:
        return None
    put_weights(model, _under("model/", tensors))
    state: dict[str, Tensors] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        parameter, _, moment = name.rpartition("/")
        state.setdefault(parameter, {})[moment] = tensor
    _put_moments(model, optimizer, state)
    if tensors:
        torch.set_rng_state(tensors["random/torch"])
    return seen, _under("best/", tensors)


def _last_whole(folder: Path) -> tuple[Json, Tensors] | None:
    for place in sorted(folder.glob("*"), reverse=True):
        try:
            note = json.loads((place / NOTE).read_text(encoding="utf-8"))
            digest = folders.sha256(place / TENSORS)
        except (OSError, ValueError):
            logger.warning("%s: torn, so not used", place)
            continue
        if digest == note["sha256"]:
            return note["seen"], load_file(place / TENSORS)
        logger.warning("%s: not as it was saved, so not used", place)
    return None


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
