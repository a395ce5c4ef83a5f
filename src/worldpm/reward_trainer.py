"""A trainer with the form of TRL's RewardTrainer.

    from worldpm.reward_trainer import RewardTrainer

    trainer = RewardTrainer(model="Qwen/Qwen2.5-0.5B", args=RewardConfig(...), train_dataset=pairs)
    trainer.train()

A script for TRL needs no other change than the import.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from worldpm import api
from worldpm.errors import ConfigError
from worldpm.options.other_names import OURS
from worldpm.scoring.scorer import Scorer
from worldpm.training.loop import Callback
from worldpm.training.run import TrainResult, read_result

OPTIMIZERS = (
    *("adamw_torch_fused", "adamw_torch", "adamw_hf"),
    *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"),
)
"""Names of AdamW in transformers; those of the second line keep moments in 8 bits."""
CLIP_NORM = 1.0
"""The largest gradient norm of every run."""


class RewardTrainer:
    """Trains as `worldpm.train` does, with the arguments of TRL 1.x.

    `args` is a `RewardConfig` or a mapping. The arguments that have an effect are the fields of
    `Arguments` under TRL's names (`learning_rate`, `num_train_epochs`, `max_steps`, the batch size
    times accumulation steps, warm-up, schedule, `weight_decay`, `max_length`, `seed`, `bf16`,
    `optim`, `gradient_checkpointing`, `center_rewards_coefficient`); others have none. Data are
    pairs in TRL's forms.
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """`model` is a name, or a model with its tokenizer as `processing_class`. A callback gets
        each row of metrics. `peft_config.r` is the rank of adapters.

        Raises:
            ConfigError: If an argument has a value that cannot be used.
        """
        if train_dataset is None:
            raise ConfigError("train_dataset: is missing. Give pairs.")
        if not all(map(callable, callbacks)):
            raise ConfigError("callbacks: give functions of one row of metrics.")
        self._model, self._tokenizer = model, processing_class
        self._train, self._eval, self._callbacks = train_dataset, eval_dataset, callbacks
        arguments = Arguments.of(args)
        self._out, self._options = Path(arguments.out), arguments.options()
        if peft_config is not None:
            self._options |= {"lora_rank": int(peft_config.r)}

    def train(self, *_: object, **__: object) -> TrainResult:
        """Train, or continue an interrupted training; the result names the kept step.

        Raises:
            ConfigError, DataError, TrainingError: See `worldpm.train`.
        """
        api.train(
            self._train,
            out=self._out,
            model=self._model,
            tokenizer=self._tokenizer,
            validation=self._eval,
            callbacks=self._callbacks,
            **self._options,
        )
        return read_result(self._out)

    def evaluate(self) -> dict[str, float]:
        """`eval_loss` and `eval_accuracy` of the kept weights; empty without validation pairs."""
        metrics = read_result(self._out).metrics
        if metrics is None:
            return {}
        return {"eval_loss": metrics.loss_nats, "eval_accuracy": metrics.accuracy}

    @property
    def scorer(self) -> Scorer:
        """The trained model."""
        return Scorer.load(self._out)


@dataclass(frozen=True)
class Arguments:
    """The arguments of TRL that have an effect, under our names where `OURS` has one."""

    out: str = "trainer_output"
    lr: float | None = None
    epochs: float | None = None
    max_steps: int = -1
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    warmup: float | None = None
    warmup_steps: float = 0
    """A number of steps, or below 1 a share of them, as in transformers 5."""
    schedule: Any = None
    """A name, or an enumeration of transformers with the name as its value."""
    weight_decay: float | None = None
    max_grad_norm: float = CLIP_NORM
    optim: Any = None
    seed: int | None = None
    max_length: int | None = None
    prompt_length: int | None = None
    centring: float | None = None
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False

    @classmethod
    def of(cls, args: Any) -> "Arguments":
        """Read a `RewardConfig`, a mapping or None. Other arguments have no effect."""
        given = args if isinstance(args, Mapping) else vars(args) if args is not None else {}
        known = {field.name for field in fields(cls)}
        renamed = {OURS.get(name, name): value for name, value in given.items()}
        return cls(**{name: value for name, value in renamed.items() if name in known})

    def options(self) -> dict[str, Any]:
        """The options of `worldpm train`.

        Raises:
            ConfigError: If an argument has a value that cannot be used.
        """
        if self.max_grad_norm != CLIP_NORM:
            raise ConfigError(
                f"max_grad_norm is {self.max_grad_norm}. Only {CLIP_NORM} is possible; leave it"
                " out."
            )
        optimizer = str(getattr(self.optim, "value", self.optim or OPTIMIZERS[0]))
        if optimizer not in OPTIMIZERS:
            raise ConfigError(f"optim is {optimizer}. Use one of {', '.join(OPTIMIZERS)}.")
        if self.fp16:
            raise ConfigError("fp16: is not possible. Use bf16.")
        options = {
            **{name: getattr(self, name) for name in ("lr", "weight_decay", "seed", "max_length")},
            **{name: getattr(self, name) for name in ("prompt_length", "centring")},
            "warmup": self._warmup(),
            "epochs": None if self.max_steps > 0 else self.epochs,
            "max_steps": self.max_steps if self.max_steps > 0 else None,
            "batch_pairs": self._batch_pairs(),
            "dtype": "bfloat16" if self.bf16 else None,
            "optimizer": "adamw-8bit" if "8bit" in optimizer else None,
            "gradient_checkpointing": self.gradient_checkpointing,
            **self._schedule(),
        }
        return {name: value for name, value in options.items() if value is not None}

    def _batch_pairs(self) -> int | None:
        if self.per_device_train_batch_size is None:
            return None
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * processes

    def _warmup(self) -> float | None:
        """The share of the steps."""
        if self.warmup or not self.warmup_steps:
            return self.warmup
        if self.warmup_steps < 1:
            return self.warmup_steps
        if self.max_steps <= 0:
            raise ConfigError("warmup_steps: needs max_steps. Give a share below 1 instead.")
        return self.warmup_steps / self.max_steps

    def _schedule(self) -> dict[str, Any]:
        name = str(getattr(self.schedule, "value", self.schedule))
        if self.schedule is None:
            return {}
        if name == "linear":
            return {"schedule": "constant", "decay": 1 - (self._warmup() or 0)}
        if name in ("constant", "constant_with_warmup", "cosine"):
            return {"schedule": name.partition("_")[0]}
        raise ConfigError(f"lr_scheduler_type is {name}. Use linear, constant or cosine.")
