"""What a model's margins mean, learned from an evaluation of it: temperature, certainty, style."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash

from worldpm.errors import ConfigError
from worldpm.evaluation.results import JudgedPairs, ResultTables, Sides
from worldpm.scoring.confidence import FEATURES, Confidence, StyleModel
from worldpm.stats import calibration, style_control
from worldpm.storage.manifest import read_manifest, verified_files


def confidence_of(results: Path, name: str, *, sha256: str | None = None) -> Confidence:
    """What a results folder shows of the checkpoint called `name`, over all its benchmarks.

    A style model whose margin goes against the labels is left out. `sha256` is the checkpoint's
    own, where it is known.

    Raises:
        ConfigError: If the folder is not one, or does not hold that checkpoint, or no texts.
        DataError: If a file of it was altered.
    """
    verified_files(results)
    inputs = read_manifest(results, made_by="evaluate").inputs
    if sha256 is not None and sha256 not in {source.sha256 for source in inputs}:
        raise ConfigError(
            f"{results}: judged another model than this one, whatever its name; evaluate the one"
            " that is served"
        )

    tables = ResultTables.read(results)
    if name not in tables.checkpoints:
        raise ConfigError(
            f"--calibration {results}: judged {', '.join(sorted(tables.checkpoints))}, not {name};"
            " evaluate the model that is served"
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
    """The fit of margin and style together, None where its margin goes against the labels."""
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

    A hash draws it: a prompt's first pair is of the earliest answer, and easier than the others.
    """
    drawn: dict[str, tuple[int, float]] = {}
    for index, (prompt_id, margin) in enumerate(zip(prompt_ids, margins, strict=True)):
        draw = (xxhash.xxh64_intdigest(f"{prompt_id}#{index}".encode()), margin)
        drawn[prompt_id] = min(drawn.get(prompt_id, draw), draw)
    return [margin for _, margin in drawn.values()]


def _styled(parts: Sequence[JudgedPairs], results: Path) -> style_control.StyledPairs:
    """The pairs of all benchmarks with the style of both sides."""
    if not any(len(part.items) for part in parts):
        raise ConfigError(f"--calibration {results}: holds no preference")

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
    """The style counts of one side, with its length in tokens."""
    if side.counts is None or None in side.length_tokens:
        raise ConfigError(
            f"--calibration {results}: holds rewards without texts; evaluate a checkpoint itself"
        )
    lengths = np.array(side.length_tokens, dtype=np.float64)
    return {"length": lengths, **{name: side.counts[name] for name in FEATURES[1:]}}
