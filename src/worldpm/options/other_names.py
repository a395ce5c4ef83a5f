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
"""By their flags: our option, and its words."""
BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
"""Their product with the number of processes is the pairs of a step."""
BOOLEANS = {"true": True, "false": False}
"""Words that may follow one of their flags."""


def translated(
    words: Sequence[str], names: Collection[str], positional: Collection[str]
) -> list[str]:
    """The words with other names of options replaced by ours, where a verb has these options.

    `names` are all of the verb's options; `positional` are those without a flag.

    Raises:
        ConfigError: If a batch size is not a number.
    """
    first: list[str] = []
    rest: list[str] = []
    batch: dict[str, str] = {}
    remaining = _Words(words)
    for word in remaining:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
        ours = OURS.get(name, "")

        if name in names and name not in positional:
            rest.append(word)
        elif ours in positional:
            first.append(value if equals else remaining.value())
        elif ours in names:
            rest += [f"--{ours.replace('_', '-')}", value if equals else remaining.value()]
        elif name in FLAGS and FLAGS[name][0] in names:
            rest += FLAGS[name][1] if remaining.is_on(value) else []
        elif name in (BATCH, ACCUMULATION) and "batch_pairs" in names:
            batch[name] = value if equals else remaining.value()
        else:
            rest.append(word)
    return [*first, *rest, *_batch_words(batch)]


class _Words:
    """Words that are read one after another."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [*words]

    def __iter__(self) -> Iterator[str]:
        while self._words:
            yield self._words.pop(0)

    def value(self) -> str:
        """The next word, which belongs to the option before it."""
        return self._words.pop(0) if self._words else ""

    def is_on(self, value: str) -> bool:
        """Whether a flag is set: alone, or with a boolean."""
        if not value and self._words and self._words[0].lower() in BOOLEANS:
            value = self.value()
        return BOOLEANS.get(value.lower(), True)


def _batch_words(batch: dict[str, str]) -> list[str]:
    """Pairs of a step: the batch of a device, times what is accumulated, times the processes."""
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
        "--batch-pairs %d: a step is that many pairs over all devices. --row-tokens sets the"
        " memory.",
        pairs,
    )
    return ["--batch-pairs", str(pairs)]
