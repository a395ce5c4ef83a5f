"""The simulated forum's test split against its planted truth: by domain, against votes and against
quality, with ceilings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from worldpm.benchmarks.items import Item, Judged
from worldpm.benchmarks.measures import Measures
from worldpm.benchmarks.metrics import accuracy, metrics
from worldpm.forums.hobbies import Truth
from worldpm.records import Preference
from worldpm.storage.json_files import read_record

METRICS = "metrics.json"
DOMAINS = ("adversarial", "objective", "subjective")
"""The parts of planted quality."""
COIN_ACCURACY = 0.5

Rewards = Sequence[Sequence[float]]
"""Reward of each response of each item, in logits or any other unit of a judge."""


@dataclass(frozen=True, kw_only=True)
class PlantedResult:
    """A model on the pairs of one domain, against votes or against quality."""

    model: Measures
    """Of the model's rewards."""
    ceiling: float
    """Accuracy of the best reader of the text alone, above 0.5 and at most 1."""
    way_to_ceiling: float
    """The model's gain over a coin as a share of the ceiling's; below 0 if it is worse than a coin,
    above 1 if the sample's votes favour it."""
    others: dict[str, float]
    """Accuracy of the other judges, 0 to 1."""


Planted = dict[str, dict[str, PlantedResult]]
"""Results against `votes` and `quality`, each `overall` and by domain."""


def read_planted(folder: Path) -> Planted:
    """The results that the demo wrote.

    Raises:
        DataError: If the file is damaged.
    """
    return read_record(folder / METRICS, Planted)


@dataclass(frozen=True)
class _Standard:
    """The right answers by votes or by quality, and the best reader's rewards."""

    items: Sequence[Item]
    """With the preferences that count as right."""
    best_rewards: Rewards
    """Of the best reader of the text alone."""


def judge(
    items: Sequence[Item],
    model: Rewards,
    others: Mapping[str, Rewards],
    truth: Mapping[str, Truth],
) -> Planted:
    """Results against `votes` and `quality`, each `overall` and by domain.

    `model` and `others` (judges by name) hold the rewards of every item's responses; `truth` is by
    `response_id`. The ceiling is the accuracy of the best reader of the text alone. Against votes
    that reader knows what the crowd likes, dates integrated out: an answer's date carries no
    information about its text, so the reader ranks by appeal. A sample's votes may favour others.
    Against quality it ranks by quality, and is always right.

    Domains with too few pairs for a ceiling above a coin's accuracy are left out.
    """
    planted = [_truths(item, truth) for item in items]
    by_quality = [_by_quality(item, truths) for item, truths in zip(items, planted, strict=True)]
    standards = {
        "votes": _Standard(items, [_appeals(truths) for truths in planted]),
        "quality": _Standard(by_quality, [_qualities(truths) for truths in planted]),
    }

    results: Planted = {}
    for against, standard in standards.items():
        for domain in ("overall", *DOMAINS):
            of_domain = [
                _of_domain(item, truths, domain)
                for item, truths in zip(standard.items, planted, strict=True)
            ]
            result = _judged_by(replace(standard, items=of_domain), model, others)
            if result is not None:
                results.setdefault(against, {})[domain] = result
    return results


def _truths(item: Item, truth: Mapping[str, Truth]) -> list[Truth]:
    return [truth[response.meta["response_id"]] for response in item.responses]


def _appeals(truths: Sequence[Truth]) -> list[float]:
    return [truth.appeal for truth in truths]


def _qualities(truths: Sequence[Truth]) -> list[float]:
    return [truth.quality for truth in truths]


def _judged_by(
    standard: _Standard, model: Rewards, others: Mapping[str, Rewards]
) -> PlantedResult | None:
    """The results on the standard's pairs; None if the forum is too small to have a ceiling."""
    items = standard.items
    if not any(item.preferences for item in items):
        return None

    # in a small forum the votes of a sample may go against the best reader
    ceiling = accuracy(Judged(items, standard.best_rewards))
    if ceiling <= COIN_ACCURACY:
        return None

    measures = metrics(Judged(items, model))
    return PlantedResult(
        model=measures,
        ceiling=ceiling,
        way_to_ceiling=(measures.accuracy - COIN_ACCURACY) / (ceiling - COIN_ACCURACY),
        others={name: accuracy(Judged(items, rewards)) for name, rewards in others.items()},
    )


def domain_of(first: Truth, second: Truth) -> str | None:
    """The part of quality in which two responses differ most; None if they do not differ."""
    gaps = {
        "adversarial": abs(first.adversarial - second.adversarial),
        "objective": abs(first.objective - second.objective),
        "subjective": abs(first.subjective - second.subjective),
    }
    # of equal gaps the first in DOMAINS counts
    widest = max(DOMAINS, key=gaps.__getitem__)
    return widest if gaps[widest] > 0 else None


def _of_domain(item: Item, truths: Sequence[Truth], domain: str) -> Item:
    """The item with only the preferences of a domain."""
    preferences = [
        preference
        for preference in item.preferences
        if domain in ("overall", domain_of(truths[preference.chosen], truths[preference.rejected]))
    ]
    return replace(item, preferences=preferences)


def _by_quality(item: Item, truths: Sequence[Truth]) -> Item:
    """The item with every pair of different planted quality instead of the pairs of different
    votes."""
    pairs = list(_quality_pairs(truths))
    # an item's pairs weigh 1 together, as those of votes do
    weight = 1 / max(1, len(pairs))
    return replace(item, preferences=[replace(pair, weight=weight) for pair in pairs])


def _quality_pairs(truths: Sequence[Truth]) -> Iterator[Preference]:
    for i, j in combinations(range(len(truths)), 2):
        gap = truths[i].quality - truths[j].quality
        if gap > 0:
            yield Preference(i, j, gap)
        elif gap < 0:
            yield Preference(j, i, -gap)
