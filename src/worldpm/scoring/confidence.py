"""Confidence in one model's margins: calibrated probabilities, ties within the noise, and style by
settings that users can read."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from worldpm.errors import ConfigError
from worldpm.stats import bradley_terry, calibration, style_control
from worldpm.stats.style import style_of

FEATURES = ("length", "headers", "lists", "bold", "code", "links")
LEVEL = 0.9
"""The level at which two responses are distinguished, unless the user sets it."""


@dataclass(frozen=True)
class StyleModel:
    """`log odds = margin_weight margin + sum of weights z`, z the style differences, -1 to 1, of
    `style_control.differences`."""

    margin_weight: float
    """Of a margin in logits: it turns margins at equal style into log odds."""
    weights: Mapping[str, float]
    """Log odds by feature, for each unit of a style difference: what style alone predicts of the
    labels, for whatever reason."""


@dataclass(frozen=True)
class Confidence:
    """Meaning of a model's margins; without judged pairs its temperature at most."""

    temperature: float | None = None
    """Divides margins into log odds; None if unknown, and then taken as 1."""
    margins: Sequence[float] = ()
    """Signed margins of judged pairs, one a prompt."""
    style: StyleModel | None = None
    """None without judged pairs, or if their margins go against the labels."""
    source: str = "the checkpoint's validation preferences"
    """Name of the pairs that the temperature was fitted on."""

    @cached_property
    def sha256(self) -> str | None:
        """Of its numbers; None if margins are not calibrated."""
        if self.temperature is None:
            return None
        numbers = (self.temperature, list(self.margins), self.style, self.source)
        return hashlib.sha256(msgspec.json.encode(numbers)).hexdigest()

    def probability(self, margin: float) -> float:
        """Probability that the response ahead by a margin in logits is preferred."""
        return bradley_terry.probability(margin / (self.temperature or 1.0))

    def probabilities(self, rewards: Sequence[float]) -> list[list[float]]:
        """Probability that the response of the row is preferred to that of the column; 0.5 on the
        diagonal."""
        return [list(map(self.probability, row)) for row in _margins(rewards).tolist()]

    def over_others(self, rewards: Sequence[float]) -> list[float]:
        """Probability that the best is preferred to each response; 0.5 for itself."""
        # without responses there is no best
        best = max(rewards, default=0.0)
        return [self.probability(best - reward) for reward in rewards]

    def can_tell(self, rewards: Sequence[float], level: float) -> list[list[bool]] | None:
        """Whether two responses can be distinguished at that level; None if there are too few
        judged pairs for it."""
        return self._are_apart(_margins(rewards), level)

    def averages(self, rewards: Sequence[float]) -> list[float]:
        """Probability of each response at its mean log odds against the others; 0.5 for a single
        response."""
        return _averages(_margins(rewards) / (self.temperature or 1.0))

    def _are_apart(self, margins: NDArray[np.float64], level: float) -> list[list[bool]] | None:
        """Whether each margin is beyond the noise of judged margins; None if they are too few."""
        beyond = calibration.sure_beyond(self.margins, level)
        if beyond is None:
            return None
        are_apart: list[list[bool]] = (np.abs(margins) > beyond).tolist()
        return are_apart


class Settings(NamedTuple):
    """A user's settings of a choice. Rewards never change by them: they move log odds, and name the
    responses outside the ranges."""

    strictness: float = LEVEL
    """The level at which two responses are distinguished, 0.5 to below 1."""
    ranges: Mapping[str, tuple[float, float]] = {}
    """Allowed counts by feature, `length` in tokens; responses outside come after the others."""
    weights: Mapping[str, float] = {}
    """Log odds for each unit of a style difference, which runs from -1 to 1."""


def read_settings(ranges: Sequence[str], weights: Sequence[str]) -> Settings:
    """Settings of texts of the forms `FEATURE=LOW:HIGH` and `FEATURE=LOG_ODDS`.

    Raises:
        ConfigError: If a text has another form, or names no feature.
    """
    bounds = {}
    for text in ranges:
        name, (low, high) = _feature_and_numbers(text, "FEATURE=LOW:HIGH", count=2)
        bounds[name] = (low, high)

    log_odds = {}
    for text in weights:
        name, (weight,) = _feature_and_numbers(text, "FEATURE=LOG_ODDS", count=1)
        log_odds[name] = weight
    return Settings(ranges=bounds, weights=log_odds)


