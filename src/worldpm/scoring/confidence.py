"""Confidence in one model's margins: calibrated probabilities, ties within the noise, and users'
settings of style."""

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
"""The default confidence level at which two responses are distinguished."""


@dataclass(frozen=True)
class StyleModel:
    """`log odds = margin_weight margin + sum of weights z`, where z are the style differences of
    `style_control.differences`, from -1 to 1."""

    margin_weight: float
    """Log odds for each logit of a margin between responses of equal style."""
    weights: Mapping[str, float]
    """Log odds by feature, for each unit of a style difference. They measure how style alone
    predicts the labels, for any reason."""


@dataclass(frozen=True)
class Confidence:
    """The meaning of a model's margins. Without judged pairs, only the temperature can be known."""

    temperature: float | None = None
    """The divisor that turns margins into log odds; None, used as 1, if it is unknown."""
    margins: Sequence[float] = ()
    """Signed margins of judged pairs, one per prompt."""
    style: StyleModel | None = None
    """None without judged pairs, or if their margins contradict the labels."""
    source: str = "the checkpoint's validation preferences"
    """Name of the pairs that the temperature was fitted on."""

    @cached_property
    def sha256(self) -> str | None:
        """Hash of the numbers; None if margins are not calibrated."""
        if self.temperature is None:
            return None
        numbers = (self.temperature, list(self.margins), self.style, self.source)
        return hashlib.sha256(msgspec.json.encode(numbers)).hexdigest()

    def probability(self, margin: float) -> float:
        """Probability that a response is preferred to another; `margin` is its lead in logits."""
        return bradley_terry.probability(margin / (self.temperature or 1.0))

    def probabilities(self, rewards: Sequence[float]) -> list[list[float]]:
        """Probability that the row's response is preferred to the column's; 0.5 on the
        diagonal."""
        return [list(map(self.probability, row)) for row in _margins(rewards).tolist()]

    def over_others(self, rewards: Sequence[float]) -> list[float]:
        """Probability that the best response is preferred to each response; 0.5 for itself."""
        # responses may be empty
        best = max(rewards, default=0.0)
        return [self.probability(best - reward) for reward in rewards]

    def can_tell(self, rewards: Sequence[float], level: float) -> list[list[bool]] | None:
        """Whether each two responses can be distinguished at a level; None if there are too few
        judged pairs for that level."""
        return self._are_apart(_margins(rewards), level)

    def averages(self, rewards: Sequence[float]) -> list[float]:
        """Mean log odds of each response against the others, as a probability; 0.5 for a single
        response."""
        return _averages(_margins(rewards) / (self.temperature or 1.0))

    def _are_apart(self, margins: NDArray[np.float64], level: float) -> list[list[bool]] | None:
        """Whether each margin is larger than the noise of judged margins; None if there are too few
        of them."""
        beyond = calibration.sure_beyond(self.margins, level)
        if beyond is None:
            return None
        are_apart: list[list[bool]] = (np.abs(margins) > beyond).tolist()
        return are_apart


class Settings(NamedTuple):
    """A user's settings of a choice. They change log odds and mark the responses outside the
    allowed ranges, but never change rewards."""

    strictness: float = LEVEL
    """The level at which two responses are distinguished, 0.5 to below 1."""
    ranges: Mapping[str, tuple[float, float]] = {}
    """Allowed counts by feature, `length` in tokens. Responses outside rank after the others."""
    weights: Mapping[str, float] = {}
    """Log odds for each unit of a style difference, which is between -1 and 1."""


