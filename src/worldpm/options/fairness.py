"""Options of `worldpm fairness`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import Groups, ModelOptions, check_webhook


@dataclass(frozen=True, kw_only=True)
class FairnessOptions(ModelOptions):
    """Measure reward and error gaps between the values of columns, with intervals."""

    EXAMPLE: ClassVar[str] = "worldpm fairness checkpoint labelled.jsonl --by language"
    INPUTS_OR_IDS: ClassVar[tuple[str, ...]] = ("model",)
    INPUTS: ClassVar[tuple[str, ...]] = (
        "file",
        "webhook_secret",
    )
    GROUPS: ClassVar[Groups] = {
        "output": ("webhook", "webhook_secret"),
    }

    model: Positional[str]
    """Folder or hub id of a reward model."""
    file: Positional[Path]
    """JSON lines: `prompt`, `responses`, `preferred` (index of the best response), and columns such
    as `language` or `region`."""
    by: tuple[str, ...]
    """Columns whose values are compared."""
    out: Path | None = None
    """JSON file to write; the table is always printed."""
    cut: bool = True
    """Cut inputs over the limit; with --no-cut the first such input stops the run."""
    webhook: str | None = None
    """URL that gets a signed message with the significant gaps when the run ends."""
    webhook_secret: Path | None = None
    """File with the secret that signs messages: whsec_ and base64."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.by:
            raise ConfigError("--by: names no column. Name at least one.")
        check_webhook(self.webhook, self.webhook_secret)
