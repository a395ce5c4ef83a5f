"""The metrics that are common to all benchmarks: pure functions of items and rewards."""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from worldpm.benchmarks.items import Item, Judged
from worldpm.stats import bradley_terry, calibration, style_control
from worldpm.stats.style import style_of
from worldpm.stats.uncertainty import clustered_interval, detectable, holm, paired_difference

Json = dict[str, Any]


def judge(module: ModuleType, judged: Judged, *, temperature: float | None = None) -> Json:
    """All that is said of one checkpoint on one benchmark: whole, by subset and by domain, its own
    aggregates, style, calibration.

    `temperature` is the checkpoint's own, fitted on validation preferences; without one it is
    cross-fitted on these.
    """
    subsets = list(dict.fromkeys(item.subset for item in judged.items))
    domains: Mapping[str, Sequence[str]] = getattr(module, "DOMAINS", None) or {
        module.DOMAIN: subsets
    }
    of_subset = {subset: domain for domain, names in domains.items() for subset in names}
    by_subset = {
        name: {
            "domain": of_subset.get(name, "mixed"),
            **metrics(*judged.of(name)[:2]),
            "native": {},
            "subsets": {},
        }
        for name in subsets
    }
    there = {
        domain: [name for name in names if name in subsets] for domain, names in domains.items()
    }
    return {
        "domain": next(iter(domains)) if len(domains) == 1 else "mixed",
        **metrics(*judged[:2]),
        "accuracy_macro": sum(found["accuracy"] for found in by_subset.values()) / len(by_subset),
        "items": len(judged.items),
        "missing_items": missing(module, judged.items),
        "native": module.native(judged),
        "subsets": by_subset,
        "domains": {
            domain: metrics(*judged.of(*names)[:2]) for domain, names in there.items() if names
        },
        "style": style(judged),
        "calibration": calibrated(judged, temperature),
    }


def missing(module: ModuleType, items: Sequence[Item]) -> Json:
    """Items by subset that the release has more (or, below 0, less) than were judged; empty where
    all are there or none is known."""
    sizes: Mapping[str, int] = getattr(module, "SIZES", {})
    seen: dict[str, int] = dict.fromkeys(sizes, 0)
    for item in items:
        seen[item.subset] = seen.get(item.subset, 0) + 1
    return {name: size - seen[name] for name, size in sizes.items() if seen[name] != size}


def metrics(items: Sequence[Item], rewards: Sequence[Sequence[float]]) -> Json:
    """Accuracy, loss, interval and null baselines of the items' preferences under the rewards.

    `rewards` holds one list per item, in the order of its responses. The accuracy is weighted (a
    thread counts about once), a tie counts half; `accuracy_unweighted` counts each pair once. The
    interval is the 95 % bootstrap over prompts, None where there is one prompt only.

    Raises:
        ValueError: If the items hold no preference, or a reward is NaN.
    """
    margins, probability, weights, clusters = tensors(items, rewards)
    credit = bradley_terry.pair_credits(margins)
    interval = clustered_interval(credit.numpy(), weights.numpy(), clusters)
    return {
        "accuracy": bradley_terry.weighted_mean(credit, weights),
        "accuracy_unweighted": bradley_terry.weighted_mean(credit, torch.ones_like(weights)),
        "interval": list(interval) if interval.known else None,
        "detectable": detectable(interval) if interval.known else None,
        "loss_nats": bradley_terry.weighted_mean(
            bradley_terry.losses_nats(margins, probability), weights
        ),
        "n": margins.numel(),
        "effective_pairs": float(weights.sum()),
        "prompts": len(set(clusters)),
        "ties": int((margins == 0).sum()),
        "nulls": {name: _null(items, judge) for name, judge in NULLS.items()},
    }


