"""Plans of large training runs, made before you rent a GPU: placements, memory, time and cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.table import Table
from transformers import PreTrainedConfig

from worldpm.console import screen_or_file
from worldpm.model import checkpoint, sizes, sources
from worldpm.model.costs import (
    GIB,
    GPU_ROW_TOKENS,
    MASTER_BYTES,
    ModelCost,
    activation_bytes,
    attended_pairs,
    cost_of,
    scoring_bytes,
    shares_prefix,
    train_flops,
    typical_row,
)
from worldpm.model.encoder import EncodedGroup
from worldpm.model.quantization import BYTES_A_WEIGHT, Bits
from worldpm.options.plan import PlanOptions
from worldpm.scoring.scorer import ROW_TOKENS

USABLE_MEMORY = 0.9
"""Share of a GPU's memory that tensors may fill; the driver and the allocator take the rest."""
GATHERED_LAYERS = 2
"""Number of complete layers that a sharding engine holds: the running layer and the next one."""
CHECKPOINTING = " with --gradient-checkpointing"
ADAPTER_RANK = 16
SMALL_MASTER_BYTES = 10 + 8 / 256
"""Bytes for each trained parameter with --optimizer adamw-8bit: weight and gradient in float32, two
moments in 8 bits, and their scales for 256 weights."""


class TypicalGroup(NamedTuple):
    """The assumed shape of all groups, from which the plan computes rows and operations."""

    prompt: int = 512
    """Tokens."""
    response: int = 256
    """Tokens."""
    responses: int = 4

    @property
    def tokens(self) -> int:
        """Tokens of a group with a shared prompt."""
        return self.prompt + self.response * self.responses


TYPICAL_GROUP = TypicalGroup()


@dataclass(frozen=True)
class Placement:
    """One way to place the run on the GPUs, with the memory that each of them needs."""

    name: str
    """The name that users know, with the options that it needs."""
    weights: int
    """Bytes of weights, gradients and optimizer, with gathered and cast copies."""
    activations: int
    """Bytes that the backward pass of one row needs."""

    @property
    def total(self) -> int:
        """Bytes of both."""
        return self.weights + self.activations


@dataclass(frozen=True)
class Work:
    """The operations of the run, and the time they take."""

    token_factor: float
    """Number of tokens that the model runs per unique token; 1 if it shares prompts."""
    tokens: float
    """Number of tokens that the model runs."""
    flops: int
    """Floating-point operations of forward and backward passes."""
    hours: float
    """Wall time on all GPUs together."""
    gpu_hours: float
    """Hours times GPUs."""
    price: float | None
    """Price of all GPU hours, in the currency of --price; None if no price was given."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run."""

    options: PlanOptions
    cost: ModelCost
    """Parameters of the model, and operations per token."""
    shares_prompts: bool
    """Whether the model runs a prompt once for all its responses."""
    placements: tuple[Placement, ...]
    """In order, from the fastest to the one that needs the least memory."""
    best: Placement | None
    """The first placement that fits; None if none fits."""
    scoring: tuple[Placement, ...]
    """Ways to score on one GPU, from the most exact to the one that needs the least memory."""
    gathered_bytes: int
    """Host memory that the first process needs to save."""
    work: Work


def run(options: PlanOptions) -> Plan:
    """Compute the plan of a run, and print it."""
    result = plan(options)
    _print_plan(result)
    return result


def plan(options: PlanOptions) -> Plan:
    """The plan of a run.

    Raises:
        ConfigError: If the model does not exist, or its memory depends on the contents of tensors.
        CheckpointError: If the model's config cannot be read.
    """
    model_config = _model_config(options.model)
    cost, shared = cost_of(model_config), shares_prefix(model_config)
    placements = tuple(placements_of(model_config, cost, options, shared=shared))

    return Plan(
        options=options,
        cost=cost,
        shares_prompts=shared,
        placements=placements,
        best=next((placement for placement in placements if fits(placement, options)), None),
        scoring=tuple(scoring_of(model_config, cost, options, shared=shared)),
        # weights, moments, and the best weights
        gathered_bytes=MASTER_BYTES * cost.parameters,
        work=_work(cost, options, shared=shared),
    )


def fits(placement: Placement, options: PlanOptions) -> bool:
    """Whether a placement fits into a GPU's memory, with a reserve."""
    return placement.total <= USABLE_MEMORY * options.memory * GIB


