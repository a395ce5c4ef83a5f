"""The training loop: packed rows of complete groups, one optimizer step per `batch_pairs` pairs,
and an exact resume.

The loss of a step is the sum over its preferences, divided by the sum of their weights. It does not
depend on the number of rows and processes. All processes run the same number of rows, because
sharded engines would otherwise deadlock; a process without a row left runs an empty one.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from worldpm import console
from worldpm.curves import sudden_drops
from worldpm.errors import ConfigError, TrainingError
from worldpm.model import costs, quantization
from worldpm.model.packing import pack
from worldpm.model.reward_model import RewardModel
from worldpm.scoring import scorer
from worldpm.stats import bradley_terry, calibration
from worldpm.stats.bradley_terry import Objective
from worldpm.stats.pairs import pairs_of
from worldpm.stats.precision import widest_float
from worldpm.storage.manifest import TIMINGS
from worldpm.training import step_metrics, zero
from worldpm.training.processes import Speed
from worldpm.training.state import SavedState, Totals, load_last, put_weights, weights_of
from worldpm.training.state import save as save_state
from worldpm.training.step_metrics import METRICS, Position, StepMetrics, ValidationMetrics
from worldpm.training.steps import Indices, steps_of
from worldpm.training.token_store import Example, TokenStore
from worldpm.training.zero import Tensors

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_SAVES = 60.0
COMPUTING_PER_SAVING = 20
"""Least ratio of the time that a run computes to the time that it saves."""
GROUPS_TO_MEASURE = 1000
"""Number of train groups that measure a model if the validation split is empty."""
BRADLEY_TERRY = Objective()

Callback = Callable[[StepMetrics | ValidationMetrics], None]
"""Takes a row of metrics: of each step, and of each validation."""
Keep = Callable[[Tensors, ValidationMetrics], None]
"""Takes the weights of a snapshot and their metrics. Every process calls it, but only the first
process has the weights."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the loop. The defaults are the paper's, where the paper gives a value."""

    lr: float
    """Learning rate after the warm-up."""
    batch_pairs: int
    """Number of preference pairs at which a step is full."""
    epochs: float
    """Passes over the groups."""
    max_steps: int | None
    """Optimizer steps, instead of `epochs`; None if `epochs` sets the length."""
    weight_decay: float
    """AdamW's weight decay, applied to matrices."""
    warmup: float
    """Share of the steps in which the learning rate rises."""
    decay: float
    """Share of the steps, at the end, in which the learning rate falls to 0."""
    seed: int
    """The seed of the order of the groups."""
    dtype: torch.dtype = torch.float32
    """The compute type."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The course of the learning rate between warm-up and decay."""
    objective: Objective = BRADLEY_TERRY
    row_tokens: int = scorer.ROW_TOKENS
    """The most tokens of groups in one row."""
    validations: int = 5
    """Number of validations, evenly spread; the last follows the last step."""
    freeze_layers: int = 0
    """Number of layers, from the embeddings up, that stay unchanged, and the embeddings with them;
    0 trains everything."""
    snapshots: int = 0
    """Number of snapshots of the weights, at steps evenly spread over their logarithm."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's betas."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """The form of AdamW's moments: float32, or 8 bits."""
    clip_norm: float = 1.0
    """The largest gradient norm; larger gradients are scaled down to it."""


class StepResult(NamedTuple):
    """One optimizer step."""

    metrics: StepMetrics
    save_due: bool
    """Whether to save a state. The first process decides, and all processes get its decision."""


class StepSums(NamedTuple):
    """Sums over the rows of a step, of all processes."""

    loss_nats: float
    """Already divided by the weights of the step's pairs."""
    credits: float
    """Weights of the pairs with a positive margin; a tie counts half."""
    save_due: float
    """Above 0 if the first process decided to save a state."""


class SaveClock:
    """Decides when to save a state, so that saving takes only a small share of the run."""

    def __init__(self) -> None:
        self._saved = time.monotonic()
        self._pause = SECONDS_BETWEEN_SAVES

    def is_due(self) -> bool:
        """Whether the pause after the last save is over."""
        return time.monotonic() - self._saved >= self._pause

    def saved(self, seconds: float) -> None:
        """Record the end of a save that took `seconds`."""
        self._saved = time.monotonic()
        self._pause = max(SECONDS_BETWEEN_SAVES, COMPUTING_PER_SAVING * seconds)


