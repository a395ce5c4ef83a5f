"""Rewards of items by a scorer, and the conditions of these rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from worldpm.benchmarks.items import Item, Judged
from worldpm.evaluation.results import BatchInvariance, Conditions
from worldpm.model import chat
from worldpm.records import Message
from worldpm.scoring.scorer import Refused, Request, Scored, Scorer

RESPONSES_AT_ONCE = 64
"""Number of distinct responses at which a group is full. Items of the same prompt share a group."""
PROBED_ITEMS = 8
"""Number of items whose responses are also scored alone, to measure how far a reward depends on
other responses."""


@dataclass
class _Group:
    """Distinct responses to one prompt, from one or several items."""

    request: Request
    indices: dict[str, int] = field(default_factory=dict)
    """Index of each response in the group, in the order of its items."""


def judge_items(scorer: Scorer, items: Sequence[Item]) -> Judged:
    """The items with the rewards of their responses. Equal responses to a prompt are scored once,
    and items that the chat template refuses are left out.

    Raises:
        DataError: If an input is over the limit and the scorer does not cut.
        NotFiniteError: If a reward is not finite.
    """
    groups: list[_Group] = []
    group_numbers: list[int] = []
    open_groups: dict[tuple[Message, ...], int] = {}
    for item in items:
        prompt = tuple(item.prompt)
        number = open_groups.get(prompt)
        # a full group gets no more items; its last item may have exceeded the limit
        if number is None or len(groups[number].indices) >= RESPONSES_AT_ONCE:
            number = open_groups[prompt] = len(groups)
            groups.append(_Group(Request(item.item, item.prompt, ())))

        indices = groups[number].indices
        for response in item.responses:
            indices.setdefault(response.content, len(indices))
        group_numbers.append(number)

    requests = [group.request._replace(responses=list(group.indices)) for group in groups]
    scored = list(scorer.score(requests))
    read: list[Item] = []
    answers: list[Scored] = []
    for item, number in zip(items, group_numbers, strict=True):
        answer = scored[number]
        if not isinstance(answer, Refused):
            read.append(item)
            answers.append(_of_item(item, groups[number], answer))

    return Judged(
        read,
        [answer.rewards for answer in answers],
        [answer.length_tokens for answer in answers],
        [answer.truncated for answer in answers],
    )


def _of_item(item: Item, group: _Group, scored: Scored) -> Scored:
    """The part of the group's answer for one item's responses, in their order."""
    indices = [group.indices[response.content] for response in item.responses]
    return Scored(
        [scored.rewards[index] for index in indices],
        [scored.length_tokens[index] for index in indices],
        [scored.truncated[index] for index in indices],
    )


def conditions_of(scorer: Scorer, judged: Judged) -> Conditions:
    """The conditions that are needed to reproduce the rewards, and a probe of responses scored
    alone."""
    encoder = scorer.encoder
    item = judged.items[0]
    group = encoder.encode(item.prompt, [item.responses[0].content])
    ids = [*map(int, group.prefix), *map(int, group.suffixes[0])]
    tokens = list(encoder.tokenizer.convert_ids_to_tokens(ids))
    # score first: if all rewards come from parts of an earlier run, the model has not yet
    # determined whether its rows share a prefix
    batch_invariance = _batch_invariance(scorer, judged)
    return Conditions(
        template_hash=chat.template_hash(encoder.tokenizer),
        end_token=encoder.frame.end_token,
        first_tokens=tokens[:6],
        last_tokens=tokens[-4:],
        dtype=scorer.precision,
        device=scorer.model.device.type,
        attention="shared prefix" if scorer.model.shares_prefix else "separate rows",
        max_length=encoder.limits.max_length,
        prompt_length=encoder.limits.prompt_length,
        batch_invariance=batch_invariance,
    )


def _batch_invariance(scorer: Scorer, judged: Judged) -> BatchInvariance:
    """Compare the first items' rewards with those of each response scored alone."""
    probe = zip(judged.items[:PROBED_ITEMS], judged.rewards[:PROBED_ITEMS], strict=True)
    differences: list[float] = []
    for item, rewards in probe:
        for response, reward in zip(item.responses, rewards, strict=True):
            alone = scorer.rewards(item.prompt, [response.content])[0]
            differences.append(abs(alone - reward))
    return BatchInvariance(responses=len(differences), largest_difference=max(differences))
