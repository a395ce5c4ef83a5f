"""What leaves the house: groups as pairs for others, a checkpoint for other engines."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from worldpm.field.errors import ConfigError
from worldpm.formats import folders

if TYPE_CHECKING:
    from worldpm.parts.batches import EncodedGroup
    from worldpm.parts.scorer import Scorer

logger = logging.getLogger(__name__)
Json = dict[str, Any]
Form = Literal["pairs", "model", "onnx"]
NEEDED = ("onnx", "onnxscript", "onnxruntime")
PROBES = 64
"""Groups on which a graph is compared with the model, and of which INT8 tells its accuracy."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write groups as pairs for TRL and Hugging Face datasets, or a checkpoint for other engines."""

    source: Positional[tuple[Path, ...]]
    """Folders of `worldpm group`, or one checkpoint."""
    to: Form = "pairs"
    """pairs: `prompt`, `chosen`, `rejected`; model: a folder that vLLM, SGLang and TEI load, with its card; onnx: a graph."""
    out: Path
    """Folder to write."""
    results: Path | None = None
    """model: results folder of `worldpm evaluate` for the card."""
    licence: str = "other"
    """model: the licence that the card names, as the hub calls it."""
    probe: Path | None = None
    """onnx: groups, on whose validation split the graph is compared with the model; made-up text unless given."""
    int8: bool = False
    """onnx: also a graph with 8-bit weights; with --probe its loss of accuracy is told."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("nothing to export: name folders of `worldpm group`, or a checkpoint with --to model or --to onnx")
        if self.to != "pairs" and len(self.source) > 1:
            raise ConfigError(f"--to {self.to} takes one checkpoint; {len(self.source)} folders came")
        misplaced = {"--results": self.results and self.to != "model", "--licence": self.licence != "other" and self.to != "model",
                     "--probe": self.probe and self.to != "onnx", "--int8": self.int8 and self.to != "onnx"}  # fmt: skip
        if wrong := [flag for flag, there in misplaced.items() if there]:
            raise ConfigError(f"{wrong[0]} does not go with --to {self.to}")


def run(config: Config) -> None:
    """Write the folder."""
    {"pairs": _export_pairs, "model": _export_model, "onnx": _export_onnx}[config.to](config)


def _export_pairs(config: Config) -> None:
    from worldpm.parts.exports import pairs

    for folder in config.source:
        folders.manifest(folder, made_by="group")
    output = folders.begin(config.out, step="export", config={}, inputs=[folders.describe(path) for path in config.source])
    if output is None:
        return
    with output:
        counts = pairs.write(config.source, output)
        for split, count in counts.items():
            logger.info("%s: %d pairs of %d groups", split, count["pairs"], count["groups"])
        output.finish(counts=counts)


def _export_model(config: Config) -> None:
    from worldpm.parts import model_sources
    from worldpm.parts.exports import model

    source = model_sources.find(config.source[0])
    if config.results:
        folders.manifest(config.results, made_by="evaluate")
    inputs = [model_sources.fingerprint(source), *([folders.describe(config.results)] if config.results else [])]
    output = folders.begin(config.out, step="export", config={"to": "model", "licence": config.licence}, inputs=inputs)
    if output is None:
        return
    with output:
        counts = model.write(source, output, licence=config.licence, results=config.results, name=config.out.resolve().name)
        logger.info("%s: %d files, the card is README.md", config.out, counts["files"])
        output.finish(counts=counts)


def _export_onnx(config: Config) -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"--to onnx needs {', '.join(missing)}: pip install 'worldpm[onnx]'")
    import torch

    from worldpm.parts import model_sources
    from worldpm.parts.exports import onnx
    from worldpm.parts.scorer import Scorer, rewards_of

    source = model_sources.find(config.source[0])
    inputs = [model_sources.fingerprint(source), *([folders.describe(config.probe)] if config.probe else [])]
    output = folders.begin(config.out, step="export", config={"to": "onnx", "int8": config.int8}, inputs=inputs)
    if output is None:
        return
    with output:
        scorer = Scorer.load(source.folder, cut=True, dtype=torch.float32)
        scorer.model.cpu()
        groups, accuracy = _probes(config, scorer)
        expected = rewards_of(scorer.model, groups)
        written = output.part(onnx.GRAPH, partial(onnx.write, scorer.model, groups=groups, expected=expected))
        counts: Json = {"rewards compared": sum(map(len, expected)), "accuracy": accuracy(expected)}
        counts["largest difference"] = written["largest difference"]
        if config.int8:
            output.part(onnx.GRAPH_INT8, partial(onnx.quantise, config.out / onnx.GRAPH))
            found = onnx.Runtime(config.out / onnx.GRAPH_INT8).rewards(groups)
            counts |= {"largest difference int8": onnx.largest_difference(expected, found), "accuracy int8": accuracy(found)}
        scorer.encoder.tokenizer.save_pretrained(config.out)
        logger.info("%s: %s", config.out, ", ".join(f"{name} {value}" for name, value in counts.items() if value is not None))
        output.finish(counts=counts)


def _probes(config: Config, scorer: "Scorer") -> "tuple[list[EncodedGroup], Callable[[list[list[float]]], float | None]]":
    """Groups to compare on, and the accuracy of rewards on their preferences, None where they have none."""
    from collections import Counter
    from itertools import islice

    from worldpm.field.records import Message
    from worldpm.parts.training import pairs_of
    from worldpm.parts.training_data import TrainingData

    if config.probe is None:
        texts = [f"word {'and more ' * length}end" for length in (0, 3, 17, 60)]
        return [scorer.encoder.encode([Message("user", text)], texts) for text in texts], lambda _: None
    found = list(islice(TrainingData.find([str(config.probe)]).groups("validation", Counter()), PROBES))
    if not found:
        raise ConfigError(f"--probe {config.probe}: has no validation groups to compare on; name groups that have, or leave it out")
    groups = [scorer.encoder.encode(group.prompt, [response.content for response in group.responses]) for group in found]

    def accuracy(rewards: list[list[float]]) -> float:
        import torch

        from worldpm.field import bradley_terry

        pairs = pairs_of((len(group.responses), group.preferences) for group in found)
        flat = torch.tensor([reward for one in rewards for reward in one], dtype=torch.float64)
        return bradley_terry.weighted_mean(
            bradley_terry.pair_credits(bradley_terry.margins(flat, pairs.chosen, pairs.rejected)), pairs.weight
        )

    return groups, accuracy
