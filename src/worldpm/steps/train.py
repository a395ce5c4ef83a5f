"""Preference groups become a checkpoint: a built-in size from scratch, or a checkpoint trained further."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.formats import console, folders

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from worldpm.parts.batches import Limits
    from worldpm.parts.reward_model import RewardModel
    from worldpm.parts.training import Example, Settings, Trainer

logger = logging.getLogger(__name__)

PAPER_LR, PAPER_BATCH_PAIRS, PAPER_EPOCHS = 3e-6, 10_240, 1
"""Source: WorldPM, arXiv 2505.10527, appendix A.3. A built-in size has its own."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a preference model on groups."""

    groups: Positional[tuple[Path, ...]]
    """Folders written by `worldpm group`, or bare Parquet files of the same columns."""
    model: str
    """A built-in size (`tiny`), trained from scratch, or the folder of a checkpoint."""
    out: Path
    """Folder to write."""
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
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute type; bfloat16 where the device has it natively, else float32. Weights and optimizer stay float32."""
    seed: int = 0
    """Of the weights and of the order of the groups."""

    def __post_init__(self) -> None:
        if not self.groups:
            raise ConfigError("no groups given: name a folder that `worldpm group` wrote")
        positive = {"--max-length": self.max_length, "--batch-pairs": self.batch_pairs, "--epochs": self.epochs}
        for name, value in {**positive, "--max-steps": self.max_steps, "--lr": self.lr, "--prompt-length": self.prompt_length}.items():
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        if min(self.warmup, self.decay or 0) < 0 or self.warmup + (self.decay or 0) > 1:
            raise ConfigError(f"--warmup {self.warmup} and --decay {self.decay} are shares of the steps, together at most 1")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; it must not be negative")
        if self.max_length < 16 or (self.prompt_length or 0) > self.max_length - 8:
            raise ConfigError(
                f"--max-length {self.max_length} leaves no room for a prompt and a response; at least 16, and 8 more than --prompt-length"
            )


def run(config: Config) -> None:
    """Train, keep the weights of least validation loss, and write them as a folder that plain transformers loads."""
    from worldpm.parts import reward_model
    from worldpm.parts.training import Trainer

    for place in config.groups:
        if not place.is_file():
            folders.manifest(place, made_by="group")
    if config.model not in reward_model.SIZES and not Path(config.model).is_dir():
        raise ConfigError(f"--model {config.model}: neither a built-in size ({', '.join(reward_model.SIZES)}) nor a folder")
    if next(_rows(config, "train"), None) is None:
        raise ConfigError(f"{config.groups[0]}: the train split is empty; add sites, or give the other splits a smaller share")
    settings = _settings(config)
    output = folders.begin(config.out, step="train", config=_recorded(config, settings), inputs=_inputs(config))
    if output is None:
        return
    logger.info("compute type %s on %s", str(settings.dtype).removeprefix("torch."), _device())
    with output:
        tokenizer, model = _model(config, output)
        limits = _limits(config)
        examples = _examples(config, "train", tokenizer, limits)
        validation = _examples(config, "validation", tokenizer, limits)
        if not validation:
            logger.warning("no validation groups: the last weights are kept, not those of least validation loss")
        trainer = Trainer(model.to(_device()), examples, validation, settings, folder=config.out, state=output.progress / "resume")
        if not trainer.steps:
            raise ConfigError(f"--epochs {settings.epochs} of {len(examples)} groups is not one group; there is nothing to train on")
        trainer.run()
        _write(trainer, tokenizer, limits, config)
        output.finish(counts=_counts(trainer), drops={})


def _device() -> "torch.device":
    from worldpm.parts.scorer import default_device

    return default_device()


def _limits(config: Config) -> "Limits":
    from worldpm.parts.batches import Limits

    return Limits(config.max_length, config.prompt_length or config.max_length // 2)


def _settings(config: Config) -> "Settings":
    import torch

    from worldpm.parts.reward_model import SIZES
    from worldpm.parts.scorer import native_dtype
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
        decay=config.decay if config.decay is not None else (size.decay if size else 0.0),
        seed=config.seed,
        dtype=getattr(torch, config.dtype) if config.dtype else native_dtype(_device()),
    )


def _recorded(config: Config, settings: "Settings") -> folders.Json:
    """What the manifest says of the run: every setting as it took effect."""
    limits = _limits(config)
    model = config.model if not Path(config.model).is_dir() else Path(config.model).resolve().name
    chosen = {
        name: getattr(settings, name) for name in ("lr", "batch_pairs", "epochs", "max_steps", "weight_decay", "warmup", "decay", "seed")
    }
    dtype = str(settings.dtype).removeprefix("torch.")
    return {"model": model, "max_length": limits.max_length, "prompt_length": limits.prompt_length, **chosen, "dtype": dtype}


def _inputs(config: Config) -> list[folders.Json]:
    from worldpm.parts.reward_model import SIZES

    paths = [*config.groups, *([] if config.model in SIZES else [Path(config.model)])]
    return [folders.describe(path) for path in paths]


def _model(config: Config, output: folders.Output) -> "tuple[PreTrainedTokenizerBase, RewardModel]":
    """The tokenizer and the model to train; a tokenizer of one's own is trained once and kept for a resumed run."""
    from transformers import AutoTokenizer

    from worldpm.parts import reward_model
    from worldpm.parts.tokenizer import save_tokenizer, train_tokenizer

    size = reward_model.SIZES.get(config.model)
    if size is None:
        return AutoTokenizer.from_pretrained(config.model, local_files_only=True), reward_model.load(Path(config.model))
    kept = output.progress / "tokenizer"
    if not kept.is_dir():
        texts = (text for _, row in _rows(config, "train") for text in _texts(row))
        trained = train_tokenizer(texts, vocabulary=size.vocabulary, max_length=config.max_length)
        shutil.rmtree(aside := output.progress / "tokenizer.partial", ignore_errors=True)
        save_tokenizer(trained, aside)
        aside.rename(kept)
        logger.info("trained a tokenizer of %d tokens", len(trained))
    tokenizer = AutoTokenizer.from_pretrained(kept, local_files_only=True)
    return tokenizer, reward_model.build(size, tokenizer, seed=config.seed)


