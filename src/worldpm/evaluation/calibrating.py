"""The confidence of a model's margins, from an evaluation of the model: temperature, noise and
style."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash

from worldpm.errors import ConfigError
from worldpm.evaluation.results import JudgedPairs, ResultTables, Sides, read_results
from worldpm.model.quantization import Bits
from worldpm.scoring.confidence import FEATURES, Confidence, StyleModel
from worldpm.stats import calibration, style_control
from worldpm.storage.manifest import read_manifest, verified_files


def confidence_of(
    results: Path, name: str, *, sha256: str | None = None, quantize: Bits | None = None
) -> Confidence:
    """The confidence of the checkpoint `name`, from all benchmarks of a results folder.

    A style model whose margin contradicts the labels is left out. `sha256` is the hash of the
    checkpoint, if it is known, and `quantize` the form of the weights that will be used.

    Raises:
        ConfigError: If the folder is not a results folder, lacks the checkpoint or the texts, or
            has rewards of weights in another form.
        DataError: If a file of the folder was altered.
    """
    verified_files(results)
    inputs = read_manifest(results, made_by="evaluate").inputs
    if sha256 is not None and sha256 not in {source.sha256 for source in inputs}:
        raise ConfigError(
            f"--calibration {results}: contains results of another model, not of the served one."
            " Evaluate the served model."
        )

    tables = ResultTables.read(results)
    if name not in tables.checkpoints:
        raise ConfigError(
            f"--calibration {results}: contains results of {', '.join(sorted(tables.checkpoints))},"
            f" not of {name}. Evaluate the served model."
        )

    precision = read_results(results).checkpoints[name].conditions.dtype or ""
    if precision.partition(", ")[2].removesuffix(" weights") != (quantize or ""):
        raise ConfigError(
            f"--calibration {results}: contains rewards in {precision}. Evaluate and serve with the"
            " same --quantize."
        )

    pairs = _styled([tables.pairs(name, benchmark) for benchmark in tables.preferences], results)
    margin, probability, weight = (
        torch.from_numpy(column) for column in (pairs.margin, pairs.probability, pairs.weight)
    )
    margins = _one_a_prompt(pairs.cluster, pairs.margin.tolist())
    source = f"{len(margins):,} prompts of {results.name}"
    temperature = calibration.temperature(margin, probability, weight)
    return Confidence(temperature, margins, _style_model(pairs), source)


def _style_model(pairs: style_control.StyledPairs) -> StyleModel | None:
    """The joint fit of margin and style; None if the margin contradicts the labels."""
    coefficients = style_control.control(pairs, "paper").coefficients
    margin_weight = coefficients["margin"].per_unit
    if margin_weight <= 0:
        return None

    weights = {
        feature: coefficient.per_unit
        for feature, coefficient in coefficients.items()
        if feature != "margin"
    }
    return StyleModel(margin_weight, weights)


def _one_a_prompt(prompt_ids: Sequence[str], margins: Sequence[float]) -> list[float]:
    """The margin of one pair of each prompt.

    A hash selects the pair. The first pair would be biased: it has the earliest answer, and is
    easier than the others.
    """
    drawn: dict[str, tuple[int, float]] = {}
    for index, (prompt_id, margin) in enumerate(zip(prompt_ids, margins, strict=True)):
        draw = (xxhash.xxh64_intdigest(f"{prompt_id}#{index}".encode()), margin)
        drawn[prompt_id] = min(drawn.get(prompt_id, draw), draw)
    return [margin for _, margin in drawn.values()]


def _styled(parts: Sequence[JudgedPairs], results: Path) -> style_control.StyledPairs:
    """The pairs of all benchmarks with the style of both sides."""
    if not any(len(part.items) for part in parts):
        raise ConfigError(
            f"--calibration {results}: has no preferences. Name another results folder."
        )

    chosen = [_features(part.chosen, results) for part in parts]
    rejected = [_features(part.rejected, results) for part in parts]
    return style_control.StyledPairs(
        margin=np.concatenate([part.chosen.rewards - part.rejected.rewards for part in parts]),
        probability=np.concatenate([part.probability for part in parts]),
        weight=np.concatenate([part.weight for part in parts]),
        cluster=[prompt_id for part in parts for prompt_id in part.prompt_ids],
        chosen={name: np.concatenate([counts[name] for counts in chosen]) for name in FEATURES},
        rejected={name: np.concatenate([counts[name] for counts in rejected]) for name in FEATURES},
    )


def _features(side: Sides, results: Path) -> dict[str, np.ndarray]:
    """The style counts of one side, and its lengths in tokens."""
    if side.counts is None or None in side.length_tokens:
        raise ConfigError(
            f"--calibration {results}: has rewards without texts. Evaluate a checkpoint instead of"
            " raw rewards."
        )
    lengths = np.array(side.length_tokens, dtype=np.float64)
    return {"length": lengths, **{name: side.counts[name] for name in FEATURES[1:]}}