def placements_of(
    model_config: PreTrainedConfig, cost: ModelCost, options: PlanOptions, *, shared: bool
) -> Iterator[Placement]:
    """Placements from the fastest to the one that needs the least memory: complete on each GPU,
    sharded, with an optimizer in 8 bits, with adapters, with adapters on weights in 4 bits; each
    also with gradient checkpointing.

    `shared` is whether the model shares prompts. A model that does not share them is not sharded.
    """
    complete = "DDP" if options.gpus > 1 else "one GPU"
    cast_bytes = _cast_bytes(options) * cost.parameters
    of_all = _weight_bytes(model_config, cost, options, shared=shared)
    small = {
        f"{complete} --optimizer adamw-8bit": round(SMALL_MASTER_BYTES * cost.parameters)
        + cast_bytes
    }
    adapters = f"{complete} --lora-rank {ADAPTER_RANK}"
    of_adapters = {
        adapters: _adapter_bytes(cost, options, None),
        f"{adapters} --quantize int4": _adapter_bytes(cost, options, "int4"),
    }

    # models with transposed layers take no adapters
    adapted: dict[str, int] = of_adapters if cost.linear else {}
    for ways, rank in ((of_all, None), (small, None), (adapted, ADAPTER_RANK)):
        if not ways:
            continue
        for suffix in ("", CHECKPOINTING):
            activations = activation_bytes(
                model_config,
                _row(options.row_tokens or GPU_ROW_TOKENS, shared=shared),
                shared=shared,
                dtype=getattr(torch, options.dtype),
                gradient_checkpointing=bool(suffix),
                lora_rank=rank,
            )
            for name, weights in ways.items():
                yield Placement(name + suffix, weights, activations)


def scoring_of(
    model_config: PreTrainedConfig, cost: ModelCost, options: PlanOptions, *, shared: bool
) -> Iterator[Placement]:
    """Ways to score on one GPU: with full weights, and in 8 and 4 bits."""
    row = _row(ROW_TOKENS, shared=shared)
    dtype = getattr(torch, options.dtype)
    activations = scoring_bytes(model_config, row, shared=shared, dtype=dtype)
    ways: tuple[tuple[str, Bits | None], ...] = (
        (options.dtype, None),
        ("--quantize int8", "int8"),
        ("--quantize int4", "int4"),
    )
    for name, bits in ways if cost.linear else ways[:1]:
        yield Placement(name, _frozen_bytes(cost, options, bits), activations)


def _frozen_bytes(cost: ModelCost, options: PlanOptions, bits: Bits | None) -> int:
    """Bytes of weights that are not trained, in the compute type or in fewer bits."""
    full = 2 if options.dtype == "bfloat16" else 4
    linear = full if bits is None else BYTES_A_WEIGHT[bits]
    return round(linear * cost.linear + full * (cost.parameters - cost.linear))


def _adapter_bytes(cost: ModelCost, options: PlanOptions, bits: Bits | None) -> int:
    """Bytes of frozen weights, and of adapters with their gradients and optimizer."""
    adapters = ADAPTER_RANK * cost.adapter_width
    trained = (MASTER_BYTES + _cast_bytes(options)) * adapters
    return _frozen_bytes(cost, options, bits) + trained


def _cast_bytes(options: PlanOptions) -> int:
    """Bytes of a trained weight's copy in the compute type, which float32 does not need."""
    return 2 if options.dtype == "bfloat16" else 0


def _weight_bytes(
    model_config: PreTrainedConfig, cost: ModelCost, options: PlanOptions, *, shared: bool
) -> Mapping[str, int]:
    """Bytes of weights, gradients and optimizer on each GPU, by placement."""
    cast_bytes = _cast_bytes(options)
    state = MASTER_BYTES * cost.parameters
    placements = {"DDP" if options.gpus > 1 else "one GPU": state + cast_bytes * cost.parameters}
    # `train` rejects models that share no prompts with engines that gather weights
    if options.gpus == 1 or not shared:
        return placements

    # engines gather weights in the compute type: 2 bytes in bfloat16, 4 in float32
    gathered_bytes = cast_bytes or 4
    layer = cost.non_embedding // model_config.get_text_config().num_hidden_layers
    # embeddings belong to the outermost module, and its weights stay gathered
    embeddings = cost.parameters - cost.non_embedding
    gathered = gathered_bytes * (GATHERED_LAYERS * layer + embeddings)
    shard = state // options.gpus
    return {
        **placements,
        "FSDP2, not resharded": shard + gathered_bytes * cost.parameters,
        "FSDP2 or ZeRO-3": shard + gathered,
    }


