"""The training loop: packed rows of whole groups, one optimizer step per so many pairs, exact
resume.

The loss of a step is that of its preferences, divided by the sum of their weights, however many
rows and processes it took. Every process runs equally many rows, an empty one where the step has
none left for it, or sharded engines would wait for ever.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

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
from worldpm.storage import folders
from worldpm.training import zero
from worldpm.training.devices import Speed
from worldpm.training.state import Tensors, load_last, put_weights, weights_of
from worldpm.training.state import save as save_state
from worldpm.training.steps import steps_of
from worldpm.training.token_store import Example, TokenStore

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SECONDS_BETWEEN_SAVES = 60.0
SAVING_SHARE = 20
"""A run computes at least so many times as long as it saves."""
GROUPS_TO_MEASURE = 1000
"""Of the train split, for the metrics of a model without validation groups."""
BRADLEY_TERRY = Objective()
Json = dict[str, Any]
Keep = Callable[[Tensors, Json], None]
"""What a snapshot is given to, by every process: the weights, which only the first has, and
position and metrics."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the loop needs to know; the defaults are the paper's where it states them."""

    lr: float
    batch_pairs: int
    epochs: float
    max_steps: int | None
    weight_decay: float
    warmup: float
    """Share of the steps in which the learning rate rises."""
    decay: float
    """Share of the steps, at the end, in which it falls to 0."""
    seed: int
    dtype: torch.dtype = torch.float32
    """The compute type."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does between warm-up and decay."""
    objective: Objective = BRADLEY_TERRY
    row_tokens: int = scorer.ROW_TOKENS
    validations: int = 5
    """How often the run looks at the validation split, the last step included."""
    snapshots: int = 0
    """How many times the weights are kept on the way, at numbers of steps that are spread evenly
    over their logarithm."""
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0


@dataclass
class Seen:
    """How far the run has come; the position in the data is a function of `step`."""

    step: int = 0
    groups: int = 0
    pairs: int = 0
    effective_pairs: float = 0.0
    tokens: int = 0
    flops: int = 0
    """Spent by forward and backward: a prompt once where it is shared, and else once a response."""
    best_step: int = 0
    best: Json | None = None
    """The position and the validation metrics of the best step."""