def _feature_and_numbers(text: str, form: str, *, count: int) -> tuple[str, list[float]]:
    """The feature before `=` and the numbers after it, which `:` separates."""
    name, _, value = text.partition("=")
    try:
        numbers = [float(part) for part in value.split(":")]
    except ValueError:
        numbers = []

    # `float` reads inf and nan too
    if name not in FEATURES or len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{text!r}: expected {form}, with one of {', '.join(FEATURES)}")
    return name, numbers


@dataclass
class Choice:
    """The responses of one prompt under a user's settings."""

    ranking: list[int]
    """Indices, best first: by log odds, those outside the allowed ranges last."""
    log_odds: list[float]
    """Mean log odds of each response against all; without weights that is its reward less the mean,
    to a factor."""
    probabilities: list[list[float]]
    """Probability that the response of the row is preferred to that of the column."""
    averages: list[float]
    """Probability of each response at its mean log odds against the others. Ranks as `ranking` does
    within the allowed ranges, which a mean of probabilities would not."""
    can_tell: list[list[bool]] | None
    """Whether two responses are distinguished at the settings' strictness; None if there are too
    few judged pairs. The log odds of the weights count as certain: only the margin is noisy."""
    terms: dict[str, list[list[float]]] = field(default_factory=dict)
    """Log odds that each weighted feature adds for the row over the column."""
    outside: list[list[str]] = field(default_factory=list)
    """Reasons for which each response lies outside the ranges; empty if it lies inside."""


def counts_of(text: str, length_tokens: int) -> dict[str, float]:
    """The style features of a response."""
    style = style_of(text)._asdict()
    return {"length": float(length_tokens), **{name: float(style[name]) for name in FEATURES[1:]}}


def choose(
    confidence: Confidence,
    rewards: Sequence[float],
    counts: Sequence[Mapping[str, float]],
    settings: Settings,
) -> Choice:
    """The ranking and probabilities of responses under settings: margins at equal style, plus the
    weights that were asked for.

    Log odds are antisymmetric, so a tie under all weights is a tie. Responses of equal means keep
    their order.
    """
    style, temperature = confidence.style, confidence.temperature or 1.0
    margin_weight = style.margin_weight if style else 1 / temperature
    terms = _style_terms(counts, settings.weights)
    margins = _margins(rewards)
    weighted = sum(terms.values(), start=np.zeros_like(margins))
    log_odds = margin_weight * margins + weighted

    outside = [_outside(count, settings.ranges) for count in counts]
    # a mean over no responses would warn
    means = log_odds.mean(axis=1).tolist() if len(rewards) else []
    # sorting is stable: equal means keep their order
    order = sorted(range(len(means)), key=lambda index: (bool(outside[index]), -means[index]))
    return Choice(
        order,
        means,
        bradley_terry.probabilities(torch.from_numpy(log_odds)).tolist(),
        _averages(log_odds),
        # the noise is known for margins, so the weights' log odds are added as margins
        confidence._are_apart(margins + weighted / margin_weight, settings.strictness),
        {name: term.tolist() for name, term in terms.items()},
        outside,
    )


def _margins(rewards: Sequence[float]) -> NDArray[np.float64]:
    """The reward of the row minus that of the column, shape (K, K)."""
    column = np.array(rewards, dtype=np.float64)
    return column[:, None] - column[None, :]


def _averages(log_odds: NDArray[np.float64]) -> list[float]:
    """Probability of each response at its mean log odds against the others."""
    # a response has log odds of 0 against itself; a single response has no others
    means = log_odds.sum(axis=1) / max(1, len(log_odds) - 1)
    averages: list[float] = bradley_terry.probabilities(torch.from_numpy(means)).tolist()
    return averages


def _style_terms(
    counts: Sequence[Mapping[str, float]], weights: Mapping[str, float]
) -> dict[str, NDArray[np.float64]]:
    """Log odds that each weighted feature adds for the row over the column."""
    terms = {}
    for name, weight in weights.items():
        column = np.array([count[name] for count in counts])
        # each response against each, as the chosen and as the rejected one
        rows, columns = np.meshgrid(column, column, indexing="ij")
        terms[name] = weight * style_control.differences(rows, columns, "paper")
    return terms


def _outside(count: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """The features of a response that lie outside their ranges."""
    return [
        f"{name} is {count[name]:g}, allowed are {low:g} to {high:g}"
        for name, (low, high) in ranges.items()
        if not low <= count[name] <= high
    ]