def tensors(
    items: Sequence[Item], rewards: Sequence[Sequence[float]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """Margin, probability and weight of every preference, float64 of shape `(pairs,)`, and its
    prompt."""
    pairs = [(item.prompt_id, p) for item in items for p in item.preferences]
    probability = torch.tensor([p.probability for _, p in pairs], dtype=torch.float64)
    weights = torch.tensor([p.weight for _, p in pairs], dtype=torch.float64)
    return pair_margins(items, rewards), probability, weights, [name for name, _ in pairs]


def accuracy(items: Sequence[Item], rewards: Sequence[Sequence[float]]) -> float:
    """The weighted accuracy alone, as in `metrics`."""
    weights = torch.tensor(
        [p.weight for item in items for p in item.preferences], dtype=torch.float64
    )
    return bradley_terry.weighted_mean(
        bradley_terry.pair_credits(pair_margins(items, rewards)), weights
    )


def pair_margins(items: Sequence[Item], rewards: Sequence[Sequence[float]]) -> torch.Tensor:
    """The margin of every preference, in the order of items and their preferences, shape
    `(pairs,)`, float64."""
    flat = torch.tensor([reward for group in rewards for reward in group], dtype=torch.float64)
    chosen, rejected, start = [], [], 0
    for item in items:
        chosen += [start + p.chosen for p in item.preferences]
        rejected += [start + p.rejected for p in item.preferences]
        start += len(item.responses)
    return bradley_terry.margins(
        flat, torch.tensor(chosen, dtype=torch.int64), torch.tensor(rejected, dtype=torch.int64)
    )


def strict_accuracy(judged: Judged) -> float:
    """The share of pairs whose chosen response has the higher reward, each counted once; a tie is
    wrong."""
    return float((pair_margins(judged.items, judged.rewards) > 0).double().mean())


def best_wins(judged: Judged) -> float:
    """The share of items whose better responses all have a higher reward than every other; a tie is
    wrong."""
    return sum(min(better) > max(worse) for better, worse in judged.sides()) / len(judged.items)


def calibrated(judged: Judged, temperature: float | None) -> Json:
    """Loss and reliability at a temperature: the given one, or one cross-fitted by prompt on these
    preferences."""
    margins, probability, weights, clusters = tensors(*judged[:2])
    source, scale = "validation", torch.full_like(margins, temperature or 1.0)
    if temperature is None:
        source = "cross-fitted"
        fold = torch.from_numpy(style_control.folds(clusters))
        for held_out in range(style_control.FOLDS):
            rest = fold != held_out
            if rest.any() and not rest.all():
                scale[~rest] = calibration.temperature(
                    margins[rest], probability[rest], weights[rest]
                )
    found = calibration.reliability(margins / scale, probability, weights)
    return {
        "temperature": float(scale.median()),
        "source": source,
        "loss_nats": bradley_terry.weighted_mean(
            bradley_terry.losses_nats(margins / scale, probability), weights
        ),
        "expected_error": found.expected_error,
        "bins": [one._asdict() for one in found.bins],
    }


def style(judged: Judged) -> Json | None:
    """Style control both ways of normalising, phi, and accuracy by length and level; None where the
    texts are not known."""
    if not all(item.prompt for item in judged.items):
        return None
    pairs = styled_pairs(judged)
    return {
        "controlled": {way: style_control.controlled(pairs, way) for way in ("paper", "arena")},
        "phi": style_control.phi(pairs),
        "by_length": style_control.by_length(pairs),
        "by_level": style_control.by_level(pairs),
        "unit_of_length": "characters" if judged.length_tokens is None else "tokens",
    }


def styled_pairs(judged: Judged) -> style_control.StyledPairs:
    """The pairs with the style counts of both sides."""
    margins, probability, weights, clusters = tensors(*judged[:2])
    counts: list[dict[str, float]] = []
    ends: tuple[list[int], list[int]] = ([], [])
    for place, item in enumerate(judged.items):
        ends[0].extend(len(counts) + p.chosen for p in item.preferences)
        ends[1].extend(len(counts) + p.rejected for p in item.preferences)
        lengths = (
            judged.length_tokens[place]
            if judged.length_tokens
            else [len(response.content) for response in item.responses]
        )
        for response, length in zip(item.responses, lengths, strict=True):
            own = style_of(response.content)._asdict()
            counts.append(
                {
                    "length": length,
                    **{name: own[name] for name in ("headers", "lists", "bold", "code", "links")},
                }
            )
    columns = {
        name: np.array([count[name] for count in counts], dtype=np.float64) for name in counts[0]
    }
    chosen, rejected = (
        {name: column[places] for name, column in columns.items()} for places in ends
    )
    return style_control.StyledPairs(
        margins.numpy(), probability.numpy(), weights.numpy(), clusters, chosen, rejected
    )


def compare(
    checkpoints: Mapping[str, Mapping[str, Judged]], runs: Mapping[str, tuple[str, int]]
) -> list[Json]:
    """Every two checkpoints on every benchmark: difference of accuracy, paired interval,
    Holm-corrected test, what could be shown.

    Steps of one training run are points of a curve, not rivals, and are not compared; `runs` has
    the run and step of those known.
    """
    names = list(checkpoints)
    found: list[Json] = []
    for place, second in enumerate(names):
        for first in names[:place]:
            if (
                {first, second} <= runs.keys()
                and runs[first][0] == runs[second][0]
                and runs[first][1] != runs[second][1]
            ):
                continue
            for benchmark, judged in checkpoints[first].items():
                one, other = (checkpoints[name][benchmark] for name in (first, second))
                _, _, weights, clusters = tensors(*judged[:2])
                credit = [
                    bradley_terry.pair_credits(pair_margins(*side[:2])).numpy()
                    for side in (one, other)
                ]
                gap = paired_difference(credit[0], credit[1], weights.numpy(), clusters)
                known = gap.interval.known
                found.append(
                    {
                        "benchmark": benchmark,
                        "first": first,
                        "second": second,
                        "difference": gap.estimate,
                        "interval": list(gap.interval) if known else None,
                        "p_value": gap.p_value,
                        "detectable": gap.detectable if known else None,
                    }
                )
    for row, adjusted in zip(found, holm([row["p_value"] for row in found]), strict=True):
        row["p_value_holm"] = adjusted
    return found


def longer(item: Item) -> list[float] | None:
    """The null baseline that prefers the longer response, in characters; None where the texts are
    not known."""
    return [float(len(response.content)) for response in item.responses] if item.prompt else None


def shorter(item: Item) -> list[float] | None:
    """The null baseline that prefers the shorter response."""
    return [-float(len(response.content)) for response in item.responses] if item.prompt else None


def earlier(item: Item) -> list[float] | None:
    """The null baseline that prefers the earlier response; None where dates are not known."""
    dates = [response.created for response in item.responses]
    return (
        None
        if any(date is None for date in dates)
        else [-date.timestamp() for date in dates if date is not None]
    )


def shown_first(item: Item) -> list[float] | None:
    """The null baseline that prefers what its set shows first; None where the set's order gives the
    better response away."""
    return None if item.shown is None else [-float(place) for place in item.shown]


def coin(item: Item) -> list[float]:
    """The null baseline that knows nothing: every pair is a tie, so it is right exactly half the
    time."""
    return [0.0] * len(item.responses)


NULLS: dict[str, Callable[[Item], list[float] | None]] = {
    "longer": longer,
    "shorter": shorter,
    "earlier": earlier,
    "first": shown_first,
    "coin": coin,
}


def _null(items: Sequence[Item], judge: Callable[[Item], list[float] | None]) -> float | None:
    """The baseline's weighted accuracy on the same pairs, None where it cannot judge them all."""
    rewards = [judge(item) for item in items]
    known = [group for group in rewards if group is not None]
    if len(known) < len(rewards):
        return None
    return accuracy(items, known)
