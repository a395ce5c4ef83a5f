"""What every benchmark is made of: items with preferences, and the metrics that are common to all.

A benchmark is a module with `DOMAINS` (its subsets by domain; `DOMAIN` where all are of one), `read(folder) -> list[Item]` and
`native(subsets) -> dict`, its own aggregates of the subsets' metrics under their own names.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from worldpm.field import bradley_terry
from worldpm.field.records import Message, Preference, Response
from worldpm.field.uncertainty import clustered_interval

Json = dict[str, Any]


class Item(NamedTuple):
    """One prompt with its responses, and which of them are better."""

    subset: str
    item: str
    prompt_id: str
    """Items that share a prompt share it: the cluster of the intervals."""
    prompt: Sequence[Message]
    responses: Sequence[Response]
    preferences: Sequence[Preference]

    @property
    def preferred(self) -> list[bool]:
        """Whether each response is in the better set: preferred to some other, and none to it."""
        better = {p.chosen for p in self.preferences} - {p.rejected for p in self.preferences}
        return [place in better for place in range(len(self.responses))]


def prompt_id(prompt: Sequence[Message]) -> str:
    """The same for the same prompt, 16 hex digits."""
    text = "\x1e".join(f"{message.role}\x1f{message.content}" for message in prompt)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def metrics(items: Sequence[Item], rewards: Sequence[Sequence[float]]) -> Json:
    """Accuracy, loss, interval and null baselines of the items' preferences under the rewards.

    `rewards` holds one list per item, in the order of its responses. The accuracy is weighted (a thread counts about once),
    a tie counts half; `accuracy_unweighted` counts each pair once. The interval is the 95 % bootstrap over prompts, None
    where there is one prompt only.

    Raises:
        ValueError: If the items hold no preference, or a reward is NaN.
    """
    pairs = [(item, p) for item in items for p in item.preferences]
    weights = torch.tensor([p.weight for _, p in pairs], dtype=torch.float64)
    probability = torch.tensor([p.probability for _, p in pairs], dtype=torch.float64)
    clusters = [item.prompt_id for item, _ in pairs]
    margins = pair_margins(items, rewards)
    credit = bradley_terry.pair_credits(margins)
    interval = clustered_interval(credit.numpy(), weights.numpy(), clusters)
    return {
        "accuracy": bradley_terry.weighted_mean(credit, weights),
        "accuracy_unweighted": bradley_terry.weighted_mean(credit, torch.ones_like(weights)),
        "interval": None if interval.low != interval.low else list(interval),
        "loss_nats": bradley_terry.weighted_mean(bradley_terry.losses_nats(margins, probability), weights),
        "n": len(pairs),
        "effective_pairs": float(weights.sum()),
        "prompts": len(set(clusters)),
        "ties": int((margins == 0).sum()),
        "nulls": {name: _null(items, judge) for name, judge in NULLS.items()},
    }


def accuracy(items: Sequence[Item], rewards: Sequence[Sequence[float]]) -> float:
    """The weighted accuracy alone, as in `metrics`."""
    weights = torch.tensor([p.weight for item in items for p in item.preferences], dtype=torch.float64)
    return bradley_terry.weighted_mean(bradley_terry.pair_credits(pair_margins(items, rewards)), weights)


def pair_margins(items: Sequence[Item], rewards: Sequence[Sequence[float]]) -> torch.Tensor:
    """The margin of every preference, in the order of items and their preferences, shape `(pairs,)`, float64."""
    flat = torch.tensor([reward for group in rewards for reward in group], dtype=torch.float64)
    chosen, rejected, start = [], [], 0
    for item in items:
        chosen += [start + p.chosen for p in item.preferences]
        rejected += [start + p.rejected for p in item.preferences]
        start += len(item.responses)
    return bradley_terry.margins(flat, torch.tensor(chosen, dtype=torch.int64), torch.tensor(rejected, dtype=torch.int64))


def longer(item: Item) -> list[float]:
    """The null baseline that prefers the longer response, in characters."""
    return [float(len(response.content)) for response in item.responses]


def earlier(item: Item) -> list[float] | None:
    """The null baseline that prefers the earlier response; None where dates are not known."""
    dates = [response.created for response in item.responses]
    return None if any(date is None for date in dates) else [-date.timestamp() for date in dates if date is not None]


def coin(item: Item) -> list[float]:
    """The null baseline that knows nothing: every pair is a tie, so it is right exactly half the time."""
    return [0.0] * len(item.responses)


NULLS: dict[str, Callable[[Item], list[float] | None]] = {"longer": longer, "earlier": earlier, "coin": coin}


def _null(items: Sequence[Item], judge: Callable[[Item], list[float] | None]) -> float | None:
    """The baseline's weighted accuracy on the same pairs, None where it cannot judge them all."""
    rewards = [judge(item) for item in items]
    known = [group for group in rewards if group is not None]
    if len(known) < len(rewards):
        return None
    return accuracy(items, known)
