"""Preference groups become a checkpoint: a built-in size from scratch, or a model trained further.

Started by `accelerate launch` or `torchrun` it runs on many processes; the first one writes.
"""

import contextlib
import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.formats import console, folders

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from worldpm.parts.batches import Encoder, Limits
    from worldpm.parts.model_sources import Source
    from worldpm.parts.reward_model import RewardModel
    from worldpm.parts.training import Settings, Trainer
    from worldpm.parts.training_data import TrainingData
    from worldpm.parts.training_state import Tensors

logger = logging.getLogger(__name__)

SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")
SNAPSHOTS = "snapshots"
PAPER_LR, PAPER_BATCH_PAIRS, PAPER_EPOCHS = 3e-6, 10_240, 1
"""Source: WorldPM, arXiv 2505.10527, appendix A.3. A built-in size has its own."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a preference model on groups."""

    groups: Positional[tuple[str, ...]]
    """Folders written by `worldpm group`, Parquet files of the same columns, or plain preference sets: files, folders, hub ids."""
    model: str
    """A built-in size (`tiny`), trained from scratch, or a folder or hub id of a reward or language model."""
    out: Path
    """Folder to write: the weights of least validation loss, or where nothing validates the last."""
    max_length: int = 2048
    """Tokens of prompt plus one response; what is longer is cut."""
    prompt_length: int | None = None
    """Tokens that a prompt is cut to; half of --max-length unless set."""
    batch_pairs: int | None = None
    """Pairs of one optimizer step; 10240 unless a built-in size has its own."""
    epochs: float | None = None
    """Passes over the groups; 1 unless a built-in size has its own."""
    max_steps: int | None = None
    """Optimizer steps, in place of --epochs; the data then repeats."""
    lr: float | None = None
    """Learning rate after the warm-up; 3e-6 unless a built-in size has its own."""
    weight_decay: float = 0.1
    """AdamW's, for matrices."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    decay: float | None = None
    """Share of the steps, at the end, in which it falls to 0; 0 unless a built-in size has its own."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""
    loss: Literal["bradley-terry", "plackett-luce"] = "bradley-terry"
    """Over pairs, or over rankings of a group's responses."""
    target_margin: float = 0.0
    """Logits of margin asked for, times ln(1 + strength); Bradley-Terry only."""
    label_smoothing: float = 0.0
    """Share of labels taken to be a coin's; Bradley-Terry only."""
    centring: float = 0.0
    """Coefficient of the penalty that keeps rewards around 0."""
    lora_rank: int | None = None
    """Train adapters of this rank and the head, not all weights; they are merged in the checkpoint."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Fuse the work between matrix products; the start takes half a minute more, and a C++ compiler or a GPU is needed."""
    row_tokens: int | None = None
    """Tokens up to which a row is filled with groups, and memory grows with it; 2048 on a CPU and 16384 on a GPU unless set."""
    workers: int = 0
    """Processes that tokenize ahead of the first step; 0 does it in this one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute type; bfloat16 on a GPU or a CPU with matrix units for it, else float32. Weights and optimizer stay float32."""
    snapshots: int = 0
    """Keep the weights so many times on the way, in `snapshots/`, at steps spread evenly over their logarithm."""
    tracker: Literal["mlflow", "tensorboard", "trackio", "wandb"] | None = None
    """Also send the metrics to this tracker, whose library must be installed; files of its own go to OUT.tracking."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    remote_code: bool = False
    """Run the Python that a model's repository brings; needs --revision with a commit."""
    seed: int = 0
    """Of the weights and of the order of the groups."""

    def __post_init__(self) -> None:
        if not self.groups:
            raise ConfigError("no groups given: name a folder that `worldpm group` wrote")
        positive = {"--max-length": self.max_length, "--batch-pairs": self.batch_pairs, "--epochs": self.epochs, "--lr": self.lr}
        sizes = {"--max-steps": self.max_steps, "--prompt-length": self.prompt_length, "--lora-rank": self.lora_rank}
        for name, value in {**positive, **sizes, "--row-tokens": self.row_tokens}.items():
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        if min(self.warmup, self.decay or 0) < 0 or self.warmup + (self.decay or 0) > 1:
            raise ConfigError(f"--warmup {self.warmup} and --decay {self.decay} are shares of the steps, together at most 1")
        for name, value in {
            "--seed": self.seed,
            "--workers": self.workers,
            "--centring": self.centring,
            "--snapshots": self.snapshots,
            "--weight-decay": self.weight_decay,
            "--target-margin": self.target_margin,
        }.items():
            if not value >= 0:
                raise ConfigError(f"{name} is {value}; it must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"--label-smoothing is {self.label_smoothing}; it is a share below 1")
        if self.loss == "plackett-luce" and (self.target_margin or self.label_smoothing):
            raise ConfigError("--target-margin and --label-smoothing belong to --loss bradley-terry; a ranking has no pairs to move")
        if self.max_length < 16 or (self.prompt_length or 0) > self.max_length - 8:
            raise ConfigError(
                f"--max-length {self.max_length} leaves no room for a prompt and a response; at least 16, and 8 more than --prompt-length"
            )


def run(config: Config) -> None:
    """Train, keep the weights of least validation loss, and write them as a folder that plain transformers loads."""
    from accelerate.utils import broadcast_object_list

    from worldpm.parts import model_sources, training
    from worldpm.parts.reward_model import SIZES
    from worldpm.parts.training_data import TrainingData

    if config.model not in SIZES and "/" not in config.model and not Path(config.model).is_dir():
        raise ConfigError(f"--model {config.model}: neither a built-in size ({', '.join(SIZES)}) nor a folder nor a hub id (OWNER/NAME)")
    if config.model in SIZES and (config.revision or config.remote_code):
        raise ConfigError(f"--revision and --remote-code are of a hub's model; {config.model} is made here")
    source = None if config.model in SIZES else model_sources.find(config.model, revision=config.revision, remote_code=config.remote_code)
    data = TrainingData.find(config.groups)
    dtype = _dtype(config)
    settings = _settings(config, dtype)
    accelerator = training.accelerator(dtype, tracker=config.tracker, folder=config.out.with_name(f"{config.out.name}.tracking"))
    output = None
    if accelerator.is_main_process:
        inputs = [folders.describe(path) for path in data.inputs] + ([model_sources.fingerprint(source)] if source else [])
        if next(data.groups("train", Counter()), None) is None:
            raise ConfigError(f"{config.groups[0]}: the train split is empty; add sites, or give the other splits a smaller share")
        output = folders.begin(config.out, step="train", config=_recorded(config, settings, dtype), inputs=inputs)
    if not broadcast_object_list([output is not None])[0]:
        return
    if accelerator.is_main_process:
        logger.info("compute type %s on %s", str(dtype).removeprefix("torch."), accelerator.device)
    with output or contextlib.nullcontext():
        _train(config, settings, accelerator, data, source, output)


def _train(
    config: Config, settings: "Settings", accelerator: "Accelerator", data: "TrainingData", source: "Source | None",
    output: folders.Output | None,
) -> None:  # fmt: skip
    """What every process does; the first one has the output, and also writes."""
    from worldpm.parts import adapters, checkpoint
    from worldpm.parts.token_store import TokenStore
    from worldpm.parts.tokenizer import save_tokenizer
    from worldpm.parts.training import Trainer
    from worldpm.parts.training_state import weights_of

    progress = config.out / folders.PROGRESS
    kept = _prepare(config, data, source, output) if output else {}
    accelerator.wait_for_everyone()
    encoder = _encoder(config, source, progress / "tokenizer")
    train, validation = (TokenStore([progress / f"{split}.tokens"]) for split in SPLITS)
    if output and not len(validation):
        logger.warning("no validation groups: the last weights are kept, not those of least validation loss")
    model = _model(config, source, encoder.tokenizer)
    lineage = {"model": config.model, "groups": [folders.describe(path) for path in data.inputs]}
    run_id = hashlib.sha256(folders.to_json([output.run["config"], output.run["inputs"]])).hexdigest()[:16] if output else ""

    def write(folder: Path, weights: "Tensors", measured: folders.Json) -> None:
        save_tokenizer(encoder.tokenizer, folder)
        checkpoint.save(model, adapters.merged(weights), folder, pad_token_id=encoder.tokenizer.pad_token_id)
        checkpoint.write_description(folder, encoder, measured, _training(config, trainer, run_id, measured), lineage)

    def keep(weights: "Tensors", measured: folders.Json) -> None:
        if output:
            _write_snapshot(output, measured, partial(write, weights=weights, measured=measured))

    state = progress / "resume"
    trainer = Trainer(model, train, validation, settings, folder=config.out, state=state, accelerator=accelerator, keep=keep)
    if not trainer.steps:
        raise ConfigError(f"--epochs {settings.epochs} of {len(train)} groups is not one group; there is nothing to train on")
    accelerator.init_trackers("worldpm", config=_recorded(config, settings, settings.dtype))
    trainer.run()
    weights, measured = weights_of(trainer.model), trainer.kept_metrics()
    if output:
        write(config.out, weights, measured)
        output.finish(counts=_counts(trainer, kept), drops={"preference sets": kept["train"]["drops"]})
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _write_snapshot(run: folders.Output, measured: folders.Json, write: Callable[[Path], None]) -> None:
    """A checkpoint of its own, named after its run and step; one that an earlier start of the run finished is left as it is."""
    place = run.path / SNAPSHOTS / f"{run.path.resolve().name}-{measured['step']:06}"
    config = {**run.run["config"], "snapshot": measured["step"]}
    snapshot = folders.begin(place, step=run.run["step"], config=config, inputs=run.run["inputs"])
    if snapshot is not None:
        with snapshot:
            write(place)
            snapshot.finish(counts={"step": measured["step"]})


def _training(config: Config, trainer: "Trainer", run_id: str, measured: folders.Json) -> folders.Json:
    """What `worldpm laws` needs to know of a checkpoint: its run (by settings and inputs), its family, and N, D and C."""
    from worldpm.parts.reward_model import SIZES

    built_in = config.model in SIZES
    return {
        "run": run_id,
        "family": "built-in" if built_in else f"{trainer.model_type}, trained further",
        "non_embedding": trainer.cost.non_embedding,
        "step": measured["step"],
        "pairs": measured["pairs_seen"],
        "effective_pairs": measured["effective_pairs_seen"],
        "tokens": measured["tokens_seen"],
        "flops": measured["flops_seen"],
    }


def _dtype(config: Config) -> "torch.dtype":
    """The compute type: as asked, or bfloat16 where the device multiplies it in hardware."""
    import torch

    if config.dtype:
        return torch.float32 if config.dtype == "float32" else torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # without matrix units for it, as with AVX-512 alone, the casts cost a small model more than the products gain
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32


def _settings(config: Config, dtype: "torch.dtype") -> "Settings":
    import torch

    from worldpm.field.bradley_terry import Objective
    from worldpm.parts import costs, scorer
    from worldpm.parts.reward_model import SIZES
    from worldpm.parts.training import Settings

    size = SIZES.get(config.model)
    lr, batch_pairs, epochs = (size.lr, size.batch_pairs, size.epochs) if size else (PAPER_LR, PAPER_BATCH_PAIRS, PAPER_EPOCHS)
    return Settings(
        lr=config.lr or lr,
        batch_pairs=config.batch_pairs or batch_pairs,
        epochs=config.epochs or epochs,
        max_steps=config.max_steps,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        decay=config.decay if config.decay is not None else (size.decay if size and config.schedule == "constant" else 0.0),
        schedule=config.schedule,
        objective=Objective(config.loss, config.target_margin, config.label_smoothing, config.centring),
        row_tokens=config.row_tokens or (costs.GPU_ROW_TOKENS if torch.cuda.is_available() else scorer.ROW_TOKENS),
        seed=config.seed,
        snapshots=config.snapshots,
        dtype=dtype,
    )


def _recorded(config: Config, settings: "Settings", dtype: "torch.dtype") -> folders.Json:
    """What the manifest says of the run: every setting as it took effect."""
    model = config.model if not Path(config.model).is_dir() else Path(config.model).resolve().name
    taken = asdict(settings)
    for fixed in ("objective", "validations", "betas", "clip_norm"):
        del taken[fixed]
    limits = _limits(config)
    lengths = {"max_length": limits.max_length, "prompt_length": limits.prompt_length}
    others = {name: getattr(config, name) for name in ("lora_rank", "gradient_checkpointing", "compile", "revision", "remote_code")}
    return {"model": model, **lengths, **taken, **settings.objective._asdict(), **others, "dtype": str(dtype).removeprefix("torch.")}


def _prepare(config: Config, data: "TrainingData", source: "Source | None", output: folders.Output) -> folders.Json:
    """Write the tokenizer and each split's tokens, where an earlier run has not; what the stores hold."""
    from worldpm.parts import token_store
    from worldpm.parts.tokenizer import save_tokenizer

    tokenizer = output.progress / "tokenizer"
    if not tokenizer.is_dir():
        shutil.rmtree(aside := output.progress / "tokenizer.partial", ignore_errors=True)
        save_tokenizer(_new_tokenizer(config, data, source), aside)
        aside.rename(tokenizer)
    encoder = _encoder(config, source, tokenizer)

    def build(split: Literal["train", "validation"], aside: Path) -> folders.Json:
        drops: Counter[str] = Counter()
        groups = console.track(data.groups(split, drops), f"tokenize the {split} split", total=None)
        counts = token_store.write(aside, token_store.encode(groups, tokenizer, encoder.frame, encoder.limits, workers=config.workers))
        return {"counts": counts, "drops": {reason: number for reason, number in sorted(drops.items()) if number}}

    return {split: output.part(f"{folders.PROGRESS}/{split}.tokens", partial(build, split)) for split in SPLITS}


def _new_tokenizer(config: Config, data: "TrainingData", source: "Source | None") -> "PreTrainedTokenizerBase":
    """The tokenizer of the run, with a template that others can use: the model's own, or one trained on the train split."""
    from worldpm.formats import chat
    from worldpm.parts import checkpoint
    from worldpm.parts.reward_model import SIZES
    from worldpm.parts.tokenizer import train_tokenizer

    if source is not None:
        encoder = checkpoint.encoder_of(source, checkpoint.load_config(source))
        encoder.tokenizer.pad_token = checkpoint.pad_token(encoder.tokenizer, encoder.frame)  # one that ends no text
        encoder.tokenizer.chat_template = chat.standing_alone(str(encoder.tokenizer.chat_template), encoder.frame)
        return encoder.tokenizer
    texts = (
        text
        for group in data.groups("train", Counter())
        for text in (*(message.content for message in group.prompt), *(response.content for response in group.responses))
    )
    trained = train_tokenizer(texts, vocabulary=SIZES[config.model].vocabulary, max_length=config.max_length)
    trained.chat_template = chat.standing_alone(str(trained.chat_template), chat.frame_of(trained))
    logger.info("trained a tokenizer of %d tokens", len(trained))
    return trained


def _limits(config: Config) -> "Limits":
    """How long the run's sequences are."""
    from worldpm.parts.batches import Limits

    limits = Limits.of(config.max_length)
    return limits._replace(prompt_length=config.prompt_length) if config.prompt_length else limits


def _encoder(config: Config, source: "Source | None", tokenizer_folder: Path) -> "Encoder":
    """How the run reads text; what is too long is cut."""
    from worldpm.formats import chat
    from worldpm.parts import checkpoint, model_sources
    from worldpm.parts.batches import Encoder
    from worldpm.parts.reward_model import POSITIONS

    limits = _limits(config)
    tokenizer = checkpoint.load_tokenizer(model_sources.Source(tokenizer_folder))
    if source is None and config.max_length > POSITIONS:
        raise ConfigError(f"--max-length {config.max_length}: a built-in size has {POSITIONS} positions; ask for at most that")
    if source is None:
        return Encoder(tokenizer, chat.frame_of(tokenizer), limits)
    model_config = checkpoint.load_config(source)
    if config.max_length > (positions := checkpoint.positions_of(model_config)):
        raise ConfigError(f"--max-length {config.max_length}: the model was made for {positions} positions; ask for at most that")
    return Encoder(tokenizer, checkpoint.encoder_of(source, model_config).frame, limits)


def _model(config: Config, source: "Source | None", tokenizer: "PreTrainedTokenizerBase") -> "RewardModel":
    """The model to train: weights in float32, but for those that adapters leave alone."""
    import torch

    from worldpm.parts import adapters, checkpoint, reward_model

    if source is None:
        model = reward_model.build(reward_model.SIZES[config.model], tokenizer, seed=config.seed)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            dtype = _dtype(config) if config.lora_rank else torch.float32
            model = checkpoint.load(source, dtype=dtype, fresh_head=True)
    if config.lora_rank:
        adapters.add(model, rank=config.lora_rank, seed=config.seed)
    if config.gradient_checkpointing:
        model.backbone.activation_checkpointing_enable()
    if config.compile:
        reward_model.compile_layers(model)
    return model


def _counts(trainer: "Trainer", kept: folders.Json) -> folders.Json:
    seen, train = trainer.seen, kept["train"]["counts"]
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "trained parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "train groups": train["groups"],
        "validation groups": kept["validation"]["counts"]["groups"],
        "truncated train responses": train["truncated responses"],
        "train responses": train["responses"],
        "steps": seen.step,
        "pairs seen": seen.pairs,
        "effective pairs seen": round(seen.effective_pairs, 6),
        "tokens seen": seen.tokens,
        "kept step": seen.best_step or seen.step,
    }
