"""Preference groups to a checkpoint: a built-in size from scratch, or a model trained further.

Under `accelerate launch` or `torchrun`, training runs in many processes. The first process writes.
"""

import contextlib
import hashlib
import heapq
import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

from worldpm import console
from worldpm.datasets.training_data import TrainingData
from worldpm.errors import ConfigError
from worldpm.model import (
    adapters,
    chat,
    checkpoint,
    costs,
    frozen_states,
    reward_model,
    sources,
)
from worldpm.model.description import (
    Lineage,
    RewardStatistics,
    TrainingRecord,
    describe_encoder,
    input_to_json,
    write_description,
)
from worldpm.model.devices import torch_dtype, training_dtype
from worldpm.model.encoder import TOLD_CUT, Encoder, Limits
from worldpm.model.reward_model import RewardModel
from worldpm.model.sizes import POSITIONS, SIZES
from worldpm.model.sources import Source
from worldpm.model.tokenizer import save_tokenizer, train_tokenizer
from worldpm.options.shared import SourceOptions, changed, column_names, command_of, names_of
from worldpm.options.train import TrainOptions
from worldpm.records import PreferenceGroup
from worldpm.scoring import scorer
from worldpm.stats.bradley_terry import Objective
from worldpm.storage import folders
from worldpm.storage.folders import Output
from worldpm.storage.json_files import Plain, to_json
from worldpm.storage.manifest import PROGRESS, Run, read_manifest
from worldpm.storage.manifest import describe as describe_input
from worldpm.training import token_store
from worldpm.training.loop import Callback, Settings, Trainer
from worldpm.training.processes import accelerator as accelerator_of
from worldpm.training.state import weights_of
from worldpm.training.step_metrics import TrainCounts, ValidationMetrics, counts_of, read_metrics
from worldpm.training.token_store import StoreCounts, TokenStore
from worldpm.training.zero import Tensors

logger = logging.getLogger(__name__)

Split = Literal["train", "validation"]
TOKENIZER, SNAPSHOTS, STATES = "tokenizer", "snapshots", "states"
PAPER_LR, PAPER_BATCH_PAIRS, PAPER_EPOCHS = 3e-6, 10_240, 1
"""Source: WorldPM, arXiv 2505.10527, appendix A.3. Built-in sizes have other values."""
FEW_STEPS = 20
"""Runs with fewer steps print a warning: the default step has 10,240 pairs, more than many sets
contain."""
NOT_SAMPLED = "group that --validation-groups leaves out"
FIXED_SETTINGS = ("objective", "betas", "clip_norm")
"""Settings that are left out of the manifest because no option has their name."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training."""

    folder: Path
    """The checkpoint, which transformers can load without our code."""
    kept_step: int
    """The step whose weights are in the checkpoint."""
    metrics: ValidationMetrics | None
    """Metrics of these weights on the validation groups; None if there are none."""


@dataclass(frozen=True)
class StoreContents:
    """A split, tokenized."""

    counts: StoreCounts
    drops: dict[str, int]
    """Number of left-out rows of preference sets, groups and pairs, by reason."""


class Contents(NamedTuple):
    """Both splits, tokenized."""

    train: StoreContents
    validation: StoreContents


class Loaded(NamedTuple):
    """A training in memory, before its first step."""

    encoder: Encoder
    model: RewardModel
    """The unwrapped model. The trainer's model is wrapped by the engine that runs it."""
    trainer: Trainer


def run(options: TrainOptions) -> TrainResult:
    """Run `worldpm train`."""
    return train(options)