class Trainer:
    """One run: a model, its groups, the folder of its metrics, and the folder of its saved
    states."""

    def __init__(
        self,
        model: RewardModel,
        train: TokenStore,
        validation: TokenStore,
        settings: Settings,
        *,
        folder: Path,
        state: Path,
        states: Path | None = None,
        accelerator: Accelerator,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """`state` is the folder of saved states of the run, `states` that of the hidden states of
        its frozen layers; None runs these layers each time. The first process calls `callbacks`
        with each row of metrics."""
        self.train, self.validation, self.settings = train, validation, settings
        self.folder, self.state, self.accelerator = folder, state, accelerator
        self.callbacks = callbacks
        self.cost = costs.cost_of(model.backbone.config)
        self.layers: int = model.backbone.config.get_text_config().num_hidden_layers
        # DeepSpeed reads its configuration when it takes the model
        if zero.is_zero(accelerator):
            zero.configure(accelerator, clip_norm=settings.clip_norm)
        self.model, self.optimizer = accelerator.prepare(model, _optimizer(model, settings))

        self.totals = Totals()
        self.best_weights: Tensors = {}
        self.shares_prefix = self._shares_prefix()
        # engines that gather each layer's weights before it runs would still gather them
        is_whole = not (zero.is_zero(accelerator) or self._is_sharded)
        if settings.freeze_layers and states is not None and is_whole:
            with accelerator.autocast():
                self._unwrapped_model.keep_states(settings.freeze_layers, states)
        self._warn_of_long_groups()
        # all steps are known ahead, so a resumed run needs only the number of its next step
        self.steps = steps_of(
            train.pairs,
            batch_pairs=settings.batch_pairs,
            seed=settings.seed,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
        )

    def run(self, keep: Keep | None = None) -> None:
        """Train to the end, starting from the last saved state if there is one. Call `keep` for
        each snapshot, and finally give the model its weights of least validation loss."""
        self.resume()
        on_main = self.accelerator.is_main_process
        speed = Speed.of(self.accelerator, self.settings.dtype) if on_main else None
        total = len(self.steps)
        validation_steps = even_steps(total, self.settings.validations)
        kept_steps = snapshot_steps(total, self.settings.snapshots)
        watch, clock = sudden_drops.Watch(total), SaveClock()

        with console.progress("train", total=total) as advance:
            advance(self.totals.step, earlier=True)
            while self.totals.step < total:
                metrics, save_due = self._timed_step(speed, save_due=clock.is_due())
                self._log_drop(watch.add(metrics.step, metrics.loss_nats, metrics.grad_norm))

                validates = metrics.step in validation_steps
                if validates and len(self.validation):
                    self._validate()
                # all processes must gather weights together, so all of them call `keep`
                if metrics.step in kept_steps and keep is not None:
                    keep(weights_of(self.model), self._metrics_now())
                # a validation can find new best weights, and a resume needs them
                if validates or save_due:
                    started = time.monotonic()
                    self.save()
                    clock.saved(time.monotonic() - started)
                advance(note=f"loss {metrics.loss_nats:.3f} accuracy {metrics.accuracy:.3f}")

        if self._unwrapped_model.frozen_states is not None:
            self._unwrapped_model.frozen_states.write()
        # without validation groups the model keeps its last weights
        if self.totals.best:
            put_weights(self.model, self.best_weights)
        self.model.eval()

    def _timed_step(self, speed: Speed | None, *, save_due: bool) -> StepResult:
        """Run the next step, and log it in `metrics.jsonl` and `timings.jsonl`. Only the first
        process has a `speed`."""
        indices = self.steps[self.totals.step]
        started = time.monotonic()
        result = self.step(indices, save_due=save_due)
        seconds = time.monotonic() - started

        self._log(result.metrics)
        if speed is not None:
            timing = speed.timing(
                result.metrics.step,
                flops=self._flops(indices),
                tokens=int(self.train.tokens[indices].sum()),
                pairs=int(self.train.pairs[indices].sum()),
                seconds=seconds,
            )
            step_metrics.append(self.folder / TIMINGS, timing)
        return result

    def step(self, indices: Indices, *, save_due: bool = False) -> StepResult:
        """Take one optimizer step over groups. All processes use the first process's `save_due`.

        Raises:
            TrainingError: If the loss or the gradient is not finite.
        """
        self.model.train()
        lr = self.settings.lr * self._lr_share()
        for group in self.optimizer.param_groups:
            group["lr"] = lr

        weight = float(self.train.weights[indices].sum())
        sums = self._backward(indices, weight, save_due=save_due)
        norm = self._clip()
        # loss and norm are sums over all processes, so all of them stop together
        if not math.isfinite(sums.loss_nats) or not math.isfinite(norm):
            names = ", ".join(self.train[int(index)].name for index in indices[:3])
            raise TrainingError(
                f"step {self.totals.step + 1}: the loss is {sums.loss_nats} and the gradient norm"
                f" {norm} (groups {names}, ...). {self._advice()}"
            )

        # both do nothing under DeepSpeed, which took its step in the last backward
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._count(indices, weight)
        metrics = StepMetrics(
            **vars(self.totals.position),
            loss_nats=sums.loss_nats,
            accuracy=sums.credits / weight,
            grad_norm=norm,
            lr=lr,
        )
        return StepResult(metrics, bool(sums.save_due))

    def _backward(self, indices: Indices, weight: float, *, save_due: bool) -> StepSums:
        """Add up the gradients of a step's rows; `weight` is the sum of their pairs' weights."""
        sizes = self._sizes(self.train)[indices]
        rows, filler = self._rows(sizes), int(indices[np.argmin(sizes)])
        device = self.accelerator.device
        sums = torch.zeros(3, dtype=widest_float(device), device=device)
        sums[2] = float(save_due and self.accelerator.is_main_process)

        for number, row in enumerate(rows):
            examples = [self.train[int(indices[i])] for i in row] or [self.train[filler]]
            with self._synchronizing(last=number == len(rows) - 1):
                # for an empty row, the model runs the filler group; dividing by infinity makes its
                # gradients 0
                loss, pair_credits = self._row(examples, weight if row else math.inf)
                # engines average gradients over the processes, but the loss is already divided by
                # the weights of all processes
                self.accelerator.backward(loss * self.accelerator.num_processes)
            sums[0] += loss.detach()
            sums[1] += pair_credits

        # exchange all three numbers at once
        return StepSums(*cast(Tensor, self.accelerator.reduce(sums)).tolist())

    def _clip(self) -> float:
        """Scale large gradients down, and return their norm before that."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        # FSDP2 returns a sharded tensor
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _advice(self) -> str:
        """The advice that ends a message about a loss or reward that is not finite."""
        return f"Lower --lr, or use --dtype float32. The last saved state is in {self.state}."

    def _shares_prefix(self) -> bool:
        """Run the model once, under its engine, to learn whether it shares prompts. Every process
        must call this.

        Raises:
            ConfigError: If the model shares no prompts, and the engine needs the same number of
                forward passes in each process.
        """
        self.model.eval()
        # any group will do, and the smallest is the cheapest
        smallest = int(np.argmin(self.train.tokens))
        with torch.no_grad():
            self.model([self.train[smallest].encoded])

        shares = bool(self._unwrapped_model.shares_prefix)
        gathers = self._is_sharded or zero.stage_of(self.accelerator) == 3
        if gathers and self.accelerator.num_processes > 1 and not shares:
            raise ConfigError(
                "--model: it shares no prompts, so processes would run different numbers of forward"
                " passes, and FSDP2 or ZeRO-3 would deadlock. Use DDP or ZeRO-2, and"
                " --gradient-checkpointing if memory is short."
            )
        return shares

    @property
    def _is_sharded(self) -> bool:
        """Whether FSDP2 shards the weights."""
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    @property
    def _unwrapped_model(self) -> RewardModel:
        return cast(RewardModel, self.accelerator.unwrap_model(self.model))

    def _warn_of_long_groups(self) -> None:
        sizes = self._sizes(self.train)
        long_groups = int((sizes > self.settings.row_tokens).sum())
        if long_groups and self.accelerator.is_main_process:
            logger.warning(
                "%d groups are longer than a row of %d tokens, the longest %d. Each of them runs"
                " alone, and needs more memory than a full row.",
                long_groups,
                self.settings.row_tokens,
                sizes.max(),
            )

    def _sizes(self, store: TokenStore) -> NDArray[np.int64]:
        """Number of tokens that the model runs for each group."""
        return store.tokens if self.shares_prefix else store.tokens_apart

    def _rows(self, sizes: NDArray[np.int64]) -> list[list[int]]:
        """This process's rows, each a list of indices into `sizes`. All processes have the same
        number of rows, so some rows are empty."""
        rows = pack(sizes.tolist(), row_tokens=self.settings.row_tokens)
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        # fill up to the next multiple of the number of processes
        rows += [[] for _ in range(-len(rows) % processes)]
        return rows[process::processes]

    def _synchronizing(self, *, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients once a step. Engines that shard gradients exchange them after every
        row, because each process would otherwise hold all of them."""
        # DeepSpeed takes its step after the row that synchronizes
        self.accelerator.gradient_state._set_sync_gradients(last)
        if zero.is_zero(self.accelerator):
            return nullcontext()
        if self._is_sharded or last:
            return nullcontext()
        return cast(AbstractContextManager[object], self.accelerator.no_sync(self.model))

    def _lr_share(self) -> float:
        """Factor of the learning rate in the next step, above 0. It rises in the warm-up, stays at
        1 or follows half a cosine, and falls in the decay."""
        step, total = self.totals.step, len(self.steps)
        warm_steps = max(1, round(self.settings.warmup * total))
        decay_steps = max(1, round(self.settings.decay * total))
        # above 0 in the first step, number 0, and in the last, number total - 1
        share = min(1.0, (step + 1) / warm_steps, (total - step) / decay_steps)
        if self.settings.schedule == "cosine" and step >= warm_steps:
            angle = math.pi * (step - warm_steps + 1) / (total - warm_steps + 1)
            share *= (1 + math.cos(angle)) / 2
        return share

    def _row(self, examples: Sequence[Example], weight: float) -> tuple[Tensor, Tensor]:
        """The row's loss, divided by `weight`, and its weighted credits, not divided."""
        rewards = self.model([example.encoded for example in examples])
        pairs = pairs_of(
            [(len(example.encoded.suffixes), example.preferences) for example in examples],
            rewards.device,
        )
        loss = bradley_terry.objective_nats(rewards, pairs, self.settings.objective) / weight

        margins = bradley_terry.margins(rewards.detach(), pairs.chosen, pairs.rejected)
        # NaN margins have no credits, and their loss will stop the run; a filler counts for nothing
        if torch.isnan(margins).any() or math.isinf(weight):
            return loss, torch.zeros((), device=rewards.device)
        return loss, (bradley_terry.pair_credits(margins) * pairs.weight).sum()

    def _count(self, indices: Indices, weight: float) -> None:
        self.totals = self.totals.plus(
            groups=len(indices),
            pairs=int(self.train.pairs[indices].sum()),
            effective_pairs=weight,
            tokens=int(self.train.tokens[indices].sum()),
            flops=self._flops(indices),
        )

    def _flops(self, indices: Indices) -> int:
        attended = self.train.attended if self.shares_prefix else self.train.attended_apart
        return costs.train_flops(
            self.cost,
            tokens=int(self._sizes(self.train)[indices].sum()),
            attended=int(attended[indices].sum()),
            frozen_share=self.settings.freeze_layers / self.layers,
        )

    def _log(self, row: StepMetrics | ValidationMetrics) -> None:
        """Append a row to `metrics.jsonl`, and send the same numbers to the tracker."""
        if self.accelerator.is_main_process:
            step_metrics.append(self.folder / METRICS, row)
            values = step_metrics.row_to_json(row)
            del values["step"]
            self.accelerator.log(values, step=row.step)
            for callback in self.callbacks:
                callback(row)

    def _log_drop(self, drop: sudden_drops.SuddenDrop | None) -> None:
        if drop is None or not self.accelerator.is_main_process:
            return

        gradient = (
            f"with a spike of {drop.spike:.1f} deviations in the gradient norm"
            if drop.is_epiphany
            else "without a spike in the gradient norm"
        )
        logger.info(
            "step %d: the loss dropped suddenly by %.3f nats, %s (p = %.1e)",
            drop.step,
            drop.drop_nats,
            gradient,
            drop.p_value,
        )

    def _validate(self) -> None:
        """Measure the validation split, and remember the trained weights if their loss is the least
        so far."""
        metrics = self.measure(self.validation)
        self._log(metrics)
        if self.accelerator.is_main_process:
            logger.info(
                "step %d: validation loss %.4f nats, accuracy %.3f (%d groups, %d pairs)",
                metrics.step,
                metrics.loss_nats,
                metrics.accuracy,
                len(self.validation),
                metrics.pairs,
            )

        best = self.totals.best
        if best is None or metrics.loss_nats < best.loss_nats:
            self.totals = replace(self.totals, best=metrics)
            self.best_weights = weights_of(self.model, trained_only=True)

    def measure(self, store: TokenStore, *, at_most: int | None = None) -> ValidationMetrics:
        """The metrics of a split, or of its first `at_most` groups, with the current weights. Every
        process must call this.

        Raises:
            TrainingError: If a reward is not finite.
        """
        self.model.eval()
        sizes = self._sizes(store)[:at_most]
        filler = int(np.argmin(sizes))
        of_process: list[tuple[int, list[float]]] = []
        for row in self._rows(sizes):
            groups = [store[index].encoded for index in row or [filler]]
            row_tokens = sum(group.tokens for group in groups)
            rewards = scorer.rewards_of(self.model, groups, row_tokens=row_tokens)
            # for an empty row, zip drops the rewards of the filler
            of_process += zip(row, rewards, strict=False)

        by_group: dict[int, list[float]] = dict(gather_object(of_process))
        for index, rewards_of_group in sorted(by_group.items()):
            if not all(map(math.isfinite, rewards_of_group)):
                raise TrainingError(
                    f"step {self.totals.step}: the rewards of {store[index].name} are"
                    f" {rewards_of_group[:3]}. {self._advice()}"
                )
        in_order = [by_group[index] for index in range(len(by_group))]
        return split_metrics(in_order, store, self.totals.position)

    def kept_metrics(self) -> ValidationMetrics:
        """Metrics of the weights that a finished run keeps: the best ones, or the last ones
        without validation groups."""
        return self.totals.best or self._metrics_now()

    def _metrics_now(self) -> ValidationMetrics:
        """Metrics of the current weights on the validation groups, or on some train groups if there
        are none."""
        if len(self.validation):
            return self.measure(self.validation)
        return self.measure(self.train, at_most=GROUPS_TO_MEASURE)

    def save(self) -> None:
        """Write the state. Every process must call this."""
        state = SavedState(self.totals, self.best_weights)
        save_state(self.state, self.accelerator, self.model, _unwrapped(self.optimizer), state)

    def resume(self) -> None:
        """Continue from the last complete state, if there is one, and remove metrics that were
        logged after it."""
        saved = load_last(self.state, self.accelerator, self.model, _unwrapped(self.optimizer))
        if saved is not None:
            self.totals, self.best_weights = saved
            logger.info("continuing after step %d of %d", self.totals.step, len(self.steps))
        # the run repeats the steps after the state, and logs them a second time
        if self.accelerator.is_main_process:
            for name in (METRICS, TIMINGS):
                step_metrics.keep_until(self.folder / name, self.totals.step)


def even_steps(total: int, count: int) -> set[int]:
    """`count` evenly spread steps; the last is `total`."""
    return {round(total * (i + 1) / count) for i in range(count)}


def snapshot_steps(total: int, snapshots: int) -> set[int]:
    """Steps from a 200th of `total` to `total`, evenly spread over their logarithm. Equal steps
    count once, so there can be fewer than `snapshots`."""
    first = max(1, round(total / 200))
    return {round(first * (total / first) ** (i / max(1, snapshots - 1))) for i in range(snapshots)}


def split_metrics(
    rewards: Sequence[Sequence[float]], store: TokenStore, position: Position
) -> ValidationMetrics:
    """The metrics of the first groups of a store, from their rewards.

    Raises:
        ValueError: If these groups have no pairs.
    """
    pairs = pairs_of((len(group), store[i].preferences) for i, group in enumerate(rewards))
    # sums over thousands of rewards would lose digits in float32
    values = torch.tensor([reward for group in rewards for reward in group], dtype=torch.float64)
    margins = bradley_terry.margins(values, pairs.chosen, pairs.rejected)
    probability = pairs.probability.double()
    losses = bradley_terry.losses_nats(margins, probability)
    pair_credits = bradley_terry.pair_credits(margins)

    return ValidationMetrics(
        **vars(position),
        loss_nats=bradley_terry.weighted_mean(losses, pairs.weight),
        accuracy=bradley_terry.weighted_mean(pair_credits, pairs.weight),
        pairs=margins.numel(),
        reward_mean=float(values.mean()),
        reward_std=float(values.std(correction=0)),
        temperature=calibration.temperature(margins, probability, pairs.weight),
    )


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW over the trained weights; matrices decay, norms and biases do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]

    # adapters train no vectors
    trained_groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw-8bit":
        optimizer: torch.optim.Optimizer = quantization.package("bitsandbytes").optim.AdamW8bit(
            trained_groups, lr=settings.lr, betas=settings.betas
        )
        return optimizer
    # fused: one call for all weights is faster, also on a CPU
    return torch.optim.AdamW(trained_groups, lr=settings.lr, betas=settings.betas, fused=True)


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's wrapper."""
    return cast(torch.optim.Optimizer, getattr(optimizer, "optimizer", optimizer))
