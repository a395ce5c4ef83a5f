"""The training loop: packed rows of whole groups, one optimizer step per so many pairs, exact resume.

The loss of a step is the Bradley-Terry loss of its preferences, divided by the sum of their weights, however many rows it
took. The state to go on from is saved in safetensors, with its hash, and never holds pickle.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from worldpm.field import bradley_terry
from worldpm.field.errors import CheckpointError, TrainingError
from worldpm.field.records import Preference
from worldpm.formats import console, folders
from worldpm.parts import reward_model, scorer
from worldpm.parts.batches import EncodedGroup, pack, steps_of
from worldpm.parts.shared_prefix import plan_row

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
STATE, STATE_NOTE = "state.safetensors", "state.json"
SECONDS_BETWEEN_SAVES = 60.0
Json = dict[str, Any]


class Example(NamedTuple):
    """A preference group, ready for the model."""

    name: str
    encoded: EncodedGroup
    preferences: tuple[Preference, ...]


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
    dtype: torch.dtype
    row_tokens: int = scorer.ROW_TOKENS
    validations: int = 5
    """How often the run looks at the validation split, the last step included."""
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
    best_loss_nats: float = math.inf
    best_step: int = 0


class Trainer:
    """One run: a model, its examples, the folder of its metrics, and the folder of the state to go on from."""

    def __init__(
        self, model: reward_model.RewardModel, examples: Sequence[Example], validation: Sequence[Example], settings: Settings, *,
        folder: Path, state: Path,
    ) -> None:  # fmt: skip
        self.model, self.examples, self.validation, self.settings = model, examples, validation, settings
        self.folder, self.state = folder, state
        self.optimizer = _optimizer(model, settings)
        self.seen = Seen()
        self.best: dict[str, Tensor] = {}
        self.steps = list(
            steps_of(
                [len(e.preferences) for e in examples],
                batch_pairs=settings.batch_pairs, seed=settings.seed, epochs=settings.epochs, max_steps=settings.max_steps,
            )
        )  # fmt: skip

    def run(self) -> None:
        """Train to the end, from the saved state if there is one; the model is then the one of least validation loss."""
        self.resume()
        saved, total = time.monotonic(), len(self.steps)
        looks = {round(total * (i + 1) / self.settings.validations) for i in range(self.settings.validations)}
        with console.progress("train", total=total) as advance:
            advance(self.seen.step)
            while self.seen.step < total:
                started = time.monotonic()
                row = self.step([self.examples[i] for i in self.steps[self.seen.step]])
                self._log(row, time.monotonic() - started)
                if self.seen.step in looks and self.validation:
                    self._validate()
                if self.seen.step in looks or time.monotonic() - saved >= SECONDS_BETWEEN_SAVES:
                    self.save()
                    saved = time.monotonic()
                advance(note=f"loss {row['loss_nats']:.3f} accuracy {row['accuracy']:.3f}")
        if self.best:
            reward_model.load_tensors(self.model, self.best, self.folder)
        self.model.eval()

    def step(self, examples: Sequence[Example]) -> Json:
        """One optimizer step over the examples; the row for `metrics.jsonl`."""
        self.model.train()
        lr = self.settings.lr * self._lr_share()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total = sum(p.weight for example in examples for p in example.preferences)
        loss, right, tokens = 0.0, 0.0, 0
        for row in pack([example.encoded for example in examples], row_tokens=self.settings.row_tokens):
            members = [examples[i] for i in row.indices]
            row_loss, credit = self._row(members, total)
            row_loss.backward()  # type: ignore[no-untyped-call]
            loss += float(row_loss.detach())
            right += credit
            tokens += sum(group.tokens for group in row.groups)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            names = ", ".join(example.name for example in examples[:3])
            raise TrainingError(
                f"step {self.seen.step + 1}: the loss is {loss} and the gradient norm {norm} (groups {names}, ...); "
                "lower --lr, or use --dtype float32; the last state that was saved is kept"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._count(examples, total, tokens)
        row_metrics = {"loss_nats": loss, "accuracy": right / total, "grad_norm": norm, "lr": lr}
        return {**self._position(), **row_metrics}

    def _lr_share(self) -> float:
        """Up in the warm-up, 1, and down in the decay; above 0 in every step."""
        step, total = self.seen.step, len(self.steps)
        rise = (step + 1) / max(1, round(self.settings.warmup * total))
        return min(1.0, rise, (total - step) / max(1, round(self.settings.decay * total)))

    def _row(self, members: Sequence[Example], total: float) -> tuple[Tensor, float]:
        """The row's share of the step's loss, and its weighted credits divided by nothing yet."""
        device = self.model.score.weight.device
        chosen, rejected, start = [], [], 0
        for example in members:
            chosen += [start + p.chosen for p in example.preferences]
            rejected += [start + p.rejected for p in example.preferences]
            start += len(example.encoded.suffixes)
        preferences = [p for example in members for p in example.preferences]
        weights = torch.tensor([p.weight for p in preferences], device=device)
        probability = torch.tensor([p.probability for p in preferences], device=device)
        with scorer.compute_type(device, self.settings.dtype):
            rewards = self.model(plan_row([e.encoded for e in members], device=device, dtype=self.settings.dtype))
        margins = bradley_terry.margins(rewards, torch.tensor(chosen, device=device), torch.tensor(rejected, device=device))
        loss = (bradley_terry.losses_nats(margins, probability) * weights).sum() / total
        right = 0.0 if torch.isnan(margins).any() else float((bradley_terry.pair_credits(margins.detach()) * weights).sum())
        return loss, right

    def _count(self, examples: Sequence[Example], total: float, tokens: int) -> None:
        self.seen.step += 1
        self.seen.groups += len(examples)
        self.seen.pairs += sum(len(example.preferences) for example in examples)
        self.seen.effective_pairs += total
        self.seen.tokens += tokens

    def _position(self) -> Json:
        seen = self.seen
        return {
            "step": seen.step,
            "groups_seen": seen.groups,
            "pairs_seen": seen.pairs,
            "effective_pairs_seen": round(seen.effective_pairs, 6),
            "tokens_seen": seen.tokens,
        }

    def _log(self, row: Json, seconds: float) -> None:
        step = self.steps[self.seen.step - 1]
        pairs = sum(len(self.examples[i].preferences) for i in step)
        tokens = sum(self.examples[i].encoded.tokens for i in step)
        speed = {"pairs_per_second": round(pairs / seconds, 2), "tokens_per_second": round(tokens / seconds, 1)}
        _append(self.folder / METRICS, row)
        _append(self.folder / folders.TIMINGS, {"step": self.seen.step, "seconds": round(seconds, 4), **speed})

    def _validate(self) -> None:
        """Loss and accuracy on the validation split; the weights of least loss are kept aside."""
        metrics = validate(self.model.eval(), self.validation, row_tokens=self.settings.row_tokens, dtype=self.settings.dtype)
        _append(self.folder / METRICS, {**self._position(), **{f"validation/{name}": value for name, value in metrics.items()}})
        logger.info("step %d: validation loss %.4f nats, accuracy %.3f", self.seen.step, metrics["loss_nats"], metrics["accuracy"])
        if metrics["loss_nats"] < self.seen.best_loss_nats:
            self.seen.best_loss_nats, self.seen.best_step = metrics["loss_nats"], self.seen.step
            self.best = {name: tensor.clone() for name, tensor in reward_model.to_tensors(self.model).items()}

    def save(self) -> None:
        """Write the state; a reader sees the last whole one."""
        moments = self.optimizer.state_dict()["state"]
        tensors = {f"model/{name}": tensor for name, tensor in reward_model.to_tensors(self.model).items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"optimizer/{place}/{name}": value for place, values in moments.items() for name, value in values.items()}
        tensors["random/torch"] = torch.get_rng_state()
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        folder = self.state
        folder.mkdir(exist_ok=True)
        name = f"{self.seen.step:08d}-{STATE}"
        folders.write_atomically(folder / name, content)
        seen = {**asdict(self.seen), "best_loss_nats": self.seen.best_loss_nats if self.best else None}
        note = {"file": name, "sha256": folders.sha256(folder / name), "seen": seen}
        folders.write_atomically(folder / STATE_NOTE, folders.to_json(note))
        for old in folder.glob(f"*-{STATE}"):
            if old.name != name:
                old.unlink()

    def resume(self) -> None:
        """Go on from the saved state, if there is one; metrics logged after it are taken back.

        Raises:
            CheckpointError: If the state is not what was saved.
        """
        folder = self.state
        if not (folder / STATE_NOTE).exists():
            _truncate(self.folder / METRICS, 0)
            _truncate(self.folder / folders.TIMINGS, 0)
            return
        note = json.loads((folder / STATE_NOTE).read_text(encoding="utf-8"))
        path = folder / note["file"]
        if not path.exists() or folders.sha256(path) != note["sha256"]:
            raise CheckpointError(f"{path}: damaged or missing; remove {folder} to train from the start")
        tensors = load(path.read_bytes())
        reward_model.load_tensors(self.model, _under("model/", tensors), path)
        self.best = _under("best/", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer/", tensors).items():
            place, moment = name.split("/")
            moments.setdefault(int(place), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        torch.set_rng_state(tensors["random/torch"])
        self.seen = Seen(**{**note["seen"], "best_loss_nats": note["seen"]["best_loss_nats"] if self.best else math.inf})
        _truncate(self.folder / METRICS, self.seen.step)
        _truncate(self.folder / folders.TIMINGS, self.seen.step)
        logger.info("going on after step %d of %d", self.seen.step, len(self.steps))


def validate(model: reward_model.RewardModel, examples: Sequence[Example], *, row_tokens: int, dtype: torch.dtype) -> dict[str, float]:
    """Weighted loss in nats, accuracy, pairs, and the rewards' mean and standard deviation.

    Raises:
        ValueError: If the examples hold no pair.
    """
    groups = scorer.rewards_of(model, [example.encoded for example in examples], row_tokens=row_tokens, dtype=dtype)
    pairs = [(rewards[p.chosen] - rewards[p.rejected], p) for rewards, e in zip(groups, examples, strict=True) for p in e.preferences]
    margins = torch.tensor([margin for margin, _ in pairs], dtype=torch.float64)
    weights = torch.tensor([p.weight for _, p in pairs], dtype=torch.float64)
    probability = torch.tensor([p.probability for _, p in pairs], dtype=torch.float64)
    rewards = torch.tensor([reward for group in groups for reward in group], dtype=torch.float64)
    return {
        "loss_nats": bradley_terry.weighted_mean(bradley_terry.losses_nats(margins, probability), weights),
        "accuracy": bradley_terry.weighted_mean(bradley_terry.pair_credits(margins), weights),
        "pairs": len(pairs),
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
    }


def _optimizer(model: reward_model.RewardModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW; matrices decay, norms and biases do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _append(path: Path, row: Json) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


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
