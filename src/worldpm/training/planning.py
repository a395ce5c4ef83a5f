"""Does a run fit, in how many ways, how long does it take and what does it cost: known before the
first GPU is rented."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedConfig

from worldpm.model import checkpoint, sizes, sources
from worldpm.model.costs import (
    GIB,
    GPU_ROW_TOKENS,
    MASTER_BYTES,
    ModelCost,
    activation_bytes,
    attended_pairs,
    cost_of,
    shares_prefix,
    train_flops,
    typical_row,
)
from worldpm.model.encoder import EncodedGroup
from worldpm.options.plan import PlanOptions

USABLE = 0.9
"""Share of a GPU's memory that tensors may fill; the rest is the driver's and the allocator's."""
TYPICAL = {"prompt": 512, "response": 256, "responses": 4}
"""Tokens of a group, and its responses."""
GATHERED_LAYERS = 2
"""Layers that a sharding engine holds whole at a time: the one that runs and the one that is
fetched."""


class Way(NamedTuple):
    """One way to place the run on the GPUs, and what each of them then holds, in bytes."""

    name: str
    weights: int
    """Weights, gradients and optimizer, and what is gathered or cast of them."""
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations


def run(options: PlanOptions) -> None:
    """Print what the model is, the ways to place it with what each needs, and the cost."""

    model_config = _model_config(options.model)
    cost = cost_of(model_config)
    shared = shares_prefix(model_config)
    ways = list(ways_to_place(model_config, cost, options, shared=shared))
    console = Console(highlight=False)
    console.print(
        f"{options.model}: {cost.parameters / 1e9:.3g} billion parameters,"
        f" {cost.non_embedding / 1e9:.3g} without embeddings",
        soft_wrap=True,
    )
    table = Table(
        "placement",
        "state GiB",
        "activations GiB",
        f"of {options.memory:g} GiB",
        title=f"each of {options.gpus} GPUs",
    )
    for way in ways:
        verdict = f"{way.total / GIB / options.memory:.0%}, " + (
            "fits" if fits(way, options) else "does not fit"
        )
        table.add_row(way.name, f"{way.weights / GIB:.2f}", f"{way.activations / GIB:.2f}", verdict)
    console.print(table)
    best = next((way for way in ways if fits(way, options)), None)
    console.print(
        f"Take {best.name}."
        if best
        else "None fits: take more GPUs, a smaller --row-tokens, or adapters (--lora-rank)."
    )
    gathered = (
        MASTER_BYTES * cost.parameters / GIB
    )  # weights and moments, and the best weights beside them
    console.print(f"To save, the first process gathers {gathered:.1f} GiB in the host's memory.")
    _print_cost(console.print, cost, options, shared=shared)


def fits(way: Way, options: PlanOptions) -> bool:
    """Whether a GPU holds it, with a reserve."""

    return way.total <= USABLE * options.memory * GIB


def ways_to_place(
    model_config: PreTrainedConfig, cost: ModelCost, options: PlanOptions, *, shared: bool
) -> Iterator[Way]:
    """From the fastest to the most sparing: whole on each GPU, then sharded; all that again with
    gradient checkpointing.

    `shared` says whether the model shares prompts; one that does not is not sharded.
    """

    dtype = getattr(torch, options.dtype)
    cast = 2 if options.dtype == "bfloat16" else 0
    row = _row(options, shared=shared)
    state = MASTER_BYTES * cost.parameters
    layer = cost.non_embedding // model_config.get_text_config().num_hidden_layers
    gathered = (cast or 4) * (GATHERED_LAYERS * layer + cost.parameters - cost.non_embedding)
    placements = {"DDP" if options.gpus > 1 else "one GPU": state + cast * cost.parameters}
    if options.gpus > 1 and shared:  # engines that gather weights refuse others
        placements |= {
            "FSDP2, not resharded": state // options.gpus + (cast or 4) * cost.parameters,
            "FSDP2 or ZeRO-3": state // options.gpus + gathered,
        }
    kept = {
        suffix: activation_bytes(
            model_config, row, shared=shared, dtype=dtype, gradient_checkpointing=bool(suffix)
        )
        for suffix in ("", " with --gradient-checkpointing")
    }
    for suffix, activations in kept.items():
        for name, weights in placements.items():
            yield Way(name + suffix, weights, activations)


def _row(options: PlanOptions, *, shared: bool) -> list[EncodedGroup]:
    """The groups of a row of the run."""

    return typical_row(options.row_tokens or GPU_ROW_TOKENS, **TYPICAL, shares_prefix=shared)


def _print_cost(
    say: Callable[[str], None], cost: ModelCost, options: PlanOptions, *, shared: bool
) -> None:

    unique = TYPICAL["prompt"] + TYPICAL["response"] * TYPICAL["responses"]
    (group,) = typical_row(unique, **TYPICAL, shares_prefix=True)
    runs = [group] if shared else group.apart
    run = sum(one.tokens for one in runs)
    if not shared:
        say(
            f"It shares no prompts: each response runs with its own, {run / unique:.2g} times the"
            " tokens. FSDP2 and ZeRO-3 refuse it."
        )
    tokens = options.pairs * options.tokens_per_pair * run / unique
    attended = attended_pairs(runs) / run * tokens
    flops = train_flops(cost, tokens=int(tokens), attended=int(attended))
    hours = flops / (options.gpus * options.peak_tflops * 1e12 * options.mfu) / 3600
    say(
        f"{options.pairs:.3g} pairs, {tokens:.3g} tokens, {flops:.3g} FLOPs: {hours:.3g} hours at"
        f" {options.mfu:.0%} of the peak"
    )
    if options.price is not None:
        say(
            f"{hours * options.gpus * options.price:,.0f} at {options.price:g} for a GPU and hour"
            f" ({hours * options.gpus:,.0f} GPU hours)"
        )


def _model_config(name: str) -> PreTrainedConfig:

    if name in sizes.SIZES:
        size = sizes.SIZES[name]
        return sizes.config_of(size, vocabulary=size.vocabulary)
    return checkpoint.load_config(sources.find(name, files=("config.json",)))
