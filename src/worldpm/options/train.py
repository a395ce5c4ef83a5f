"""Options of `worldpm train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import (
    LEAST_LENGTH,
    Dtype,
    Groups,
    SourceOptions,
    check_above_zero,
    check_not_negative,
    column_names,
)

WIDTHS = (16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640)
BUILT_IN = ("tiny", *(f"w{width}" for width in WIDTHS))
"""Names of the built-in sizes; the numbers are widths."""
LEAST_RESPONSE = 8
"""Tokens that a prompt must leave for its response."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(SourceOptions):
    """Train a preference model on groups."""

    EXAMPLE: ClassVar[str] = "worldpm train groups --model tiny --out checkpoint"
    INPUTS_OR_IDS: ClassVar[tuple[str, ...]] = (
        "groups",
        "validation",
    )
    GROUPS: ClassVar[Groups] = {
        "data": (
            "validation",
            "validations",
            "validation_groups",
            "columns",
            "max_length",
            "prompt_length",
        ),
        "training": (
            "batch_pairs",
            "epochs",
            "max_steps",
            "lr",
            "weight_decay",
            "warmup",
            "decay",
            "schedule",
            "seed",
        ),
        "loss": ("loss", "target_margin", "label_smoothing", "centring"),
        "speed": (
            "freeze_layers",
            "states",
            "lora_rank",
            "quantize",
            "optimizer",
            "gradient_checkpointing",
            "compile",
            "row_tokens",
            "workers",
            "dtype",
        ),
        "output": ("snapshots", "tracker"),
    }

    groups: Positional[tuple[str, ...]]
    """Folders written by `worldpm group`, Parquet files of the same columns, or plain preference
    sets: files, folders, hub ids."""
    model: str
    """A built-in size, trained from scratch (`tiny`, or `w16` to `w640` by width), or a folder or
    hub id of a reward or language model."""
    out: Path
    """Folder to write: the weights with the least validation loss, or the last weights without
    validation groups."""
    validation: tuple[str, ...] = ()
    """Files, folders or hub ids to validate on: groups or plain preference sets. No other data is
    then used for validation, and no prompts of plain training sets are held out."""
    validations: int = 5
    """Number of validations, evenly spread; the last follows the last step. The checkpoint has the
    weights of the best one."""
    validation_groups: int | None = None
    """Validate on at most this number of groups, a sample that depends only on their names; all
    groups unless set."""
    columns: tuple[str, ...] = ()
    """OURS=THEIRS, separated by commas: names of columns in plain preference sets, for instance
    prompt=question,chosen=good,rejected=bad."""
    max_length: int = 2048
    """Tokens of prompt plus one response; longer texts are cut."""
    prompt_length: int | None = None
    """Tokens that a prompt is cut to; half of --max-length unless set."""
    batch_pairs: int | None = None
    """Pairs of one optimizer step; 10240, or the default of a built-in size, unless set."""
    epochs: float | None = None
    """Passes over the groups; 1, or the default of a built-in size, unless set."""
    max_steps: int | None = None
    """Optimizer steps, in place of --epochs; the data repeats as needed."""
    lr: float | None = None
    """Learning rate after the warm-up; 3e-6, or the default of a built-in size, unless set."""
    weight_decay: float = 0.1
    """AdamW's weight decay, for matrices only."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    decay: float | None = None
    """Share of the steps, at the end, in which the learning rate falls to 0; 0, or the default of a
    built-in size, unless set."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    loss: Literal["bradley-terry", "plackett-luce"] = "bradley-terry"
    """Loss over pairs, or over rankings of a group's responses."""
    target_margin: float = 0.0
    """Margin to reach, in logits, times ln(1 + strength); 1 requires the margins in the column
    `margin` of plain preference sets, as TRL does. Bradley-Terry only."""
    label_smoothing: float = 0.0
    """Share of labels that are assumed to be random; Bradley-Terry only."""
    centring: float = 0.0
    """Coefficient of the penalty that keeps rewards around 0."""
    freeze_layers: int = 0
    """Keep the embeddings and this number of layers, from the embeddings up, unchanged. Each text
    runs through them once; later epochs and validations read the result from disk."""
    states: Path | None = None
    """Folder for the results of frozen layers (4 bytes x width for each token), which runs with the
    same frozen layers share; a folder in OUT, removed at the end, unless set."""
    lora_rank: int | None = None
    """Train adapters of this rank and the head instead of all weights; the checkpoint has the
    merged weights."""
    quantize: Literal["int4"] | None = None
    """lora-rank: keep the frozen weights in 4 bits (NF4), as QLoRA does, for models that are larger
    than the card."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """AdamW with moments in float32, or in 8 bits (bitsandbytes): 2 bytes for each trained weight
    instead of 8."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Fuse the operations between matrix products. The start takes half a minute longer and needs a
    C++ compiler or a GPU."""
    row_tokens: int | None = None
    """Token budget of a row of groups; memory use grows with it. 2048 on a CPU and 16384 on a GPU
    unless set."""
    workers: int = 0
    """Processes that tokenize before the first step; 0 tokenizes in the main process."""
    dtype: Dtype | None = None
    """Compute type. Unless set: bfloat16 on a GPU or on a CPU with matrix units for it, else
    float32. Weights and optimizer stay float32."""
    snapshots: int = 0
    """Number of snapshots of the weights in `snapshots/`, at steps spread evenly over their
    logarithm."""
    tracker: Literal["mlflow", "tensorboard", "trackio", "wandb"] | None = None
    """Also send the metrics to this tracker, whose library must be installed; its files go to
    OUT.tracking."""
    seed: int = 0
    """Seed of the initial weights and of the order of the groups."""

    def __post_init__(self) -> None:
        if not self.groups:
            raise ConfigError("no groups given: name a folder that `worldpm group` wrote")

        column_names(self.columns)
        self._check_ranges()
        self._check_frozen()
        self._check_schedule()
        self._check_loss()
        self._check_lengths()

    def check_inputs(self) -> None:
        """Raise ConfigError if --model names nothing. The parser calls this after its other checks,
        because the answer depends on the disk."""
        named = self.model in BUILT_IN or "/" in self.model
        if not named and not Path(self.model).exists():
            raise ConfigError(
                f"--model {self.model}: neither a built-in size ({', '.join(BUILT_IN)}) nor a"
                " folder nor a hub id (OWNER/NAME). Use one of these."
            )

    def _check_ranges(self) -> None:
        check_above_zero(
            {
                "--max-length": self.max_length,
                "--batch-pairs": self.batch_pairs,
                "--epochs": self.epochs,
                "--lr": self.lr,
                "--max-steps": self.max_steps,
                "--prompt-length": self.prompt_length,
                "--lora-rank": self.lora_rank,
                "--row-tokens": self.row_tokens,
                "--validations": self.validations,
                "--validation-groups": self.validation_groups,
            }
        )
        check_not_negative(
            {
                "--seed": self.seed,
                "--workers": self.workers,
                "--centring": self.centring,
                "--snapshots": self.snapshots,
                "--freeze-layers": self.freeze_layers,
                "--weight-decay": self.weight_decay,
                "--target-margin": self.target_margin,
            }
        )

    def _check_frozen(self) -> None:
        if self.states is not None and not self.freeze_layers:
            raise ConfigError("--states: needs --freeze-layers. Add it, or leave --states out.")
        if self.quantize is not None and self.lora_rank is None:
            raise ConfigError(
                "--quantize: weights in 4 bits cannot be trained. Add --lora-rank 16, or leave it"
                " out."
            )

    def _check_schedule(self) -> None:
        decay = self.decay or 0
        if min(self.warmup, decay) < 0 or self.warmup + decay > 1:
            raise ConfigError(
                f"--warmup {self.warmup} and --decay {self.decay}: both must be at least 0, and"
                " their sum at most 1"
            )

    def _check_loss(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"--label-smoothing is {self.label_smoothing}; it must be at least 0 and below 1"
            )
        if self.loss == "plackett-luce" and (self.target_margin or self.label_smoothing):
            raise ConfigError(
                "--target-margin and --label-smoothing apply to --loss bradley-terry only. Leave"
                " them out, or change --loss."
            )

    def _check_lengths(self) -> None:
        longest_prompt = self.max_length - LEAST_RESPONSE
        if self.max_length < LEAST_LENGTH or (self.prompt_length or 0) > longest_prompt:
            raise ConfigError(
                f"--max-length {self.max_length} is too small for a prompt and a response. It must"
                f" be at least {LEAST_LENGTH}, and {LEAST_RESPONSE} more than --prompt-length."
            )
