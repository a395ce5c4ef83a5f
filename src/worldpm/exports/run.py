"""What leaves the house: groups as pairs for others, a checkpoint for other engines."""

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal

import torch

from worldpm.datasets.training_data import TrainingData
from worldpm.errors import ConfigError
from worldpm.exports import model_folder, pairs
from worldpm.model import sources
from worldpm.model.encoder import EncodedGroup
from worldpm.options.export import ExportOptions
from worldpm.records import Message
from worldpm.scoring.scorer import Scorer, rewards_of
from worldpm.stats import bradley_terry
from worldpm.stats.pairs import pairs_of
from worldpm.storage import folders

logger = logging.getLogger(__name__)
Json = dict[str, Any]
Form = Literal["pairs", "model", "onnx"]
NEEDED = ("onnx", "onnxscript", "onnxruntime")
PROBES = 64
"""Groups on which a graph is compared with the model, and of which INT8 tells its accuracy."""


def run(options: ExportOptions) -> None:
    """Write the folder."""
    {"pairs": _export_pairs, "model": _export_model, "onnx": _export_onnx}[options.to](options)


def _export_pairs(options: ExportOptions) -> None:

    for folder in options.source:
        folders.manifest(folder, made_by="group")
    output = folders.begin(
        options.out,
        step="export",
        config={},
        inputs=[folders.describe(path) for path in options.source],
    )
    if output is None:
        return
    with output:
        counts = pairs.write(options.source, output)
        for split, count in counts.items():
            logger.info("%s: %d pairs of %d groups", split, count["pairs"], count["groups"])
        output.finish(counts=counts)


def _export_model(options: ExportOptions) -> None:

    source = sources.find(options.source[0])
    if options.results:
        folders.manifest(options.results, made_by="evaluate")
    inputs = [
        sources.fingerprint(source),
        *([folders.describe(options.results)] if options.results else []),
    ]
    output = folders.begin(
        options.out,
        step="export",
        config={"to": "model", "licence": options.licence},
        inputs=inputs,
    )
    if output is None:
        return
    with output:
        counts = model_folder.write(
            source,
            output,
            licence=options.licence,
            results=options.results,
            name=options.out.resolve().name,
        )
        logger.info("%s: %d files, the card is README.md", options.out, counts["files"])
        output.finish(counts=counts)


def _export_onnx(options: ExportOptions) -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"--to onnx needs {', '.join(missing)}: pip install 'worldpm[onnx]'")
    from worldpm.exports import onnx  # packages of an extra

    source = sources.find(options.source[0])
    inputs = [
        sources.fingerprint(source),
        *([folders.describe(options.probe)] if options.probe else []),
    ]
    output = folders.begin(
        options.out, step="export", config={"to": "onnx", "int8": options.int8}, inputs=inputs
    )
    if output is None:
        return
    with output:
        scorer = Scorer.load(source.folder, cut=True, dtype=torch.float32)
        scorer.model.cpu()
        groups, accuracy = _probes(options, scorer)
        expected = rewards_of(scorer.model, groups)
        written = output.part(
            onnx.GRAPH, partial(onnx.write, scorer.model, groups=groups, expected=expected)
        )
        counts: Json = {"rewards compared": sum(map(len, expected)), "accuracy": accuracy(expected)}
        counts["largest difference"] = written["largest difference"]
        if options.int8:
            output.part(onnx.GRAPH_INT8, partial(onnx.quantise, options.out / onnx.GRAPH))
            found = onnx.Runtime(options.out / onnx.GRAPH_INT8).rewards(groups)
            counts |= {
                "largest difference int8": onnx.largest_difference(expected, found),
                "accuracy int8": accuracy(found),
            }
        scorer.encoder.tokenizer.save_pretrained(options.out)
        logger.info(
            "%s: %s",
            options.out,
            ", ".join(f"{name} {value}" for name, value in counts.items() if value is not None),
        )
        output.finish(counts=counts)


def _probes(
    options: ExportOptions, scorer: Scorer
) -> tuple[list[EncodedGroup], Callable[[list[list[float]]], float | None]]:
    """Groups to compare on, and the accuracy of rewards on their preferences, None where they have
    none."""

    if options.probe is None:
        texts = [f"word {'and more ' * length}end" for length in (0, 3, 17, 60)]
        return [
            scorer.encoder.encode([Message("user", text)], texts) for text in texts
        ], lambda _: None
    found = list(
        islice(TrainingData.find([str(options.probe)]).groups("validation", Counter()), PROBES)
    )
    if not found:
        raise ConfigError(
            f"--probe {options.probe}: has no validation groups to compare on; name groups that"
            " have, or leave it out"
        )
    groups = [
        scorer.encoder.encode(group.prompt, [response.content for response in group.responses])
        for group in found
    ]

    def accuracy(rewards: list[list[float]]) -> float:

        pairs = pairs_of((len(group.responses), group.preferences) for group in found)
        flat = torch.tensor([reward for one in rewards for reward in one], dtype=torch.float64)
        return bradley_terry.weighted_mean(
            bradley_terry.pair_credits(bradley_terry.margins(flat, pairs.chosen, pairs.rejected)),
            pairs.weight,
        )

    return groups, accuracy
