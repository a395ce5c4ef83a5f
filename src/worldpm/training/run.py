"""Preference groups become a checkpoint: a built-in size from scratch, or a model trained further.

Started by `accelerate launch` or `torchrun` it runs on many processes; the first one writes.
"""

import contextlib
import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

from worldpm import console
from worldpm.datasets.training_data import TrainingData
from worldpm.errors import ConfigError
from worldpm.model import adapters, chat, checkpoint, costs, reward_model, sources
from worldpm.model.devices import torch_dtype, training_dtype
from worldpm.model.encoder import Encoder, Limits
from worldpm.model.reward_model import RewardModel
from worldpm.model.sizes import POSITIONS, SIZES
from worldpm.model.sources import Source
from worldpm.model.tokenizer import save_tokenizer, train_tokenizer
from worldpm.options.train import TrainOptions
from worldpm.scoring import scorer
from worldpm.stats.bradley_terry import Objective
from worldpm.storage import folders
from worldpm.training import token_store
from worldpm.training.devices import accelerator as accelerator_of
from worldpm.training.loop import Settings, Trainer
from worldpm.training.state import Tensors, weights_of
from worldpm.training.token_store import TokenStore

logger = logging.getLogger(__name__)

SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")
SNAPSHOTS = "snapshots"
PAPER_LR, PAPER_BATCH_PAIRS, PAPER_EPOCHS = 3e-6, 10_240, 1
"""Source: WorldPM, arXiv 2505.10527, appendix A.3. A built-in size has its own."""


def run(options: TrainOptions) -> None:
    """Train, keep the weights of least validation loss, and write them as a folder that plain
    transformers loads."""

    if options.model not in SIZES and "/" not in options.model and not Path(options.model).is_dir():
        raise ConfigError(
            f"--model {options.model}: neither a built-in size ({', '.join(SIZES)}) nor a folder"
            " nor a hub id (OWNER/NAME)"
        )
    if options.model in SIZES and (options.revision or options.remote_code):
        raise ConfigError(
            f"--revision and --remote-code are of a hub's model; {options.model} is made here"
        )
    source = (
        None
        if options.model in SIZES
        else sources.find(options.model, revision=options.revision, remote_code=options.remote_code)
    )
    data = TrainingData.find(options.groups)
    dtype = torch_dtype(options.dtype) or training_dtype()
    settings = _settings(options, dtype)
    accelerator = accelerator_of(
        dtype, tracker=options.tracker, folder=options.out.with_name(f"{options.out.name}.tracking")
    )
    output = None
    if accelerator.is_main_process:
        inputs = [folders.describe(path) for path in data.inputs] + (
            [sources.fingerprint(source)] if source else []
        )
        if next(data.groups("train", Counter()), None) is None:
            raise ConfigError(
                f"{options.groups[0]}: the train split is empty; add sites, or give the other"
                " splits a smaller share"
            )
        output = folders.begin(
            options.out, step="train", config=_recorded(options, settings, dtype), inputs=inputs
        )
    if not broadcast_object_list([output is not None])[0]:
        return
    if accelerator.is_main_process:
        logger.info("compute type %s on %s", str(dtype).removeprefix("torch."), accelerator.device)
    with output or contextlib.nullcontext():
        _train(options, settings, accelerator, data, source, output)


