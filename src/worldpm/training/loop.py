"""The training loop: packed rows of complete groups, one optimizer step per `batch_pairs` pairs,
and an exact resume.

The loss of a step is that of its preferences, divided by the sum of their weights, however many
rows and processes it took. Every process runs equally many rows, an empty one if the step has no
more for it: sharded engines would otherwise deadlock.
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
from worldpm.model import costs
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
"""A run computes at least this many times as long as it saves."""
GROUPS_TO_MEASURE = 1000
"""Train groups that measure a model without validation groups."""
BRADLEY_TERRY = Objective()

Keep = Callable[[Tensors, ValidationMetrics], None]
"""Takes a snapshot in every process: the weights, which only the first one has, and their
metrics."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the loop; defaults are the paper's where it gives them."""

    lr: float
    """Learning rate after the warm-up."""
    batch_pairs: int
    """Preference pairs at which a step closes."""
    epochs: float
    """Passes over the groups."""
    max_steps: int | None
    """Optimizer steps in place of `epochs`; None goes by `epochs`."""
    weight_decay: float
    """AdamW's, for matrices."""
    warmup: float
    """Share of the steps in which the learning rate rises."""
    decay: float
    """Share of the steps, at the end, in which the learning rate falls to 0."""
    seed: int
    """Of the order of the groups."""
    dtype: torch.dtype = torch.float32
    """The compute type."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The course of the learning rate between warm-up and decay."""
    objective: Objective = BRADLEY_TERRY
    row_tokens: int = scorer.ROW_TOKENS
    """Tokens up to which a row is filled with groups."""
    validations: int = 5
    """Validations of the run, evenly spread, one of them after the last step."""
    snapshots: int = 0
    """Snapshots of the weights, at steps that are spread evenly over their logarithm."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's."""
    clip_norm: float = 1.0
    """Norm to which larger gradients are scaled down."""


class StepResult(NamedTuple):
    """One optimizer step."""

    metrics: StepMetrics
    save_due: bool
    """Whether the first process wants a state to be saved; the same in all processes."""


class StepSums(NamedTuple):
    """Sums over the rows of a step, of all processes."""

    loss_nats: float
    """Already divided by the weights of the step's pairs."""
    credits: float
    """Weights of the pairs with a positive margin; a tie counts half."""
    save_due: float
    """Above 0 if the first process wants a state to be saved."""


class SaveClock:
    """Decides when a state is due: rarely enough that saving takes a small share of the run."""

    def __init__(self) -> None:
        self._saved = time.monotonic()
        self._pause = SECONDS_BETWEEN_SAVES

    def is_due(self) -> bool:
        """Whether the pause after the last save is over."""
        return time.monotonic() - self._saved >= self._pause

    def saved(self, seconds: float) -> None:
        """Note that a save has ended, which took `seconds`."""
        self._saved = time.monotonic()
        self._pause = max(SECONDS_BETWEEN_SAVES, COMPUTING_PER_SAVING * seconds)