def read_settings(ranges: Sequence[str], weights: Sequence[str]) -> Settings:
    """Parse settings from texts of the forms `FEATURE=LOW:HIGH` and `FEATURE=LOG_ODDS`.

    Raises:
        ConfigError: If a text has another form, or an unknown feature.
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
    """The feature before `=`, and the numbers after it, separated by `:`."""
    name, _, value = text.partition("=")
    try:
        numbers = [float(part) for part in value.split(":")]
    except ValueError:
        numbers = []

    # `float` also accepts inf and nan
    if name not in FEATURES or len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ConfigError(
            f"{text!r}: does not have the form {form}. Use it, with one of {', '.join(FEATURES)}."
        )
    return name, numbers


@dataclass
class Choice:
    """The responses to one prompt, compared under a user's settings."""

    ranking: list[int]
    """Indices, best first by log odds; responses outside the allowed ranges come last."""
    log_odds: list[float]
    """Mean log odds of each response against all. Without weights, they are proportional to its
    reward minus the mean reward."""
    probabilities: list[list[float]]
    """Probability that the row's response is preferred to the column's."""
    averages: list[float]
    """Mean log odds of each response against the others, as a probability. Within the allowed
    ranges it has the order of `ranking`; a mean of probabilities may not."""
    can_tell: list[list[bool]] | None
    """Whether each two responses can be distinguished at the settings' strictness; None if there
    are too few judged pairs. Only margins count as noisy, not the log odds of the weights."""
    terms: dict[str, list[list[float]]] = field(default_factory=dict)
    """Log odds of the row over the column that each weighted feature adds."""
    outside: list[list[str]] = field(default_factory=list)
    """Reasons why each response is outside the ranges; empty if it is inside."""


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
    """Rank responses under settings: the log odds of margins at equal style, plus the log odds of
    the user's weights.

    Log odds are antisymmetric, so two responses with equal rewards and equal style tie under any
    weights. Responses of equal means keep their order.
    """
    style, temperature = confidence.style, confidence.temperature or 1.0
    margin_weight = style.margin_weight if style else 1 / temperature
    terms = _style_terms(counts, settings.weights)
    margins = _margins(rewards)
    weighted = sum(terms.values(), start=np.zeros_like(margins))
    log_odds = margin_weight * margins + weighted

    outside = [_outside(count, settings.ranges) for count in counts]
    # NumPy warns about a mean of an empty array
    means = log_odds.mean(axis=1).tolist() if len(rewards) else []
    # sorting is stable, so equal means keep their order
    order = sorted(range(len(means)), key=lambda index: (bool(outside[index]), -means[index]))
    return Choice(
        order,
        means,
        bradley_terry.probabilities(torch.from_numpy(log_odds)).tolist(),
        _averages(log_odds),
        # the noise is known in margins, so convert the weights' log odds to margins
        confidence._are_apart(margins + weighted / margin_weight, settings.strictness),
        {name: term.tolist() for name, term in terms.items()},
        outside,
    )


def _margins(rewards: Sequence[float]) -> NDArray[np.float64]:
    """The row's reward minus the column's, shape (K, K)."""
    column = np.array(rewards, dtype=np.float64)
    return column[:, None] - column[None, :]


def _averages(log_odds: NDArray[np.float64]) -> list[float]:
    """Mean log odds of each response against the others, as a probability."""
    # log odds against itself are 0; a single response has no others
    means = log_odds.sum(axis=1) / max(1, len(log_odds) - 1)
    averages: list[float] = bradley_terry.probabilities(torch.from_numpy(means)).tolist()
    return averages


def _style_terms(
    counts: Sequence[Mapping[str, float]], weights: Mapping[str, float]
) -> dict[str, NDArray[np.float64]]:
    """Log odds of the row over the column that each weighted feature adds."""
    terms = {}
    for name, weight in weights.items():
        column = np.array([count[name] for count in counts])
        # compare each response, as the chosen one, with each, as the rejected one
        rows, columns = np.meshgrid(column, column, indexing="ij")
        terms[name] = weight * style_control.differences(rows, columns, "paper")
    return terms


def _outside(count: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """The reasons why a response is outside the ranges."""
    return [
        f"{name} is {count[name]:g}, allowed are {low:g} to {high:g}"
        for name, (low, high) in ranges.items()
        if not low <= count[name] <= high
    ]