def _train(
    options: TrainOptions,
    settings: Settings,
    accelerator: Accelerator,
    data: TrainingData,
    source: Source | None,
    output: folders.Output | None,
) -> None:
    """What every process does; the first one has the output, and also writes."""

    progress = options.out / folders.PROGRESS
    kept = _prepare(options, data, source, output) if output else {}
    accelerator.wait_for_everyone()
    encoder = _encoder(options, source, progress / "tokenizer")
    train, validation = (TokenStore([progress / f"{split}.tokens"]) for split in SPLITS)
    if output and not len(validation):
        logger.warning(
            "no validation groups: the last weights are kept, not those of least validation loss"
        )
    model = _model(options, source, encoder.tokenizer)
    lineage = {"model": options.model, "groups": [folders.describe(path) for path in data.inputs]}
    run_id = (
        hashlib.sha256(folders.to_json([output.run["config"], output.run["inputs"]])).hexdigest()[
            :16
        ]
        if output
        else ""
    )

    def write(folder: Path, weights: Tensors, measured: folders.Json) -> None:
        save_tokenizer(encoder.tokenizer, folder)
        checkpoint.save(
            model, adapters.merged(weights), folder, pad_token_id=encoder.tokenizer.pad_token_id
        )
        checkpoint.write_description(
            folder, encoder, measured, _training(options, trainer, run_id, measured), lineage
        )

    def keep(weights: Tensors, measured: folders.Json) -> None:
        if output:
            _write_snapshot(output, measured, partial(write, weights=weights, measured=measured))

    state = progress / "resume"
    trainer = Trainer(
        model,
        train,
        validation,
        settings,
        folder=options.out,
        state=state,
        accelerator=accelerator,
        keep=keep,
    )
    if not trainer.steps:
        raise ConfigError(
            f"--epochs {settings.epochs} of {len(train)} groups is not one group; there is nothing"
            " to train on"
        )
    accelerator.init_trackers("worldpm", config=_recorded(options, settings, settings.dtype))
    trainer.run()
    weights, measured = weights_of(trainer.model), trainer.kept_metrics()
    if output:
        write(options.out, weights, measured)
        output.finish(
            counts=_counts(trainer, kept), drops={"preference sets": kept["train"]["drops"]}
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _write_snapshot(
    run: folders.Output, measured: folders.Json, write: Callable[[Path], None]
) -> None:
    """A checkpoint of its own, named after its run and step; one that an earlier start of the run
    finished is left as it is."""
    place = run.path / SNAPSHOTS / f"{run.path.resolve().name}-{measured['step']:06}"
    options = {**run.run["config"], "snapshot": measured["step"]}
    snapshot = folders.begin(place, step=run.run["step"], config=options, inputs=run.run["inputs"])
    if snapshot is not None:
        with snapshot:
            write(place)
            snapshot.finish(counts={"step": measured["step"]})


def _training(
    options: TrainOptions, trainer: Trainer, run_id: str, measured: folders.Json
) -> folders.Json:
    """What `worldpm laws` needs to know of a checkpoint: its run (by settings and inputs), its
    family, and N, D and C."""

    built_in = options.model in SIZES
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


def _settings(options: TrainOptions, dtype: torch.dtype) -> Settings:

    size = SIZES.get(options.model)
    lr, batch_pairs, epochs = (
        (size.lr, size.batch_pairs, size.epochs)
        if size
        else (PAPER_LR, PAPER_BATCH_PAIRS, PAPER_EPOCHS)
    )
    return Settings(
        lr=options.lr or lr,
        batch_pairs=options.batch_pairs or batch_pairs,
        epochs=options.epochs or epochs,
        max_steps=options.max_steps,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        decay=(
            options.decay
            if options.decay is not None
            else (size.decay if size and options.schedule == "constant" else 0.0)
        ),
        schedule=options.schedule,
        objective=Objective(
            options.loss, options.target_margin, options.label_smoothing, options.centring
        ),
        row_tokens=options.row_tokens
        or (costs.GPU_ROW_TOKENS if torch.cuda.is_available() else scorer.ROW_TOKENS),
        seed=options.seed,
        snapshots=options.snapshots,
        dtype=dtype,
    )


def _recorded(options: TrainOptions, settings: Settings, dtype: torch.dtype) -> folders.Json:
    """What the manifest says of the run: every setting as it took effect."""
    model = (
        options.model if not Path(options.model).is_dir() else Path(options.model).resolve().name
    )
    taken = asdict(settings)
    for fixed in ("objective", "validations", "betas", "clip_norm"):
        del taken[fixed]
    limits = _limits(options)
    lengths = {"max_length": limits.max_length, "prompt_length": limits.prompt_length}
    others = {
        name: getattr(options, name)
        for name in ("lora_rank", "gradient_checkpointing", "compile", "revision", "remote_code")
    }
    return {
        "model": model,
        **lengths,
        **taken,
        **settings.objective._asdict(),
        **others,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _prepare(
    options: TrainOptions, data: TrainingData, source: Source | None, output: folders.Output
) -> folders.Json:
    """Write the tokenizer and each split's tokens, where an earlier run has not; what the stores
    hold."""

    tokenizer = output.progress / "tokenizer"
    if not tokenizer.is_dir():
        shutil.rmtree(aside := output.progress / "tokenizer.partial", ignore_errors=True)
        save_tokenizer(_new_tokenizer(options, data, source), aside)
        aside.rename(tokenizer)
    encoder = _encoder(options, source, tokenizer)

    def build(split: Literal["train", "validation"], aside: Path) -> folders.Json:
        drops: Counter[str] = Counter()
        groups = console.track(data.groups(split, drops), f"tokenize the {split} split", total=None)
        counts = token_store.write(
            aside,
            token_store.encode(
                groups, tokenizer, encoder.frame, encoder.limits, workers=options.workers
            ),
        )
        return {
            "counts": counts,
            "drops": {reason: number for reason, number in sorted(drops.items()) if number},
        }

    return {
        split: output.part(f"{folders.PROGRESS}/{split}.tokens", partial(build, split))
        for split in SPLITS
    }


def _new_tokenizer(
    options: TrainOptions, data: TrainingData, source: Source | None
) -> PreTrainedTokenizerBase:
    """The tokenizer of the run, with a template that others can use: the model's own, or one
    trained on the train split."""

    if source is not None:
        encoder = checkpoint.encoder_of(source, checkpoint.load_config(source))
        encoder.tokenizer.pad_token = checkpoint.pad_token(
            encoder.tokenizer, encoder.frame
        )  # one that ends no text
        encoder.tokenizer.chat_template = chat.standing_alone(
            str(encoder.tokenizer.chat_template), encoder.frame
        )
        return encoder.tokenizer
    texts = (
        text
        for group in data.groups("train", Counter())
        for text in (
            *(message.content for message in group.prompt),
            *(response.content for response in group.responses),
        )
    )
    trained = train_tokenizer(
        texts, vocabulary=SIZES[options.model].vocabulary, max_length=options.max_length
    )
    trained.chat_template = chat.standing_alone(str(trained.chat_template), chat.frame_of(trained))
    logger.info("trained a tokenizer of %d tokens", len(trained))
    return trained


def _limits(options: TrainOptions) -> Limits:
    """How long the run's sequences are."""

    limits = Limits.of(options.max_length)
    return limits._replace(prompt_length=options.prompt_length) if options.prompt_length else limits


def _encoder(options: TrainOptions, source: Source | None, tokenizer_folder: Path) -> Encoder:
    """How the run reads text; what is too long is cut."""

    limits = _limits(options)
    tokenizer = checkpoint.load_tokenizer(sources.Source(tokenizer_folder))
    if source is None and options.max_length > POSITIONS:
        raise ConfigError(
            f"--max-length {options.max_length}: a built-in size has {POSITIONS} positions; ask for"
            " at most that"
        )
    if source is None:
        return Encoder(tokenizer, chat.frame_of(tokenizer), limits)
    model_config = checkpoint.load_config(source)
    if options.max_length > (positions := checkpoint.positions_of(model_config)):
        raise ConfigError(
            f"--max-length {options.max_length}: the model was made for {positions} positions; ask"
            " for at most that"
        )
    return Encoder(tokenizer, checkpoint.encoder_of(source, model_config).frame, limits)


def _model(
    options: TrainOptions, source: Source | None, tokenizer: PreTrainedTokenizerBase
) -> RewardModel:
    """The model to train: weights in float32, but for those that adapters leave alone."""

    if source is None:
        model = reward_model.build(SIZES[options.model], tokenizer, seed=options.seed)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            dtype = (
                (torch_dtype(options.dtype) or training_dtype())
                if options.lora_rank
                else torch.float32
            )
            model = checkpoint.load(source, dtype=dtype, fresh_head=True)
    if options.lora_rank:
        adapters.add(model, rank=options.lora_rank, seed=options.seed)
    if options.gradient_checkpointing:
        model.backbone.activation_checkpointing_enable()
    if options.compile:
        reward_model.compile_layers(model)
    return model


def _counts(trainer: Trainer, kept: folders.Json) -> folders.Json:
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
