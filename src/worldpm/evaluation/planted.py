"""The simulated forum's test split against its planted truth: by domain, against votes and against
quality, with ceilings."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from worldpm.benchmarks.items import Item
from worldpm.benchmarks.metrics import accuracy, metrics
from worldpm.forums.hobbies import Truth
from worldpm.records import Preference

Json = dict[str, Any]

DOMAINS = ("adversarial", "objective", "subjective")
COIN = 0.5


def judge(
    items: Sequence[Item],
    model: Sequence[Sequence[float]],
    others: Mapping[str, Sequence[Sequence[float]]],
    truth: Mapping[str, Truth],
) -> Json:
    """For votes and for quality, overall and by domain: the model's metrics, the ceiling, and the
    other judges' accuracy.

    `model` and `others` (judges by name) hold the rewards of every item's responses; `truth` is by
    `response_id`. The ceiling is the accuracy of the best reader of the text alone. Against votes
    that reader knows what the crowd likes, dates integrated out: since an answer's date says
    nothing of its text, it ranks by appeal. A sample's votes may be kinder to others. Against
    quality it ranks by quality, and is always right.
    """
    planted = [
        [truth[response.meta["response_id"]] for response in item.responses] for item in items
    ]
    result: Json = {}
    for against, judged in (
        ("votes", items),
        ("quality", [_by_quality(i, t) for i, t in zip(items, planted, strict=True)]),
    ):
        best = [
            [one.appeal if against == "votes" else one.quality for one in group]
            for group in planted
        ]
        for domain in ("overall", *DOMAINS):
            chosen = [
                _only(item, group, domain) for item, group in zip(judged, planted, strict=True)
            ]
            if (
                not any(item.preferences for item in chosen)
                or (ceiling := accuracy(chosen, best)) <= COIN
            ):
                continue  # too small a forum to say anything of this part
            found = metrics(chosen, model)
            way = (found["accuracy"] - COIN) / (ceiling - COIN)
            judges = {name: accuracy(chosen, rewards) for name, rewards in others.items()}
            result.setdefault(against, {})[domain] = {
                "model": found,
                "ceiling": ceiling,
                "way_to_ceiling": way,
                "others": judges,
            }
    return result


def domain_of(a: Truth, b: Truth) -> str | None:
    """The part of quality in which the two differ most, None where they do not differ."""
    gaps = {domain: abs(getattr(a, domain) - getattr(b, domain)) for domain in DOMAINS}
    widest = max(DOMAINS, key=gaps.__getitem__)
    return widest if gaps[widest] > 0 else None


def _only(item: Item, planted: Sequence[Truth], domain: str) -> Item:
    kept = [
        p
        for p in item.preferences
        if domain in ("overall", domain_of(planted[p.chosen], planted[p.rejected]))
    ]
    return item._replace(preferences=kept)


def _by_quality(item: Item, planted: Sequence[Truth]) -> Item:
    """The item with every pair of different planted quality in place of the pairs of different
    votes."""
    pairs = list(_quality_pairs(planted))
    return item._replace(
        preferences=[Preference(i, j, gap, weight=1 / len(pairs)) for i, j, gap in pairs]
    )


def _quality_pairs(planted: Sequence[Truth]) -> Iterator[tuple[int, int, float]]:
    for i, j in combinations(range(len(planted)), 2):
        gap = planted[i].quality - planted[j].quality
        if gap:
            yield (i, j, gap) if gap > 0 else (j, i, -gap)