def _rows(config: Config, split: str) -> Iterator[tuple[Path, folders.Json]]:
    from worldpm.formats import schema, tables

    for path in tables.paths_of(*config.groups):
        yield from ((path, row) for row in tables.read_rows(path, schema.GROUPS) if row["split"] == split)


def _texts(row: folders.Json) -> list[str]:
    return [message["content"] for message in row["prompt"]] + [response["content"] for response in row["responses"]]


def _examples(config: Config, split: str, tokenizer: "PreTrainedTokenizerBase", limits: "Limits") -> "list[Example]":
    from worldpm.formats import schema
    from worldpm.parts.batches import encode_group
    from worldpm.parts.training import Example

    examples = []
    for path, row in console.track(_rows(config, split), f"read the {split} split", total=None):
        group = schema.group_from_row(row, path)
        encoded = encode_group(tokenizer, group.prompt, [r.content for r in group.responses], limits=limits, name=group.group_id)
        examples.append(Example(group.group_id, encoded, group.preferences))
    return examples


def _counts(trainer: "Trainer") -> folders.Json:
    examples, seen = trainer.examples, trainer.seen
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "train groups": len(examples),
        "validation groups": len(trainer.validation),
        "truncated train responses": sum(mark for example in examples for mark in example.encoded.truncated),
        "train responses": sum(len(example.encoded.suffixes) for example in examples),
        "steps": seen.step,
        "pairs seen": seen.pairs,
        "effective pairs seen": round(seen.effective_pairs, 6),
        "tokens seen": seen.tokens,
        "kept step": seen.best_step or seen.step,
    }


def _write(trainer: "Trainer", tokenizer: "PreTrainedTokenizerBase", limits: "Limits", config: Config) -> None:
    """The checkpoint's files."""
    from worldpm.formats import chat
    from worldpm.parts import reward_model, scorer, training
    from worldpm.parts.tokenizer import save_tokenizer

    save_tokenizer(tokenizer, config.out)
    reward_model.save(trainer.model, config.out)
    on = trainer.validation or trainer.examples
    measured = training.validate(trainer.model, on, row_tokens=trainer.settings.row_tokens, dtype=trainer.settings.dtype)
    description = {
        "end_token": chat.END_TOKEN,
        "template_hash": chat.template_hash(tokenizer),
        "max_length": limits.max_length,
        "prompt_length": limits.prompt_length,
        "reward_mean": measured["reward_mean"],
        "reward_std": measured["reward_std"],
        "lineage": {"model": config.model, "groups": [folders.describe(folder) for folder in config.groups]},
    }
    folders.write_atomically(config.out / scorer.DESCRIPTION, folders.to_json(description))