class Trainer:
    """One run: a model, its groups, the folder of its metrics, and the folder of the states that it
    resumes from."""

    def __init__(
        self,
        model: RewardModel,
        train: TokenStore,
        validation: TokenStore,
        settings: Settings,
        *,
        folder: Path,
        state: Path,
        accelerator: Accelerator,
    ) -> None:
        self.train, self.validation, self.settings = train, validation, settings
        self.folder, self.state, self.accelerator = folder, state, accelerator
        self.cost = costs.cost_of(model.backbone.config)
        # DeepSpeed reads its configuration when it takes the model
        if zero.is_zero(accelerator):
            zero.configure(accelerator, clip_norm=settings.clip_norm)
        self.model, self.optimizer = accelerator.prepare(model, _optimizer(model, settings))

        self.totals = Totals()
        self.best_weights: Tensors = {}
        self.shares_prefix = self._shares_prefix()
        self._warn_of_long_groups()
        # all steps, known ahead: a resumed run needs only the number of its next one
        self.steps = steps_of(
            train.pairs,
            batch_pairs=settings.batch_pairs,
            seed=settings.seed,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
        )

    def run(self, keep: Keep | None = None) -> None:
        """Train to the end, from the last state if there is one; the model then has the weights of
        least validation loss. `keep` is called for each snapshot."""
        self.resume()
        on_main = self.accelerator.is_main_process
        speed = Speed.of(self.accelerator, self.settings.dtype) if on_main else None
        total = len(self.steps)
        validation_steps = even_steps(total, self.settings.validations)
        kept_steps = snapshot_steps(total, self.settings.snapshots)
        watch, clock = sudden_drops.Watch(total), SaveClock()

        with console.progress("train", total=total) as advance:
            advance(self.totals.step)
            while self.totals.step < total:
                metrics, save_due = self._timed_step(speed, save_due=clock.is_due())
                self._log_drop(watch.add(metrics.step, metrics.loss_nats, metrics.grad_norm))

                validates = metrics.step in validation_steps
                if validates and len(self.validation):
                    self._validate()
                # gathering weights takes every process, so all of them keep snapshots
                if metrics.step in kept_steps and keep is not None:
                    keep(weights_of(self.model), self._metrics_now())
                # a validation may have new best weights, which a resume would miss
                if validates or save_due:
                    started = time.monotonic()
                    self.save()
                    clock.saved(time.monotonic() - started)
                advance(note=f"loss {metrics.loss_nats:.3f} accuracy {metrics.accuracy:.3f}")

        # without validation groups the last weights stay
        if self.totals.best:
            put_weights(self.model, self.best_weights)
        self.model.eval()

    def _timed_step(self, speed: Speed | None, *, save_due: bool) -> StepResult:
        """The next step, with its rows in `metrics.jsonl` and `timings.jsonl`; only the first
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
        """One optimizer step over groups; all processes take `save_due` from the first one.

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

        # under DeepSpeed both do nothing: the engine has stepped in the last backward
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
        """Add up the gradients of a step's rows, whose pairs weigh `weight` together."""
        sizes = self._sizes(self.train)[indices]
        rows, filler = self._rows(sizes), int(indices[np.argmin(sizes)])
        device = self.accelerator.device
        sums = torch.zeros(3, dtype=widest_float(device), device=device)
        sums[2] = float(save_due and self.accelerator.is_main_process)

        for number, row in enumerate(rows):
            examples = [self.train[int(indices[i])] for i in row] or [self.train[filler]]
            with self._synchronizing(last=number == len(rows) - 1):
                # an empty row runs the filler, whose gradients become 0
                loss, pair_credits = self._row(examples, weight if row else math.inf)
                # engines average the gradients over processes; the loss is already divided by the
                # sum over all of them
                self.accelerator.backward(loss * self.accelerator.num_processes)
            sums[0] += loss.detach()
            sums[1] += pair_credits

        # one exchange for all three numbers
        return StepSums(*cast(Tensor, self.accelerator.reduce(sums)).tolist())

    def _clip(self) -> float:
        """Scale large gradients down; their norm before."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        # FSDP2 gives a sharded tensor
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _advice(self) -> str:
        """The way out of a loss or reward that is not finite."""
        return (
            f"Lower --lr, or use --dtype float32. The last state that was saved is in {self.state}."
        )

    def _shares_prefix(self) -> bool:
        """Whether the model shares prompts; its first use decides, under the engine that will run
        it, so every process must call.

        Raises:
            ConfigError: If it shares none, and the engine needs the same number of forward passes
                in each process.
        """
        self.model.eval()
        # any group decides it; the smallest is the cheapest
        smallest = int(np.argmin(self.train.tokens))
        with torch.no_grad():
            self.model([self.train[smallest].encoded])

        shares = bool(self.accelerator.unwrap_model(self.model).shares_prefix)
        gathers = (
            self.accelerator.distributed_type == DistributedType.FSDP
            or zero.stage_of(self.accelerator) == 3
        )
        if gathers and self.accelerator.num_processes > 1 and not shares:
            raise ConfigError(
                "--model: it shares no prompts, so processes would run different numbers of forward"
                " passes, and FSDP2 or ZeRO-3 would deadlock. Use DDP or ZeRO-2, with"
                " --gradient-checkpointing where memory is short."
            )
        return shares

    def _warn_of_long_groups(self) -> None:
        sizes = self._sizes(self.train)
        long_groups = int((sizes > self.settings.row_tokens).sum())
        if long_groups and self.accelerator.is_main_process:
            logger.warning(
                "%d groups are longer than a row of %d tokens, the longest %d: each runs as a row"
                " of its own, and takes its memory",
                long_groups,
                self.settings.row_tokens,
                sizes.max(),
            )

    def _sizes(self, store: TokenStore) -> NDArray[np.int64]:
        """Tokens that the model runs for each group."""
        return store.tokens if self.shares_prefix else store.tokens_apart

    def _rows(self, sizes: NDArray[np.int64]) -> list[list[int]]:
        """This process's rows of groups that run together, as indices into `sizes`; all processes
        have equally many, some of them empty."""
        rows = pack(sizes.tolist(), row_tokens=self.settings.row_tokens)
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        # up to the next multiple of the processes
        rows += [[] for _ in range(-len(rows) % processes)]
        return rows[process::processes]

    def _synchronizing(self, *, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients once a step; engines that shard them exchange every row, or each
        process would hold all gradients."""
        # DeepSpeed steps after the row that synchronizes
        self.accelerator.gradient_state._set_sync_gradients(last)
        if zero.is_zero(self.accelerator):
            return nullcontext()
        if self.accelerator.distributed_type == DistributedType.FSDP or last:
            return nullcontext()
        return cast(AbstractContextManager[object], self.accelerator.no_sync(self.model))

    def _lr_share(self) -> float:
        """Share of the learning rate in the next step, above 0: it rises in the warm-up, then is 1
        or half a cosine, and falls in the decay."""
        step, total = self.totals.step, len(self.steps)
        warm_steps = max(1, round(self.settings.warmup * total))
        decay_steps = max(1, round(self.settings.decay * total))
        # above 0 in the first step, whose number is 0, and in the last, total - 1
        share = min(1.0, (step + 1) / warm_steps, (total - step) / decay_steps)
        if self.settings.schedule == "cosine" and step >= warm_steps:
            angle = math.pi * (step - warm_steps + 1) / (total - warm_steps + 1)
            share *= (1 + math.cos(angle)) / 2
        return share

    def _row(self, examples: Sequence[Example], weight: float) -> tuple[Tensor, Tensor]:
        """The row's share of the step's loss, divided by `weight`, and its weighted credits, not
        divided."""
        rewards = self.model([example.encoded for example in examples])
        pairs = pairs_of(
            [(len(example.encoded.suffixes), example.preferences) for example in examples],
            rewards.device,
        )
        loss = bradley_terry.objective_nats(rewards, pairs, self.settings.objective) / weight

        margins = bradley_terry.margins(rewards.detach(), pairs.chosen, pairs.rejected)
        # credits of NaN do not exist, and the loss will stop the run; a filler counts nothing
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
        )

    def _log(self, row: StepMetrics | ValidationMetrics) -> None:
        """Write a row of `metrics.jsonl`, and send the same numbers to a tracker."""
        if self.accelerator.is_main_process:
            step_metrics.append(self.folder / METRICS, row)
            values = step_metrics.row_to_json(row)
            del values["step"]
            self.accelerator.log(values, step=row.step)

    def _log_drop(self, drop: sudden_drops.SuddenDrop | None) -> None:
        if drop is None or not self.accelerator.is_main_process:
            return

        gradient = (
            f"with a spike of the gradient norm {drop.spike:.1f} deviations high"
            if drop.is_epiphany
            else "without a spike of the gradient"
        )
        logger.info(
            "step %d: the loss dropped at once by %.3f nats, %s (p = %.1e)",
            drop.step,
            drop.drop_nats,
            gradient,
            drop.p_value,
        )

    def _validate(self) -> None:
        """Measure the validation split, and keep the trained weights of least loss aside."""
        metrics = self.measure(self.validation)
        self._log(metrics)
        if self.accelerator.is_main_process:
            logger.info(
                "step %d: validation loss %.4f nats, accuracy %.3f",
                metrics.step,
                metrics.loss_nats,
                metrics.accuracy,
            )

        best = self.totals.best
        if best is None or metrics.loss_nats < best.loss_nats:
            self.totals = replace(self.totals, best=metrics)
            self.best_weights = weights_of(self.model, trained_only=True)

    def measure(self, store: TokenStore, *, at_most: int | None = None) -> ValidationMetrics:
        """The metrics of a split, or of its first groups, with the current weights; every process
        must call.

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
            # an empty row drops the rewards of the filler
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
        """Metrics of the weights that a finished run keeps: the best, or without validation groups
        the last."""
        return self.totals.best or self._metrics_now()

    def _metrics_now(self) -> ValidationMetrics:
        """Metrics of the current weights: on validation groups, or without them on some train
        groups."""
        if len(self.validation):
            return self.measure(self.validation)
        return self.measure(self.train, at_most=GROUPS_TO_MEASURE)

    def save(self) -> None:
        """Write the state; every process must call."""
        state = SavedState(self.totals, self.best_weights)
        save_state(self.state, self.accelerator, self.model, _unwrapped(self.optimizer), state)

    def resume(self) -> None:
        """Go on from the last complete state, if there is one; metrics logged after it are
        removed."""
        saved = load_last(self.state, self.accelerator, self.model, _unwrapped(self.optimizer))
        if saved is not None:
            self.totals, self.best_weights = saved
            logger.info("going on after step %d of %d", self.totals.step, len(self.steps))
        # the steps after the state are run, and logged, a second time
        if self.accelerator.is_main_process:
            for name in (METRICS, TIMINGS):
                step_metrics.keep_until(self.folder / name, self.totals.step)


def even_steps(total: int, count: int) -> set[int]:
    """`count` steps up to and with `total`, evenly spread."""
    return {round(total * (i + 1) / count) for i in range(count)}


def snapshot_steps(total: int, snapshots: int) -> set[int]:
    """Steps up to `total`, even over their logarithm, from a 200th of the run; fewer than
    `snapshots` where some are the same."""
    first = max(1, round(total / 200))
    return {round(first * (total / first) ** (i / max(1, snapshots - 1))) for i in range(snapshots)}


def split_metrics(
    rewards: Sequence[Sequence[float]], store: TokenStore, position: Position
) -> ValidationMetrics:
    """The metrics of the first groups of a store, whose rewards are given.

    Raises:
        ValueError: If these groups have no pair.
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


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW over the trained weights; matrices decay, norms and biases do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]

    # with adapters no vectors are trained
    trained_groups = [group for group in groups if group["params"]]
    # fused: one call for all weights is faster, on a CPU too
    return torch.optim.AdamW(trained_groups, lr=settings.lr, betas=settings.betas, fused=True)


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's wrapper."""
    return cast(torch.optim.Optimizer, getattr(optimizer, "optimizer", optimizer))
