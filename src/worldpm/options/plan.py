"""Options of `worldpm plan`."""

from dataclasses import dataclass
from typing import ClassVar

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import Dtype, check_above_zero


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Estimate whether training and scoring fit, with which sharding or bits, how long training
    takes and what it costs."""

    EXAMPLE: ClassVar[str] = "worldpm plan Qwen/Qwen2.5-7B --gpus 8"

    model: Positional[str]
    """A built-in size, or a folder or hub id with a `config.json`."""
    gpus: int = 1
    """GPUs of the run."""
    memory: float = 80.0
    """GiB of one GPU."""
    pairs: float = 15e6
    """Pairs to train on; the paper uses 15 million."""
    tokens_per_pair: float = 870.0
    """Unique tokens per pair. The default is the paper's 2,000 divided by 2.3, the least saving by
    shared prompts on real sites."""
    row_tokens: int | None = None
    """Tokens of one row; the default of `worldpm train` on a GPU unless set."""
    dtype: Dtype = "bfloat16"
    """Compute type; weights and optimizer are float32."""
    peak_tflops: float = 989.0
    """Peak speed of one GPU at the compute type: 989 for an H100, 312 for an A100."""
    mfu: float = 0.4
    """Share of the peak that the run will reach."""
    price: float | None = None
    """Price of one GPU for an hour, in any currency."""

    def __post_init__(self) -> None:
        check_above_zero(
            {
                "--gpus": self.gpus,
                "--memory": self.memory,
                "--pairs": self.pairs,
                "--tokens-per-pair": self.tokens_per_pair,
                "--row-tokens": self.row_tokens,
                "--peak-tflops": self.peak_tflops,
                "--price": self.price,
            }
        )

        if not 0 < self.mfu <= 1:
            raise ConfigError(
                f"--mfu is {self.mfu}; it must be above 0 and at most 1, a share of the peak"
            )
