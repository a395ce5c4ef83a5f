"""Does a run fit, in how many ways, how long does it take and what does it cost: known before the first GPU is rented."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from tyro.conf import Positional

from worldpm.field.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from worldpm.parts.batches import EncodedGroup
    from worldpm.parts.costs import ModelCost

USABLE = 0.9
"""Share of a GPU's memory that tensors may fill; the rest is the driver's and the allocator's."""
TYPICAL = {"prompt": 512, "response": 256, "responses": 4}
"""Tokens of a group, and its responses."""
GATHERED_LAYERS = 2
"""Layers that a sharding engine holds whole at a time: the one that runs and the one that is fetched."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Say whether a training fits, with which sharding, how long it takes and what it costs."""

    model: Positional[str]
    """A built-in size, or a folder or hub id with a `config.json`."""
    gpus: int = 1
    """GPUs of the run."""
    memory: float = 80.0
    """GiB of one GPU."""
    pairs: float = 15e6
    """Pairs to train on; the paper's are 15 million."""
    tokens_per_pair: float = 870.0
    """Unique tokens for each pair; the paper's 2,000, divided by the least saving of shared prompts on real sites, 2.3."""
    row_tokens: int | None = None
    """Tokens of one row; as many as `worldpm train` takes on a GPU unless set."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute type; weights and optimizer are float32."""
    peak_tflops: float = 989.0
    """Of one GPU, at the compute type; an H100's is 989, an A100's 312."""
    mfu: float = 0.4
    """Share of the peak that the run will reach."""
    price: float | None = None
    """Of one GPU for an hour, in any currency."""

    def __post_init__(self) -> None:
        numbers = {"--gpus": self.gpus, "--memory": self.memory, "--pairs": self.pairs, "--tokens-per-pair": self.tokens_per_pair}
        others = {"--row-tokens": self.row_tokens, "--peak-tflops": self.peak_tflops, "--price": self.price}
        for name, value in {**numbers, **others}.items():
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu is {self.mfu}; it is a share of the peak, above 0 and at most 1")


class Way(NamedTuple):
    """One way to place the run on the GPUs, and what each of them then holds, in bytes."""

    name: str
    weights: int
    """Weights, gradients and optimizer, and what is gathered or cast of them."""
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations


def run(config: Config) -> None:
    """Print what the model is, the ways to place it with what each needs, and the cost."""
    from rich.console import Console
    from rich.table import Table

    from worldpm.parts.costs import GIB, MASTER_BYTES, cost_of, shares_prefix

    model_config = _model_config(config.model)
    cost = cost_of(model_config)
    shared = shares_prefix(model_config)
    ways = list(ways_to_place(model_config, cost, config, shared=shared))
    console = Console(highlight=False)
    console.print(
        f"{config.model}: {cost.parameters / 1e9:.3g} billion parameters, {cost.non_embedding / 1e9:.3g} without embeddings", soft_wrap=True
    )
    table = Table("placement", "state GiB", "activations GiB", f"of {config.memory:g} GiB", title=f"each of {config.gpus} GPUs")
    for way in ways:
        verdict = f"{way.total / GIB / config.memory:.0%}, " + ("fits" if fits(way, config) else "does not fit")
        table.add_row(way.name, f"{way.weights / GIB:.2f}", f"{way.activations / GIB:.2f}", verdict)
    console.print(table)
    best = next((way for way in ways if fits(way, config)), None)
    console.print(f"Take {best.name}." if best else "None fits: take more GPUs, a smaller --row-tokens, or adapters (--lora-rank).")
    gathered = MASTER_BYTES * cost.parameters / GIB  # weights and moments, and the best weights beside them
    console.print(f"To save, the first process gathers {gathered:.1f} GiB in the host's memory.")
    _print_cost(console.print, cost, config, shared=shared)


def fits(way: Way, config: Config) -> bool:
    """Whether a GPU holds it, with a reserve."""
    from worldpm.parts.costs import GIB

    return way.total <= USABLE * config.memory * GIB


def ways_to_place(model_config: "PreTrainedConfig", cost: "ModelCost", config: Config, *, shared: bool) -> Iterator[Way]:
    """From the fastest to the most sparing: whole on each GPU, then sharded; all that again with gradient checkpointing.

    `shared` says whether the model shares prompts; one that does not is not sharded.
    """
    import torch

    from worldpm.parts.costs import MASTER_BYTES, activation_bytes

    dtype = getattr(torch, config.dtype)
    cast = 2 if config.dtype == "bfloat16" else 0
    row = _row(config, shared=shared)
    state = MASTER_BYTES * cost.parameters
    layer = cost.non_embedding // model_config.get_text_config().num_hidden_layers
    gathered = (cast or 4) * (GATHERED_LAYERS * layer + cost.parameters - cost.non_embedding)
    placements = {"DDP" if config.gpus > 1 else "one GPU": state + cast * cost.parameters}
    if config.gpus > 1 and shared:  # engines that gather weights refuse others
        placements |= {
            "FSDP2, not resharded": state // config.gpus + (cast or 4) * cost.parameters,
            "FSDP2 or ZeRO-3": state // config.gpus + gathered,
        }
    kept = {
        suffix: activation_bytes(model_config, row, shared=shared, dtype=dtype, gradient_checkpointing=bool(suffix))
        for suffix in ("", " with --gradient-checkpointing")
    }
    for suffix, activations in kept.items():
        for name, weights in placements.items():
            yield Way(name + suffix, weights, activations)


def _row(config: Config, *, shared: bool) -> "list[EncodedGroup]":
    """The groups of a row of the run."""
    from worldpm.parts.costs import GPU_ROW_TOKENS, typical_row

    return typical_row(config.row_tokens or GPU_ROW_TOKENS, **TYPICAL, shares_prefix=shared)


def _print_cost(say: Callable[[str], None], cost: "ModelCost", config: Config, *, shared: bool) -> None:
    from worldpm.parts.costs import attended_pairs, train_flops, typical_row

    unique = TYPICAL["prompt"] + TYPICAL["response"] * TYPICAL["responses"]
    (group,) = typical_row(unique, **TYPICAL, shares_prefix=True)
    runs = [group] if shared else group.apart
    run = sum(one.tokens for one in runs)
    if not shared:
        say(f"It shares no prompts: each response runs with its own, {run / unique:.2g} times the tokens. FSDP2 and ZeRO-3 refuse it.")
    tokens = config.pairs * config.tokens_per_pair * run / unique
    attended = attended_pairs(runs) / run * tokens
    flops = train_flops(cost, tokens=int(tokens), attended=int(attended))
    hours = flops / (config.gpus * config.peak_tflops * 1e12 * config.mfu) / 3600
    say(f"{config.pairs:.3g} pairs, {tokens:.3g} tokens, {flops:.3g} FLOPs: {hours:.3g} hours at {config.mfu:.0%} of the peak")
    if config.price is not None:
        say(f"{hours * config.gpus * config.price:,.0f} at {config.price:g} for a GPU and hour ({hours * config.gpus:,.0f} GPU hours)")


def _model_config(name: str) -> "PreTrainedConfig":
    from worldpm.parts import checkpoint, model_sources, reward_model

    if name in reward_model.SIZES:
        size = reward_model.SIZES[name]
        return reward_model.config_of(size, vocabulary=size.vocabulary)
    return checkpoint.load_config(model_sources.find(name, files=("config.json",)))
