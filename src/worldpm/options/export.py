"""Options of `worldpm export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import changed

OF_CARD = ("results", "licence", "base_model", "datasets", "note")
"""Options of the model card."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write groups as pairs for TRL and Hugging Face datasets, or a checkpoint for other
    engines."""

    EXAMPLE: ClassVar[str] = "worldpm export checkpoint --to model --out for-vllm"
    INPUTS: ClassVar[tuple[str, ...]] = ("results", "note", "probe")
    INPUTS_OR_IDS: ClassVar[tuple[str, ...]] = ("source",)

    source: Positional[tuple[Path, ...]]
    """Folders of `worldpm group`, or one checkpoint: a folder or a name such as
    worldpm/tiny-forum."""
    to: Literal["pairs", "model", "onnx"] = "pairs"
    """pairs: `prompt`, `chosen`, `rejected`; model: a folder that vLLM, SGLang and TEI load, with
    its card; onnx: a graph."""
    out: Path
    """Folder to write."""
    results: Path | None = None
    """model: results folder of `worldpm evaluate` for the card."""
    licence: str = "other"
    """model: licence of the model card, in the hub's spelling."""
    base_model: str | None = None
    """model: hub id of the model that the training began from, for the card; known if the training
    named a hub id."""
    datasets: tuple[str, ...] = ()
    """model: hub ids of the data sets, for the card."""
    note: Path | None = None
    """model: Markdown file with more about the model and its limits, for the card."""
    probe: Path | None = None
    """onnx: groups with a validation split, to compare the graph with the model; generated text
    unless set."""
    int8: bool = False
    """onnx: also write a graph with 8-bit weights; --probe measures its loss of accuracy."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError(
                "nothing to export. Name folders of `worldpm group`, or a checkpoint with --to"
                " model or --to onnx."
            )
        if self.to != "pairs" and len(self.source) > 1:
            raise ConfigError(
                f"--to {self.to}: needs one checkpoint, but got {len(self.source)} folders. Name"
                " one."
            )
        idle = [
            *(() if self.to == "model" else OF_CARD),
            *([] if self.to == "onnx" else ["probe", "int8"]),
        ]
        if given := changed(self, idle):
            raise ConfigError(f"{given[0]}: has no effect with --to {self.to}. Leave it out.")
