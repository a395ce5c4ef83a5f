"""What a margin of one model means: calibrated probability, when it cannot tell, and how style
enters, by settings that anybody can see."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash

from worldpm.errors import ConfigError
from worldpm.stats import bradley_terry, calibration, style_control
from worldpm.stats.style import style_of
from worldpm.storage import folders, parquet

Json = dict[str, Any]
FEATURES = ("length", "headers", "lists", "bold", "code", "links")
LEVEL = 0.9


@dataclass(frozen=True)
class StyleModel:
    """`log odds = margin_weight margin + sum of weights z`, z the style differences, -1 to 1, of
    `style_control.differences`."""

    margin_weight: float
    """Of a margin in logits: it turns margins at equal style into log odds."""
    weights: Mapping[str, float]
    """Of each feature: what style alone told of the labels, for whatever reason."""


@dataclass(frozen=True)
class Confidence:
    """What is known of a model's margins; without judged pairs only its temperature, or nothing."""

    temperature: float | None = None
    margins: Sequence[float] = ()
    """Signed margins of judged pairs, one a prompt."""
    style: StyleModel | None = None
    source: str = "the checkpoint's validation preferences"

    def probability(self, margin: float) -> float:
        """That the response ahead by a margin in logits is preferred."""
        return bradley_terry.probability(margin / (self.temperature or 1.0))

    def probabilities(self, rewards: Sequence[float]) -> list[list[float]]:
        """That the response of the row is preferred to that of the column; 0.5 on the diagonal."""
        return [[self.probability(one - other) for other in rewards] for one in rewards]

    def over_others(self, rewards: Sequence[float]) -> list[float]:
        """That the best is preferred to each response; 0.5 for itself."""
        best = max(rewards, default=0.0)
        return [self.probability(best - other) for other in rewards]

    def can_tell(self, rewards: Sequence[float], level: float) -> list[list[bool]] | None:
        """Whether two responses can be told apart at that level; None where the judged pairs do not
        reach so far."""
        beyond = calibration.sure_beyond(self.margins, level)
        return (
            None
            if beyond is None
            else [[abs(one - other) > beyond for other in rewards] for one in rewards]
        )


class Settings(NamedTuple):
    """What a user wants of a choice. Rewards never change by it: it moves log odds, and names what
    lies outside."""

    strictness: float = LEVEL
    """The level at which two responses are told apart, 0.5 to below 1."""
    ranges: Mapping[str, tuple[float, float]] = {}
    """Allowed counts by feature, `length` in tokens; responses outside stand after the others."""
    weights: Mapping[str, float] = {}
    """Log odds for each unit of a style difference, which runs from -1 to 1."""


def read_settings(ranges: Sequence[str], weights: Sequence[str]) -> Settings:
    """Settings of the words `FEATURE=LOW:HIGH` and `FEATURE=LOG_ODDS`.

    Raises:
        ConfigError: If a word has another form, or names no feature.
    """
    found: tuple[dict[str, tuple[float, float]], dict[str, float]] = ({}, {})
    for word in (*ranges, *weights):
        name, _, value = word.partition("=")
        try:
            numbers = tuple(float(part) for part in value.split(":"))
        except ValueError:
            numbers = ()
        if (
            name not in FEATURES
            or len(numbers) != (2 if word in ranges else 1)
            or not all(map(math.isfinite, numbers))
        ):
            form = "FEATURE=LOW:HIGH" if word in ranges else "FEATURE=LOG_ODDS"
            raise ConfigError(f"{word!r}: expected {form}, with one of {', '.join(FEATURES)}")
        if len(numbers) == 2:
            found[0][name] = numbers
        else:
            found[1][name] = numbers[0]
    return Settings(ranges=found[0], weights=found[1])


@dataclass
class Choice:
    """The responses of one prompt under a user's settings."""

    ranking: list[int]
    """Best first: by log odds, those outside the allowed ranges last."""
    log_odds: list[float]
    """Mean log odds of each response against all; without weights that is its reward less the mean,
    to a factor."""
    probabilities: list[list[float]]
    terms: dict[str, list[list[float]]] = field(default_factory=dict)
    """What each weighted feature adds to the log odds of row over column."""
    outside: list[list[str]] = field(default_factory=list)
    """Why each response lies outside; empty where it does not."""


def counts_of(text: str, length_tokens: int) -> dict[str, float]:
    """The style features of a response."""
    own = style_of(text)._asdict()
    return {"length": float(length_tokens), **{name: float(own[name]) for name in FEATURES[1:]}}