class Trainer:
    """One run: a model, its groups, the folder of its metrics, and the folder of the states to go
    on from."""

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
        keep: Keep | None = None,
    ) -> None:
        self.keep = keep
        self.train, self.validation, self.settings = train, validation, settings
        self.folder, self.state, self.accelerator = folder, state, accelerator
        if zero.is_zero(accelerator):
            zero.configure(accelerator, clip_norm=settings.clip_norm)
        self.cost, self.model_type = (
            costs.cost_of(model.backbone.config),
            str(model.backbone.config.model_type),
        )
        self.model, self.optimizer = accelerator.prepare(model, _optimizer(model, settings))
        self.seen = Seen()
        self.best: Tensors = {}
        self.shares_prefix = self._shares_prefix()
        sizes = self._sizes(train)
        long = int((sizes > settings.row_tokens).sum())
        if long and accelerator.is_main_process:
            logger.warning(
                "%d groups are longer than a row of %d tokens, the longest %d: each runs as a row"
                " of its own, and takes its memory",
                long,
                settings.row_tokens,
                sizes.max(),
            )
        self.steps = steps_of(
            train.pairs,
            batch_pairs=settings.batch_pairs,
            seed=settings.seed,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
        )

    def run(self) -> None:
        """Train to the end, from the last state if there is one; the model is then the one of least
        validation loss."""
        self.resume()
        speed = (
            Speed.of(self.accelerator, self.settings.dtype)
            if self.accelerator.is_main_process
            else None
        )
        saved, pause, total = time.monotonic(), SECONDS_BETWEEN_SAVES, len(self.steps)
        looks = {
            round(total * (i + 1) / self.settings.validations)
            for i in range(self.settings.validations)
        }
        kept, watch = snapshot_steps(total, self.settings.snapshots), sudden_drops.Watch(total)
        with console.progress("train", total=total) as advance:
            advance(self.seen.step)
            while self.seen.step < total:
                started = time.monotonic()
                indices = self.steps[self.seen.step]
                row, late = self.step(indices, late=started - saved >= pause)
                self._log(row, indices, time.monotonic() - started, speed)
                self._tell(watch.add(row["step"], row["loss_nats"], row["grad_norm"]))
                if self.seen.step in looks and len(self.validation):
                    self._validate()
                if self.seen.step in kept and self.keep is not None:
                    self.keep(weights_of(self.model), self._metrics_now())
                if self.seen.step in looks or late:
                    began = time.monotonic()
                    self.save()
                    saved = time.monotonic()
                    pause = max(SECONDS_BETWEEN_SAVES, SAVING_SHARE * (saved - began))
                advance(note=f"loss {row['loss_nats']:.3f} accuracy {row['accuracy']:.3f}")
        if self.seen.best:
            put_weights(self.model, self.best)
        self.model.eval()

    def step(self, indices: NDArray[np.int64], *, late: bool = False) -> tuple[Json, bool]:
        """One optimizer step over groups: the row for `metrics.jsonl`, and whether the first
        process says it is `late`."""
        self.model.train()
        lr = self.settings.lr * self._lr_share()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total = float(self.train.weights[indices].sum())
        sizes = self._sizes(self.train)[indices]
        mine, filler = self._rows(sizes), int(indices[np.argmin(sizes)])
        sums = torch.zeros(3, dtype=torch.float64, device=self.accelerator.device)
        sums[2] = float(late and self.accelerator.is_main_process)
        for place, row in enumerate(mine):
            examples = [self.train[int(indices[i])] for i in row] or [self.train[filler]]
            with self._synchronizing(last=place == len(mine) - 1):
                loss, credit = self._row(examples, total if row else math.inf)
                # engines average the gradients over processes; the loss is already divided by the
                # sum over all of them
                self.accelerator.backward(loss * self.accelerator.num_processes)
            sums[0] += loss.detach()
            sums[1] += credit
        loss_nats, right, says_late = cast(Tensor, self.accelerator.reduce(sums)).tolist()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(loss_nats) or not math.isfinite(norm):
            names = ", ".join(self.train[int(i)].name for i in indices[:3])
            raise TrainingError(
                f"step {self.seen.step + 1}: the loss is {loss_nats} and the gradient norm {norm}"
                f" (groups {names}, ...); lower --lr, or use --dtype float32; the last state that"
                f" was saved, in {self.state}, is kept"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._count(indices, total)
        return {
            **self._position(),
            "loss_nats": loss_nats,
            "accuracy": right / total,
            "grad_norm": norm,
            "lr": lr,
        }, bool(says_late)

    def _shares_prefix(self) -> bool:
        """Whether the model shares prompts, which its first use decides: under the engine that will
        run it, so every process must call.

        Raises:
            ConfigError: If it shares none, and the engine needs the same number of runs of the
                model in each process.
        """
        self.model.eval()
        with torch.no_grad():
            self.model([self.train[int(np.argmin(self.train.tokens))].encoded])
        shares = bool(self.accelerator.unwrap_model(self.model).shares_prefix)
        gathers = (
            self.accelerator.distributed_type == DistributedType.FSDP
            or zero.stage_of(self.accelerator) == 3
        )
        if gathers and self.accelerator.num_processes > 1 and not shares:
            raise ConfigError(
                "the model shares no prompts, so a row runs as many times as it has lengths, and"
                " engines that gather weights for each run (FSDP2, ZeRO-3) would not meet; use DDP"
                " or ZeRO-2, with --gradient-checkpointing where memory is short"
            )
        return shares

    def _sizes(self, store: TokenStore) -> NDArray[np.int64]:
        """Tokens that the model runs for each group."""
        return store.tokens if self.shares_prefix else store.tokens_apart

    def _rows(self, sizes: NDArray[np.int64]) -> list[list[int]]:
        """This process's rows of groups that run together; all processes have equally many, some of
        them empty."""
        rows = pack(sizes.tolist(), row_tokens=self.settings.row_tokens)
        here, there = self.accelerator.process_index, self.accelerator.num_processes
        rows += [[] for _ in range(-len(rows) % there)]
        return rows[here::there]

    def _synchronizing(self, *, last: bool) -> AbstractContextManager[object]:
        """Gradients are exchanged once a step; engines that shard them do it every row, or they
        would hold them all."""
        self.accelerator.gradient_state._set_sync_gradients(
            last
        )  # DeepSpeed steps after the row that synchronizes
        if zero.is_zero(self.accelerator):
            return nullcontext()
        if self.accelerator.distributed_type == DistributedType.FSDP or last:
            return nullcontext()
        return cast(AbstractContextManager[object], self.accelerator.no_sync(self.model))

    def _lr_share(self) -> float:
        """Up in the warm-up; then 1, or down half a cosine; down in the decay; above 0 in every
        step."""
        step, total = self.seen.step, len(self.steps)
        warm = max(1, round(self.settings.warmup * total))
        share = min(
            1.0, (step + 1) / warm, (total - step) / max(1, round(self.settings.decay * total))
        )
        if self.settings.schedule == "cosine" and step >= warm:
            share *= (1 + math.cos(math.pi * (step - warm + 1) / (total - warm + 1))) / 2
        return share

    def _row(self, examples: Sequence[Example], total: float) -> tuple[Tensor, Tensor]:
        """The row's shares of the step's loss and of its weighted credits, the latter not yet
        divided."""
        rewards = self.model([example.encoded for example in examples])
        pairs = pairs_of(
            [(len(e.encoded.suffixes), e.preferences) for e in examples], rewards.device
        )
        loss = bradley_terry.objective_nats(rewards, pairs, self.settings.objective) / total
        margins = bradley_terry.margins(rewards.detach(), pairs.chosen, pairs.rejected)
        if torch.isnan(margins).any() or math.isinf(total):
            return loss, torch.zeros((), device=rewards.device)
        return loss, (bradley_terry.pair_credits(margins) * pairs.weight).sum()

    def _count(self, indices: NDArray[np.int64], total: float) -> None:
        self.seen.step += 1
        self.seen.groups += len(indices)
        self.seen.pairs += int(self.train.pairs[indices].sum())
        self.seen.effective_pairs += total
        self.seen.tokens += int(self.train.tokens[indices].sum())
        self.seen.flops += self._flops(indices)

    def _flops(self, indices: NDArray[np.int64]) -> int:
        met = self.train.attended if self.shares_prefix else self.train.attended_apart
        tokens, attended = (
            int(numbers[indices].sum()) for numbers in (self._sizes(self.train), met)
        )
        return costs.train_flops(self.cost, tokens=tokens, attended=attended)

    def _position(self) -> Json:
        seen = self.seen
        return {
            "step": seen.step,
            "groups_seen": seen.groups,
            "pairs_seen": seen.pairs,
            "effective_pairs_seen": round(seen.effective_pairs, 6),
            "tokens_seen": seen.tokens,
            "flops_seen": seen.flops,
        }

    def _log(
        self, row: Json, indices: NDArray[np.int64], seconds: float, speed: Speed | None
    ) -> None:
        self._append(METRICS, row)
        if speed is not None:
            tokens, pairs = (
                int(numbers[indices].sum()) for numbers in (self.train.tokens, self.train.pairs)
            )
            rates = speed.told(
                flops=self._flops(indices), tokens=tokens, pairs=pairs, seconds=seconds
            )
            self._append(
                folders.TIMINGS, {"step": self.seen.step, "seconds": round(seconds, 4), **rates}
            )

    def _tell(self, drop: sudden_drops.SuddenDrop | None) -> None:
        if drop is not None and self.accelerator.is_main_process:
            what = (
                f"with a spike of the gradient norm {drop.spike:.1f} deviations high"
                if drop.is_epiphany
                else "without a spike of the gradient"
            )
            logger.info(
                "step %d: the loss dropped at once by %.3f nats, %s (p = %.1e)",
                drop.step,
                drop.drop_nats,
                what,
                drop.p_value,
            )

    def _append(self, name: str, row: Json) -> None:
        if self.accelerator.is_main_process:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if name == METRICS:  # what trackers show is what the file holds
                self.accelerator.log(
                    {key: value for key, value in row.items() if key != "step"}, step=row["step"]
                )

    def _validate(self) -> None:
        """Loss and accuracy on the validation split; the weights of least loss are kept aside."""
        metrics = self.measure(self.validation)
        self._append(
            METRICS,
            {
                **self._position(),
                **{f"validation/{name}": value for name, value in metrics.items()},
            },
        )
        if self.accelerator.is_main_process:
            logger.info(
                "step %d: validation loss %.4f nats, accuracy %.3f",
                self.seen.step,
                metrics["loss_nats"],
                metrics["accuracy"],
            )
        if self.seen.best is None or metrics["loss_nats"] < self.seen.best["loss_nats"]:
            self.seen.best, self.seen.best_step = {**self._position(), **metrics}, self.seen.step
            self.best = weights_of(self.model, trained_only=True)

    def measure(self, store: TokenStore, *, at_most: int | None = None) -> dict[str, float]:
        """The metrics of a split, or of its first groups, with the weights of now; every process
        must call."""
        self.model.eval()
        sizes = self._sizes(store)[:at_most]
        mine, filler = [], int(np.argmin(sizes))
        for row in self._rows(sizes):
            groups = [store[i].encoded for i in row or [filler]]
            found = scorer.rewards_of(
                self.model, groups, row_tokens=sum(group.tokens for group in groups)
            )
            mine += list(zip(row, found, strict=False))
        rewards = dict(gather_object(mine))
        if wrong := [
            place for place, values in rewards.items() if not all(map(math.isfinite, values))
        ]:
            raise TrainingError(
                f"step {self.seen.step}: the rewards of {store[min(wrong)].name} are"
                f" {rewards[min(wrong)][:3]}; lower --lr, or use --dtype float32; the last state"
                f" that was saved, in {self.state}, is kept"
            )
        return split_metrics([rewards[i] for i in range(len(rewards))], store)

    def kept_metrics(self) -> Json:
        """Position and metrics of the weights that a finished run keeps: the best, or where nothing
        validates the last."""
        return self.seen.best or self._metrics_now()

    def _metrics_now(self) -> Json:
        """Position and metrics of the weights of now: on validation groups, or without them on some
        of those trained on."""
        found = (
            self.measure(self.validation)
            if len(self.validation)
            else self.measure(self.train, at_most=GROUPS_TO_MEASURE)
        )
        return {**self._position(), **found}

    def save(self) -> None:
        """Write the state; every process must call."""
        save_state(
            self.state,
            self.accelerator,
            self.model,
            _bare(self.optimizer),
            self.best,
            step=self.seen.step,
            seen=asdict(self.seen),
        )

    def resume(self) -> None:
        """Go on from the last whole state, if there is one; metrics logged after it are taken
        back."""
        found = load_last(self.state, self.accelerator, self.model, _bare(self.optimizer))
        if found is not None:
            self.seen, self.best = Seen(**found[0]), found[1]
            logger.info("going on after step %d of %d", self.seen.step, len(self.steps))
        if self.accelerator.is_main_process:
            _truncate(self.folder / METRICS, self.seen.step)
            _truncate(self.folder / folders.TIMINGS, self.seen.step)


def snapshot_steps(total: int, snapshots: int) -> set[int]:
    """So many numbers of steps up to `total`, even over their logarithm, from a 200th of the run;
    fewer where they are the same."""
    first = max(1, round(total / 200))
    return {round(first * (total / first) ** (i / max(1, snapshots - 1))) for i in range(snapshots)}


def split_metrics(rewards: Sequence[Sequence[float]], store: TokenStore) -> dict[str, float]:
    """Weighted loss in nats, accuracy, pairs, the rewards' mean and standard deviation, and the
    temperature of least loss.

    Raises:
        ValueError: If the store holds no pair.
    """
    pairs = pairs_of((len(found), store[i].preferences) for i, found in enumerate(rewards))
    values = torch.tensor([reward for group in rewards for reward in group], dtype=torch.float64)
    margins = bradley_terry.margins(values, pairs.chosen, pairs.rejected)
    losses = bradley_terry.losses_nats(margins, pairs.probability.double())
    return {
        "loss_nats": bradley_terry.weighted_mean(losses, pairs.weight),
        "accuracy": bradley_terry.weighted_mean(bradley_terry.pair_credits(margins), pairs.weight),
        "pairs": margins.numel(),
        "reward_mean": float(values.mean()),
        "reward_std": float(values.std(correction=0)),
        "temperature": calibration.temperature(margins, pairs.probability.double(), pairs.weight),
    }


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW over what is trained; matrices decay, norms and biases do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=settings.betas,
        fused=True,
    )


def _bare(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer under the wrapper of Accelerate."""
    return cast(torch.optim.Optimizer, getattr(optimizer, "optimizer", optimizer))


def _truncate(path: Path, last_step: int) -> None:
    """Keep the rows up to a step; a torn last line goes."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if isinstance(row.get("step"), int) and row["step"] <= last_step:
            kept.append(line + "\n")
    folders.write_atomically(path, "".join(kept).encode())