def train(options: TrainOptions, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train, and write the weights of least validation loss. A finished folder of the same options
    and inputs stays unchanged. `callbacks` get each row of metrics.

    Raises:
        ConfigError: If the options contradict each other, the model or the groups.
        DataError: If a file of groups is damaged.
        CheckpointError: If the model to train further cannot be loaded.
        TrainingError: If a loss or a reward is not finite.
    """
    source = _find_source(options)
    data = TrainingData.find(
        options.groups,
        validation=options.validation,
        columns=column_names(options.columns),
    )
    settings = _settings(options)
    # not in OUT, because a tracker may write after OUT is finished and hashed
    tracking = options.out.with_name(f"{options.out.name}.tracking")
    accelerator = accelerator_of(settings.dtype, tracker=options.tracker, folder=tracking)

    output: Output | None = None
    finished: TrainResult | None = None
    if accelerator.is_main_process:
        output = _begin(options, settings, data, source)
        finished = None if output else read_result(options.out)
    # the other processes wait here until the first one has looked
    (finished,) = broadcast_object_list([finished])
    if finished is not None:
        return finished

    if accelerator.is_main_process:
        logger.info("compute type %s on %s", _name_of(settings.dtype), accelerator.device)
    with output or contextlib.nullcontext():
        training = TrainingRun(options, settings, data, source, accelerator, output, callbacks)
        return training.complete()


def read_result(folder: Path) -> TrainResult:
    """Read the result of a finished training run from its folder.

    Raises:
        ConfigError: If the folder is not finished, or is not from a training run.
        DataError: If one of its files is damaged.
    """
    counts = counts_of(folder, read_manifest(folder, made_by="train"))
    validations = {row.step: row for row in read_metrics(folder).validations}
    return TrainResult(folder, counts.kept_step, validations.get(counts.kept_step))


@dataclass(frozen=True)
class TrainingRun:
    """One process of a training run. Its steps, in order: prepare, load, train, write."""

    options: TrainOptions
    settings: Settings
    data: TrainingData
    source: Source | None
    """The model to train further; None for a built-in size."""
    accelerator: Accelerator
    output: Output | None
    """The folder to write; None in all processes but the first, because only the first writes."""
    callbacks: Sequence[Callback] = ()
    """Called with each row of metrics."""

    @property
    def progress(self) -> Path:
        """The folder of tokens and states, which every process reads."""
        return self.options.out / PROGRESS

    def complete(self) -> TrainResult:
        """Run all steps. Every process must call this."""
        contents = self.prepare()
        # the other processes read what the first one prepared
        self.accelerator.wait_for_everyone()
        loaded = self.load()
        self.train(loaded)

        metrics = self.write(loaded, contents)
        if self.output is not None and loaded.trainer.totals.best is not None:
            _log_kept(metrics, steps=len(loaded.trainer.steps))
        # no process ends while the first one still writes
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return TrainResult(self.options.out, metrics.step, loaded.trainer.totals.best)

    def prepare(self) -> Contents | None:
        """Write the tokenizer and the tokens of each split, unless an earlier start of the run did.
        Return None in all processes but the first."""
        if self.output is None:
            return None

        tokenizer = self.progress / TOKENIZER
        if not tokenizer.is_dir():
            # a killed run leaves only the partial folder
            aside = self.progress / f"{TOKENIZER}.partial"
            shutil.rmtree(aside, ignore_errors=True)
            save_tokenizer(_new_tokenizer(self.options, self.data, self.source), aside)
            aside.rename(tokenizer)

        encoder = _encoder(self.options, self.source, tokenizer)
        train = self._tokenize(self.output, "train", encoder)
        _warn_of_cuts(train.counts)
        return Contents(
            train=train,
            validation=self._tokenize(self.output, "validation", encoder),
        )

    def _tokenize(self, output: Output, split: Split, encoder: Encoder) -> StoreContents:
        """Write the tokens of one split."""

        def build(aside: Path) -> Plain:
            # reading the groups fills it
            drops: Counter[str] = Counter()
            groups = self.data.groups(split, drops)
            most = self.options.validation_groups
            if split == "validation" and most is not None:
                groups = _sample(groups, most, drops)
            examples = token_store.encode(
                console.track(groups, f"tokenize the {split} split", total=None),
                self.progress / TOKENIZER,
                encoder.frame,
                encoder.limits,
                drops,
                workers=self.options.workers,
            )
            counts = token_store.write(aside, examples)

            reasons = {reason: number for reason, number in sorted(drops.items()) if number}
            return asdict(StoreContents(counts, reasons))

        contents = output.part(f"{PROGRESS}/{split}.tokens", build)
        return msgspec.convert(contents, StoreContents)

    def load(self) -> Loaded:
        """Open the tokens, and load or build the model.

        Raises:
            ConfigError: If the options give a run without any step.
        """
        encoder = _encoder(self.options, self.source, self.progress / TOKENIZER)
        train_store = TokenStore([self.progress / "train.tokens"])
        validation_store = TokenStore([self.progress / "validation.tokens"])
        if not len(validation_store) and self.output is not None:
            logger.warning(
                "no validation groups: the checkpoint will have the last weights, not those of"
                " least validation loss"
            )

        model = _model(self.options, self.source, encoder.tokenizer)
        trainer = Trainer(
            model,
            train_store,
            validation_store,
            self.settings,
            folder=self.options.out,
            state=self.progress / "resume",
            states=self.options.states or self.progress / STATES,
            accelerator=self.accelerator,
            callbacks=self.callbacks,
        )
        if not trainer.steps:
            raise ConfigError(
                f"--epochs {self.settings.epochs}: this share of {len(train_store)} groups is less"
                " than one group, so there is nothing to train on. Raise it."
            )
        if len(trainer.steps) < FEW_STEPS:
            logger.warning(
                "--batch-pairs %d: the run has only %d steps, in which a model learns little. Lower"
                " --batch-pairs, or raise --epochs.",
                self.settings.batch_pairs,
                len(trainer.steps),
            )
        return Loaded(encoder, model, trainer)

    def train(self, loaded: Loaded) -> None:
        """Train to the end, starting from the last saved state if there is one, and write the
        snapshots."""
        config = _config(self.options, self.settings)
        self.accelerator.init_trackers("worldpm", config=config)
        loaded.trainer.run(partial(self._write_snapshot, loaded))

    def write(self, loaded: Loaded, contents: Contents | None) -> ValidationMetrics:
        """Write the checkpoint, finish the folder, and return the metrics of the written weights.
        Every process must call this."""
        trainer = loaded.trainer
        # every process gathers and measures; only the first writes
        weights, metrics = weights_of(trainer.model), trainer.kept_metrics()
        if self.output is not None and contents is not None:
            self._write_checkpoint(self.output, self.options.out, loaded, weights, metrics)
            self.output.finish(
                counts=asdict(_counts(trainer, contents)),
                drops=self._drops(contents),
            )

        return metrics

    def _drops(self, contents: Contents) -> dict[str, dict[str, int]]:
        """Counts of dropped rows, groups and pairs, by kind of data and reason."""
        drops = {"preference sets": contents.train.drops}
        not_sampled = contents.validation.drops.get(NOT_SAMPLED, 0)
        # without --validation, both splits come from the same rows
        if self.options.validation:
            drops["validation sets"] = contents.validation.drops
        elif not_sampled:
            drops["validation sets"] = {NOT_SAMPLED: not_sampled}
        return drops

    def _write_snapshot(self, loaded: Loaded, weights: Tensors, metrics: ValidationMetrics) -> None:
        """Write a checkpoint named after its run and step, unless an earlier start of the run
        finished it."""
        if self.output is None:
            return

        run = self.output.run
        name = f"{self.output.path.resolve().name}-{metrics.step:06}"
        folder = self.output.path / SNAPSHOTS / name
        # the step in the settings distinguishes the snapshots of a run
        config = {**run.config, "snapshot": metrics.step}
        snapshot = folders.begin(
            folder, step=run.step, config=config, inputs=run.inputs, command=run.command
        )
        if snapshot is not None:
            with snapshot:
                self._write_checkpoint(self.output, folder, loaded, weights, metrics)
                snapshot.finish(counts={"step": metrics.step})

    def _write_checkpoint(
        self,
        output: Output,
        folder: Path,
        loaded: Loaded,
        weights: Tensors,
        metrics: ValidationMetrics,
    ) -> None:
        """Write the tokenizer, config, weights and description."""
        tokenizer = loaded.encoder.tokenizer
        save_tokenizer(tokenizer, folder)
        plain_weights = adapters.merged(weights)
        checkpoint.save(loaded.model, plain_weights, folder, pad_token_id=tokenizer.pad_token_id)

        # the inputs of a run are its groups, then the model that it trains further
        groups = output.run.inputs[: len(self.data.inputs)]
        description = describe_encoder(
            loaded.encoder,
            RewardStatistics(metrics.reward_mean, metrics.reward_std, metrics.temperature),
            training=self._record(output.run, loaded, metrics),
            lineage=Lineage(self.options.model, tuple(groups)),
        )
        write_description(folder, description)

    def _record(self, run: Run, loaded: Loaded, metrics: ValidationMetrics) -> TrainingRecord:
        model_type = loaded.model.backbone.config.model_type
        built_in = self.options.model in SIZES

        return TrainingRecord(
            run=_run_id(run),
            family="built-in" if built_in else f"{model_type}, trained further",
            non_embedding=loaded.trainer.cost.non_embedding,
            frozen_layers=self.options.freeze_layers,
            step=metrics.step,
            pairs=metrics.pairs_seen,
            effective_pairs=metrics.effective_pairs_seen,
            tokens=metrics.tokens_seen,
            flops=metrics.flops_seen,
        )


def _run_id(run: Run) -> str:
    """A hash of the settings and inputs of a run."""
    # without unset fields, so that a field added to inputs later does not rename old runs
    inputs = [input_to_json(entry) for entry in run.inputs]
    return hashlib.sha256(to_json([run.config, inputs])).hexdigest()[:16]


def _find_source(options: TrainOptions) -> Source | None:
    """The model to train further; None for a built-in size.

    Raises:
        ConfigError: If --model does not name a model that can be trained.
    """
    options.check_inputs()
    built_in = options.model in SIZES
    if built_in and (given := changed(options, names_of(SourceOptions))):
        raise ConfigError(
            f"{given[0]}: {options.model} is a built-in size with its own tokenizer and template."
            f" Leave {given[0]} out, or name a model."
        )

    if built_in:
        return None
    return sources.of(options.model, options)


def _begin(
    options: TrainOptions, settings: Settings, data: TrainingData, source: Source | None
) -> Output | None:
    """Begin the folder to write; None if it is already finished.

    Raises:
        ConfigError: If the folder holds something else, or the train groups are empty.
    """
    inputs = [describe_input(path) for path in data.inputs]
    if source is not None:
        inputs.append(sources.fingerprint(source))

    # checked before the folder is begun, so that another run can still use it
    if next(data.groups("train", Counter()), None) is None:
        raise ConfigError(
            f"{options.groups[0]}: the train split is empty. Add sites, or make the other splits"
            " smaller."
        )
    if options.validation and next(data.groups("validation", Counter()), None) is None:
        raise ConfigError(
            f"--validation {options.validation[0]}: has no preferences. Name another file."
        )
    _warn_of_margins(options, data)

    return folders.begin(
        options.out,
        step="train",
        config=_config(options, settings),
        inputs=inputs,
        command=command_of("train", options),
    )


def _warn_of_margins(options: TrainOptions, data: TrainingData) -> None:
    paths = [] if options.target_margin else data.with_column("margin")
    if paths:
        logger.warning(
            "%s: the column margin is not used. Pass --target-margin 1 to use its margins.",
            ", ".join(map(str, paths[:3])),
        )


def _settings(options: TrainOptions) -> Settings:
    """The settings of the loop: the option's value, else the built-in size's, else the paper's."""
    size = SIZES.get(options.model)
    lr, batch_pairs, epochs, decay = PAPER_LR, PAPER_BATCH_PAIRS, PAPER_EPOCHS, 0.0
    if size is not None:
        lr, batch_pairs, epochs = size.lr, size.batch_pairs, size.epochs
        # a cosine schedule already falls to 0
        decay = size.decay if options.schedule == "constant" else 0.0

    return Settings(
        lr=options.lr or lr,
        batch_pairs=options.batch_pairs or batch_pairs,
        epochs=options.epochs or epochs,
        max_steps=options.max_steps,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        decay=decay if options.decay is None else options.decay,
        schedule=options.schedule,
        objective=Objective(
            loss=options.loss,
            target_margin=options.target_margin,
            label_smoothing=options.label_smoothing,
            centring=options.centring,
        ),
        optimizer=options.optimizer,
        row_tokens=options.row_tokens or _default_row_tokens(),
        seed=options.seed,
        snapshots=options.snapshots,
        validations=options.validations,
        freeze_layers=options.freeze_layers,
        dtype=torch_dtype(options.dtype) or training_dtype(),
    )


def _default_row_tokens() -> int:
    return costs.GPU_ROW_TOKENS if torch.cuda.is_available() else scorer.ROW_TOKENS


def _config(options: TrainOptions, settings: Settings) -> Plain:
    """Every setting in effect, for the manifest and for trackers."""
    is_path = Path(options.model).exists()
    limits = _limits(options)
    of_loop = asdict(settings)
    for name in FIXED_SETTINGS:
        del of_loop[name]

    # the order of the keys is part of the hash that names a run
    return {
        "model": Path(options.model).resolve().name if is_path else options.model,
        "max_length": limits.max_length,
        "prompt_length": limits.prompt_length,
        **of_loop,
        **settings.objective._asdict(),
        "lora_rank": options.lora_rank,
        "quantize": options.quantize,
        "gradient_checkpointing": options.gradient_checkpointing,
        "compile": options.compile,
        "revision": options.revision,
        "remote_code": options.remote_code,
        "chat_template": options.chat_template,
        "template_name": options.template_name,
        # strings, because trackers do not accept lists
        "columns": ",".join(map("=".join, column_names(options.columns).items())),
        "validation": " ".join(Path(name).name for name in options.validation),
        "validation_groups": options.validation_groups,
        "dtype": _name_of(settings.dtype),
    }


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _new_tokenizer(
    options: TrainOptions, data: TrainingData, source: Source | None
) -> PreTrainedTokenizerBase:
    """The tokenizer of the run: the model's, or a new one trained on the train split. Its template
    contains the frame."""
    if source is not None:
        encoder = checkpoint.encoder_of(source, checkpoint.load_config(source))
        tokenizer = encoder.tokenizer
        # the pad token must not end a text, and the template must give the frame without our code
        tokenizer.pad_token = checkpoint.pad_token(tokenizer, encoder.frame)
        template = str(tokenizer.chat_template)
        tokenizer.chat_template = chat.standing_alone(template, encoder.frame)
        return tokenizer

    trained = train_tokenizer(
        _texts(data.groups("train", Counter())),
        vocabulary=SIZES[options.model].vocabulary,
        max_length=options.max_length,
    )
    trained.chat_template = chat.standing_alone(str(trained.chat_template), chat.frame_of(trained))
    logger.info("trained a tokenizer of %d tokens", len(trained))
    return trained


def _sample(
    groups: Iterator[PreferenceGroup], most: int, drops: Counter[str]
) -> Iterator[PreferenceGroup]:
    """At most `most` groups, in order: those whose names have the least hashes, so that groups
    added later replace few of them."""

    def hashed() -> Iterator[tuple[bytes, int, PreferenceGroup]]:
        for number, group in enumerate(groups):
            drops[NOT_SAMPLED] += 1
            yield hashlib.sha256(group.group_id.encode()).digest(), number, group

    # reads all groups, but holds only the sample; equal names differ in their numbers
    sample = heapq.nsmallest(most, hashed())
    drops[NOT_SAMPLED] -= len(sample)
    for _, _, group in sorted(sample, key=itemgetter(1)):
        yield group


def _texts(groups: Iterator[PreferenceGroup]) -> Iterator[str]:
    for group in groups:
        yield from (message.content for message in group.prompt)
        yield from (response.content for response in group.responses)


def _limits(options: TrainOptions) -> Limits:
    """The length limits of the run's sequences."""
    limits = Limits.of(options.max_length)
    if options.prompt_length is None:
        return limits
    return limits._replace(prompt_length=options.prompt_length)


def _encoder(options: TrainOptions, source: Source | None, tokenizer_folder: Path) -> Encoder:
    """The encoder of the run, which cuts texts over the limits.

    Raises:
        ConfigError: If --max-length is larger than the model's number of positions.
    """
    limits = _limits(options)
    tokenizer = checkpoint.load_tokenizer(Source(tokenizer_folder))
    if source is None:
        positions, frame = POSITIONS, chat.frame_of(tokenizer)
    else:
        model_config = checkpoint.load_config(source)
        positions = checkpoint.positions_of(model_config)
        frame = checkpoint.encoder_of(source, model_config).frame

    if options.max_length > positions:
        raise ConfigError(
            f"--max-length {options.max_length}: the model has only {positions} positions. Use a"
            f" length of at most {positions}."
        )
    return Encoder(tokenizer, frame, limits)


def _model(
    options: TrainOptions, source: Source | None, tokenizer: PreTrainedTokenizerBase
) -> RewardModel:
    """The model to train. Its weights are in float32, except those that adapters leave frozen."""
    if source is None:
        model = reward_model.build(SIZES[options.model], tokenizer, seed=options.seed)
    else:
        compute_type = torch_dtype(options.dtype) or training_dtype()
        # an optimizer makes small changes to weights, which need float32; frozen weights do not
        dtype = compute_type if options.lora_rank else torch.float32
        # draw a new head from the seed, and leave the random state of the process unchanged
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            model = checkpoint.load(
                source,
                dtype=dtype,
                fresh_head=True,
                quantize=options.quantize,
                device=PartialState().device if options.quantize else None,
            )

    if options.lora_rank:
        adapters.add(model, rank=options.lora_rank, seed=options.seed)
    if options.freeze_layers:
        frozen_states.freeze(model.backbone, options.freeze_layers)
    if options.gradient_checkpointing:
        model.backbone.activation_checkpointing_enable()
    # last, because it compiles the layers in their final form
    if options.compile:
        reward_model.compile_layers(model)
    return model


def _log_kept(metrics: ValidationMetrics, *, steps: int) -> None:
    """Log the step whose weights are kept, and warn if a coin does as well."""
    logger.info(
        "kept the weights of step %d of %d: validation loss %.4f nats (a coin: %.4f), accuracy"
        " %.3f",
        metrics.step,
        steps,
        metrics.loss_nats,
        math.log(2),
        metrics.accuracy,
    )
    if metrics.loss_nats >= math.log(2):
        logger.warning(
            "on the validation pairs a coin does as well as this model. Use more pairs or steps,"
            " another --lr, or a pre-trained model."
        )


def _warn_of_cuts(stored: StoreCounts) -> None:
    share = stored.truncated_responses / max(1, stored.responses)
    if share > TOLD_CUT:
        logger.warning(
            "%.0f %% of the training responses, or their prompts, are cut. A larger --max-length"
            " reads more of them.",
            100 * share,
        )


def _counts(trainer: Trainer, contents: Contents) -> TrainCounts:
    parameters = list(trainer.model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    totals, stored = trainer.totals, contents.train.counts

    return TrainCounts(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained_parameters=sum(parameter.numel() for parameter in trained),
        train_groups=stored.groups,
        validation_groups=contents.validation.counts.groups,
        truncated_train_responses=stored.truncated_responses,
        train_responses=stored.responses,
        steps=totals.step,
        pairs_seen=totals.pairs,
        effective_pairs_seen=totals.position.effective_pairs_seen,
        tokens_seen=totals.tokens,
        kept_step=totals.best.step if totals.best else totals.step,
    )