def _row(row_tokens: int, *, shared: bool) -> list[EncodedGroup]:
    """Typical groups that fill a row."""
    return typical_row(row_tokens, **TYPICAL_GROUP._asdict(), shares_prefix=shared)


def _work(cost: ModelCost, options: PlanOptions, *, shared: bool) -> Work:
    """The work of the run, scaled up from one typical group."""
    (group,) = _row(TYPICAL_GROUP.tokens, shared=True)
    # a model that shares no prompts runs one sequence per response
    sequences = [group] if shared else group.apart
    sequence_tokens = sum(sequence.tokens for sequence in sequences)

    tokens = options.pairs * options.tokens_per_pair * sequence_tokens / TYPICAL_GROUP.tokens
    attended = attended_pairs(sequences) / sequence_tokens * tokens
    flops = train_flops(cost, tokens=int(tokens), attended=int(attended))
    # a teraflop is 1e12 operations, and an hour has 3600 seconds
    hours = flops / (options.gpus * options.peak_tflops * 1e12 * options.mfu) / 3600
    gpu_hours = hours * options.gpus
    return Work(
        token_factor=sequence_tokens / TYPICAL_GROUP.tokens,
        tokens=tokens,
        flops=flops,
        hours=hours,
        gpu_hours=gpu_hours,
        price=None if options.price is None else gpu_hours * options.price,
    )


def _model_config(name: str) -> PreTrainedConfig:
    if name in sizes.SIZES:
        size = sizes.SIZES[name]
        return sizes.config_of(size, vocabulary=size.vocabulary)
    # download only the config of a hub repository, not the weights
    return checkpoint.load_config(sources.find(name, files=("config.json",)))


def _print_plan(plan: Plan) -> None:
    """Print the model, its placements, the best placement, and the cost."""
    console = screen_or_file()
    # soft_wrap: the console must not break the path of a model into lines
    console.print(
        f"{plan.options.model}: {plan.cost.parameters / 1e9:.3g} billion parameters,"
        f" {plan.cost.non_embedding / 1e9:.3g} without embeddings",
        soft_wrap=True,
    )
    console.print(_table(plan.placements, plan.options, "train", gpus=plan.options.gpus))
    console.print(
        f"Use {plan.best.name}."
        if plan.best
        else "No placement fits. Use more GPUs, or a smaller --row-tokens."
    )
    console.print(_table(plan.scoring, plan.options, "score", gpus=1))
    gathered = plan.gathered_bytes / GIB
    console.print(f"To save, the first process gathers {gathered:.1f} GiB in the host's memory.")
    for line in _work_lines(plan):
        console.print(line)


def _table(placements: Sequence[Placement], options: PlanOptions, verb: str, *, gpus: int) -> Table:
    """A table of placements and their memory."""
    table = Table(
        f"to {verb}",
        "state GiB",
        "activations GiB",
        f"of {options.memory:g} GiB",
        title=f"each of {gpus} GPUs" if gpus > 1 else "one GPU",
    )

    for placement in placements:
        share = placement.total / GIB / options.memory
        verdict = "fits" if fits(placement, options) else "does not fit"
        table.add_row(
            placement.name,
            f"{placement.weights / GIB:.2f}",
            f"{placement.activations / GIB:.2f}",
            f"{share:.0%}, {verdict}",
        )
    return table


def _work_lines(plan: Plan) -> Iterator[str]:
    """Tokens, operations, time and price as lines of text."""
    options, work = plan.options, plan.work

    if not plan.shares_prompts:
        yield (
            "The model shares no prompts: it reads the prompt again for each response,"
            f" {work.token_factor:.2g} times the tokens. FSDP2 and ZeRO-3 cannot train it."
        )
    yield (
        f"{options.pairs:.3g} pairs, {work.tokens:.3g} tokens, {work.flops:.3g} FLOPs:"
        f" {work.hours:.3g} hours at {options.mfu:.0%} of the peak"
    )
    if work.price is not None:
        yield (
            f"{work.price:,.0f} at {options.price:g} per GPU hour ({work.gpu_hours:,.0f} GPU hours)"
        )
