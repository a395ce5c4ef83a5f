"""`worldpm export`: groups as pairs for other trainers, or a checkpoint for other engines."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from worldpm import extras
from worldpm.datasets.training_data import TrainingData
from worldpm.errors import ConfigError
from worldpm.exports import model_folder, pair_tables
from worldpm.exports.model_folder import Origin
from worldpm.model import sources
from worldpm.model.encoder import EncodedGroup
from worldpm.options.export import ExportOptions
from worldpm.options.shared import command_of
from worldpm.records import Message, PreferenceGroup
from worldpm.scoring.scorer import Scorer, rewards_of
from worldpm.stats import bradley_terry
from worldpm.stats.pairs import pairs_of
from worldpm.storage import folders
from worldpm.storage.json_files import Plain
from worldpm.storage.manifest import Input, describe, read_manifest

logger = logging.getLogger(__name__)

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PROBE_GROUPS = 64
"""Number of groups on which a graph is compared with the model."""


@dataclass(frozen=True, kw_only=True)
class GraphCounts:
    """Comparison of a graph with its model."""

    rewards_compared: int
    accuracy: float | None
    """Accuracy of the model on the probe; None without --probe."""
    largest_difference: float
    """Largest difference of a reward of the float32 graph, in logits."""
    largest_difference_int8: float | None = None
    """Largest difference of a reward of the 8-bit graph; None without an 8-bit graph."""
    accuracy_int8: float | None = None
    """Accuracy of the 8-bit graph on the probe; None without an 8-bit graph or --probe."""


@dataclass(frozen=True)
class Probe:
    """Groups on which a graph is compared with its model."""

    encoded: Sequence[EncodedGroup]
    groups: Sequence[PreferenceGroup] = ()
    """The groups with their preferences; empty for generated texts."""

    def accuracy(self, rewards: Sequence[Sequence[float]]) -> float | None:
        """The weighted accuracy of rewards; None without preferences."""
        if not self.groups:
            return None
        indices = pairs_of((len(group.responses), group.preferences) for group in self.groups)
        flat = [reward for group in rewards for reward in group]
        values = torch.tensor(flat, dtype=torch.float64)
        margins = bradley_terry.margins(values, indices.chosen, indices.rejected)
        return bradley_terry.weighted_mean(bradley_terry.pair_credits(margins), indices.weight)


def run(options: ExportOptions) -> None:
    """Write the folder of `worldpm export`."""
    export = {"pairs": _export_pairs, "model": _export_model, "onnx": _export_onnx}
    export[options.to](options)


def _begin(
    options: ExportOptions, settings: Plain, inputs: Sequence[Input]
) -> folders.Output | None:
    command = command_of("export", options)
    return folders.begin(
        options.out, step="export", config=settings, inputs=inputs, command=command
    )


def _export_pairs(options: ExportOptions) -> None:
    for folder in options.source:
        read_manifest(folder, made_by="group")
    output = _begin(options, {}, [describe(folder) for folder in options.source])
    if output is None:
        return

    with output:
        counts = pair_tables.write(options.source, output)
        for split, count in counts.items():
            logger.info("%s: %d pairs of %d groups", split, count.pairs, count.groups)
        output.finish(counts={split: asdict(count) for split, count in counts.items()})


def _export_model(options: ExportOptions) -> None:
    source = sources.find(options.source[0])
    inputs = [sources.fingerprint(source)]
    if options.results:
        read_manifest(options.results, made_by="evaluate")
        inputs.append(describe(options.results))
    origin = Origin(options.licence, options.base_model, options.datasets)
    output = _begin(options, {"to": "model", **origin._asdict()}, inputs)
    if output is None:
        return

    with output:
        name = options.out.resolve().name
        files = model_folder.write(
            source,
            output,
            origin=origin,
            results=options.results,
            note=options.note,
            name=name,
        )
        logger.info("%s: %d files, the card is README.md", options.out, files)
        output.finish(counts={"files": files})


def _export_onnx(options: ExportOptions) -> None:
    for package in ONNX_PACKAGES:
        extras.load(package, extra="onnx", needed_by="--to onnx")
    from worldpm.exports import onnx  # packages of an extra

    source = sources.find(options.source[0])
    inputs = [sources.fingerprint(source)]
    if options.probe:
        inputs.append(describe(options.probe))
    output = _begin(options, {"to": "onnx", "int8": options.int8}, inputs)
    if output is None:
        return

    with output:
        scorer = Scorer.load(source, cut=True, dtype=torch.float32, device="cpu")
        probe = _probe(scorer, options.probe)
        expected = rewards_of(scorer.model, probe.encoded)
        write = partial(onnx.write, scorer.model, groups=probe.encoded, expected=expected)
        largest = output.part(onnx.GRAPH, write)

        difference, accuracy = None, None
        if options.int8:
            output.part(onnx.GRAPH_INT8, partial(onnx.quantise, options.out / onnx.GRAPH))
            rewards = onnx.Runtime(options.out / onnx.GRAPH_INT8).rewards(probe.encoded)
            difference = onnx.largest_difference(expected, rewards)
            accuracy = probe.accuracy(rewards)

        counts = GraphCounts(
            rewards_compared=sum(map(len, expected)),
            accuracy=probe.accuracy(expected),
            largest_difference=largest,
            largest_difference_int8=difference,
            accuracy_int8=accuracy,
        )
        scorer.encoder.tokenizer.save_pretrained(options.out)
        _log(options.out, counts)
        output.finish(counts=asdict(counts))


def _log(out: Path, counts: GraphCounts) -> None:
    measured = {name: value for name, value in asdict(counts).items() if value is not None}
    text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured.items())
    logger.info("%s: %s", out, text)


def _probe(scorer: Scorer, folder: Path | None) -> Probe:
    """Groups of a folder's validation split, or generated texts of several lengths.

    Raises:
        ConfigError: If the folder has no validation groups.
    """
    encode = scorer.encoder.encode
    if folder is None:
        texts = [f"word {'and more ' * length}end" for length in (0, 3, 17, 60)]
        return Probe([encode([Message("user", text)], texts) for text in texts])

    data = TrainingData.find([str(folder)])
    groups = list(islice(data.groups("validation", Counter()), PROBE_GROUPS))
    if not groups:
        raise ConfigError(
            f"--probe {folder}: has no validation groups to compare on. Name a folder that has"
            " some, or leave --probe out."
        )
    encoded = [
        encode(group.prompt, [response.content for response in group.responses]) for group in groups
    ]
    return Probe(encoded, groups)