def choose(
    confidence: Confidence,
    rewards: Sequence[float],
    counts: Sequence[Mapping[str, float]],
    settings: Settings,
) -> Choice:
    """The ranking and probabilities of responses under settings: margins at equal style, plus the
    weights that were asked for.

    Log odds are antisymmetric, so a tie under all weights is a tie; equal means keep the order
    given.
    """
    margin_weight = (
        confidence.style.margin_weight if confidence.style else 1 / (confidence.temperature or 1.0)
    )
    r = np.array(rewards, dtype=np.float64)
    log_odds = margin_weight * (r[:, None] - r[None, :])
    terms = {}
    for name, weight in settings.weights.items():
        own = np.array([count[name] for count in counts])
        z = style_control.differences(
            np.repeat(own[:, None], len(own), axis=1),
            np.repeat(own[None, :], len(own), axis=0),
            "paper",
        )
        terms[name] = weight * z
        log_odds = log_odds + terms[name]
    outside = [
        [
            f"{name} is {count[name]:g}, allowed are {low:g} to {high:g}"
            for name, (low, high) in settings.ranges.items()
            if not low <= count[name] <= high
        ]
        for count in counts
    ]
    means = log_odds.mean(axis=1) if len(r) else r
    return Choice(
        sorted(range(len(r)), key=lambda place: (bool(outside[place]), -means[place])),
        means.tolist(),
        bradley_terry.probabilities(torch.from_numpy(log_odds)).tolist(),
        {name: term.tolist() for name, term in terms.items()},
        outside,
    )


def of_results(results: Path, name: str, *, sha256: str | None = None) -> Confidence:
    """What a results folder of `worldpm evaluate` tells of the checkpoint called `name`, over all
    its sets.

    A style model whose margin goes against the labels is left out. `sha256` is the checkpoint's
    own, where it is known.

    Raises:
        ConfigError: If the folder is not one, or does not hold that checkpoint, or no texts.
    """
    folders.verified_files(results)
    inputs = folders.manifest(results, made_by="evaluate")["inputs"]
    if sha256 is not None and sha256 not in {one.get("sha256") for one in inputs}:
        raise ConfigError(
            f"{results}: judged another model than this one, whatever its name; evaluate the one"
            " that is served"
        )
    rows = list(parquet.read_rows(results / "rewards.parquet"))
    if name not in (known := sorted({row["checkpoint"] for row in rows})):
        raise ConfigError(
            f"--calibration {results}: judged {', '.join(known)}, not {name}; evaluate the model"
            " that is served"
        )
    pairs = _pairs(results, [row for row in rows if row["checkpoint"] == name])
    one_each = _one_each(pairs.cluster, pairs.margin.tolist())
    margin, probability, weight = (
        torch.from_numpy(column) for column in (pairs.margin, pairs.probability, pairs.weight)
    )
    found = style_control.controlled(pairs, "paper")["coefficients"]
    margin_weight = found["margin"]["per_unit"]
    style = (
        None
        if margin_weight <= 0
        else StyleModel(
            margin_weight,
            {feature: one["per_unit"] for feature, one in found.items() if feature != "margin"},
        )
    )
    return Confidence(
        calibration.temperature(margin, probability, weight),
        one_each,
        style,
        f"{len(one_each):,} prompts of {results.name}",
    )


def _one_each(cluster: Sequence[str], margins: Sequence[float]) -> list[float]:
    """The margin of one pair of each prompt, drawn by a hash: the first pair is of the earliest
    answer, and easier than others."""
    drawn: dict[str, tuple[int, float]] = {}
    for place, (name, margin) in enumerate(zip(cluster, margins, strict=True)):
        key = xxhash.xxh64_intdigest(f"{name}#{place}".encode())
        drawn[name] = min(drawn.get(name, (key, margin)), (key, margin))
    return [margin for _, margin in drawn.values()]


def _pairs(results: Path, rewards: Sequence[Json]) -> style_control.StyledPairs:
    """The judged pairs of a results folder with the style of both sides."""
    key = ("benchmark", "subset", "item", "response")
    items = {
        tuple(row[name] for name in key): row
        for row in parquet.read_rows(results / "items.parquet")
    }
    scored = {tuple(row[name] for name in key): row for row in rewards}
    columns: dict[str, list[Any]] = {"margin": [], "probability": [], "weight": [], "cluster": []}
    sides: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for pair in parquet.read_rows(results / "preferences.parquet"):
        item = tuple(pair[name] for name in key[:3])
        ends = [(*item, pair[side]) for side in ("chosen", "rejected")]
        if any(items[end]["text"] is None for end in ends):
            raise ConfigError(
                f"--calibration {results}: holds rewards without texts; evaluate a checkpoint"
                " itself"
            )
        columns["margin"].append(scored[ends[0]]["reward"] - scored[ends[1]]["reward"])
        columns["cluster"].append(items[ends[0]]["prompt_id"])
        for name in ("probability", "weight"):
            columns[name].append(pair[name])
        for side, end in zip(sides, ends, strict=True):
            side.append(
                {
                    "length": scored[end]["length_tokens"],
                    **{name: items[end][name] for name in FEATURES[1:]},
                }
            )
    if not columns["margin"]:
        raise ConfigError(f"--calibration {results}: holds no preference")
    numbers = {
        name: np.array(columns[name], dtype=np.float64)
        for name in ("margin", "probability", "weight")
    }
    chosen, rejected = (
        {name: np.array([count[name] for count in side], dtype=np.float64) for name in FEATURES}
        for side in sides
    )
    return style_control.StyledPairs(
        **numbers, cluster=columns["cluster"], chosen=chosen, rejected=rejected
    )
