"""Names of options in Hugging Face's training scripts, accepted beside ours."""

import logging
import os
from collections.abc import Collection, Iterator, Sequence

from worldpm.errors import ConfigError

logger = logging.getLogger(__name__)

OURS = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "output_dir": "out",
    "model_name_or_path": "model",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
    "max_seq_length": "max_length",
    "max_prompt_length": "prompt_length",
    "lora_r": "lora_rank",
    "report_to": "tracker",
    "dataset_num_proc": "workers",
    "center_rewards_coefficient": "centring",
    "torch_dtype": "dtype",
    "model_revision": "revision",
}
"""Ours by theirs, both with underscores."""
FLAGS = {
    "bf16": ("dtype", ["--dtype", "bfloat16"]),
    "fp32": ("dtype", ["--dtype", "float32"]),
    "trust_remote_code": ("remote_code", ["--remote-code"]),
}
"""By their flags: our option, and the arguments that set it."""
BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
"""The pairs of a step are the product of both and the number of processes."""
BOOLEANS = {"true": True, "false": False}
"""Values that may follow one of their flags."""


def translated(
    arguments: Sequence[str], names: Collection[str], positional: Collection[str]
) -> list[str]:
    """Replace other names of options by ours, where a verb has these options.

    `names` are all of the verb's options; `positional` are those without a flag.

    Raises:
        ConfigError: If a batch size is not a number.
    """
    first: list[str] = []
    rest: list[str] = []
    batch: dict[str, str] = {}
    remaining = _Arguments(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
        ours = OURS.get(name, "")

        if name in names and name not in positional:
            rest.append(argument)
        elif ours in positional:
            first.append(value if equals else remaining.value())
        elif ours in names:
            rest += [f"--{ours.replace('_', '-')}", value if equals else remaining.value()]
        elif name in FLAGS and FLAGS[name][0] in names:
            rest += FLAGS[name][1] if remaining.is_on(value) else []
        elif name in (BATCH, ACCUMULATION) and "batch_pairs" in names:
            batch[name] = value if equals else remaining.value()
        else:
            rest.append(argument)
    return [*first, *rest, *_batch_arguments(batch)]


class _Arguments:
    """Arguments that are read one by one."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._rest = [*arguments]

    def __iter__(self) -> Iterator[str]:
        while self._rest:
            yield self._rest.pop(0)

    def value(self) -> str:
        """The next argument, which is the value of the option before it."""
        return self._rest.pop(0) if self._rest else ""

    def is_on(self, value: str) -> bool:
        """Whether a flag is on, given alone or with a boolean."""
        if not value and self._rest and self._rest[0].lower() in BOOLEANS:
            value = self.value()
        return BOOLEANS.get(value.lower(), True)


def _batch_arguments(batch: dict[str, str]) -> list[str]:
    """`--batch-pairs`: the batch of a device, times accumulation steps, times processes."""
    if not batch:
        return []
    try:
        per_device, steps = int(batch.get(BATCH, "1")), int(batch.get(ACCUMULATION, "1"))
    except ValueError as error:
        raise ConfigError(
            f"--{BATCH.replace('_', '-')}: not a number of pairs ({error}). Give one, or use"
            " --batch-pairs."
        ) from error

    pairs = per_device * steps * int(os.environ.get("WORLD_SIZE", "1"))
    logger.info(
        "--batch-pairs %d: the pairs of a step over all devices. --row-tokens sets the memory use.",
        pairs,
    )
    return ["--batch-pairs", str(pairs)]
