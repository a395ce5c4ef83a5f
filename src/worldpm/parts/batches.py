"""From preference groups to the rows a model reads: tokens, cuts, shared prefixes, rows filled to a token budget."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from worldpm.field.errors import DataError
from worldpm.field.records import Message
from worldpm.formats import chat


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One prompt and its K responses as token ids: the prompt's shared prefix once, and what follows it for each."""

    prefix: list[int]
    """The longest common token prefix of all rendered sequences that leaves each at least its end token."""
    suffixes: list[list[int]]
    """One per response, each ending with the end token."""
    response_tokens: list[int]
    """Tokens of each response's own words, before any cut."""
    truncated: list[bool]
    """Whether the prompt or this response was cut."""

    @property
    def tokens(self) -> int:
        """Tokens that the group costs in a packed row."""
        return len(self.prefix) + sum(map(len, self.suffixes))


class Limits(NamedTuple):
    """How long a sequence may be, in tokens."""

    max_length: int
    """Prompt plus one response, frame and end token included."""
    prompt_length: int
    """What a prompt is cut to; it does not depend on the responses, so a reward does not depend on its neighbours."""
    cut: bool = True
    """Cut what is too long; otherwise refuse it."""


def encode_group(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], responses: Sequence[str], *, limits: Limits, name: str = "group"
) -> EncodedGroup:
    """Tokens of one group; no responses make an empty one.

    A prompt is cut from its left (the template's opening stays), a response before its closing.

    Raises:
        DataError: If the prompt has no message, or a sequence is too long and cutting was not asked for.
    """
    if not prompt:
        raise DataError(name, "the prompt has no message; at least one is needed")
    if not responses:
        return EncodedGroup([], [], [], [])
    conversations = [chat.render(tokenizer, prompt, response) for response in responses]
    sequences, lengths, marks = [], [], []
    for conversation, (ids, ends) in zip(conversations, _tokens(tokenizer, conversations), strict=True):
        opening = int(np.searchsorted(ends, conversation.prompt_start, side="right"))
        prompt_count = int(np.searchsorted(ends, conversation.prompt_end, side="right"))
        body_end = int(np.searchsorted(ends, conversation.response_end, side="right"))
        lengths.append(max(0, body_end - prompt_count))
        if not limits.cut and len(ids) > limits.max_length:
            raise DataError(name, f"{len(ids)} tokens of prompt and response; at most {limits.max_length} fit: shorten it or ask for a cut")
        kept = _cut(ids, opening, prompt_count, body_end, limits) if limits.cut else ids
        marks.append(len(kept) < len(ids))
        sequences.append(kept)
    shared = min(chat.common_prefix(sequences), min(map(len, sequences)) - 1)
    return EncodedGroup(sequences[0][:shared], [s[shared:] for s in sequences], lengths, marks)


def _tokens(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[chat.Conversation]) -> list[tuple[list[int], list[int]]]:
    """The token ids of each text, and the character at which each token ends."""
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    encoded = tokenizer([c.text for c in conversations], **options)
    found = [(ids, [end for _, end in offsets]) for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]
    for place, conversation in enumerate(conversations):
        if conversation.literal:
            found[place] = _tokens_around(tokenizer, conversation, options)
    return found


def _tokens_around(
    tokenizer: PreTrainedTokenizerBase, conversation: chat.Conversation, options: dict[str, bool]
) -> tuple[list[int], list[int]]:
    """The tokens of a text in which people wrote special tokens: those spans are read as plain text."""
    ids: list[int] = []
    ends: list[int] = []
    borders = [0, *(border for span in conversation.literal for border in span), len(conversation.text)]
    for number, (start, end) in enumerate(pairwise(borders)):
        piece = tokenizer(conversation.text[start:end], split_special_tokens=bool(number % 2), **options)
        ids += piece["input_ids"]
        ends += [start + stop for _, stop in piece["offset_mapping"]]
    return ids, ends


def _cut(ids: list[int], opening: int, prompt_count: int, body_end: int, limits: Limits) -> list[int]:
    prompt, body, closing = ids[:prompt_count], ids[prompt_count:body_end], ids[body_end:]
    if len(prompt) > limits.prompt_length:
        opening = opening if opening < limits.prompt_length else 0
        prompt = prompt[:opening] + prompt[len(prompt) - (limits.prompt_length - opening) :]
    room = max(0, limits.max_length - len(prompt) - len(closing))
    return prompt + body[:room] + closing


class Row(NamedTuple):
    """Groups that run through the model together; the indices are those of the caller's list."""

    indices: list[int]
    groups: list[EncodedGroup]


def pack(groups: Sequence[EncodedGroup], *, row_tokens: int) -> Iterator[Row]:
    """Rows of whole groups, longest first, each filled up to `row_tokens`; a longer group is a row of its own.

    First-fit decreasing, so the same groups always make the same rows.
    """
    bins: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(groups)), key=lambda i: (-groups[i].tokens, i)):
        size = groups[index].tokens
        for slot, (used, members) in enumerate(bins):
            if used + size <= row_tokens:
                members.append(index)
                bins[slot] = (used + size, members)
                break
        else:
            bins.append((size, [index]))
    for _, members in bins:
        yield Row(members, [groups[i] for i in members])


def steps_of(
    pair_counts: Sequence[int], *, batch_pairs: int, seed: int, epochs: float | None = None, max_steps: int | None = None
) -> Iterator[list[int]]:
    """Indices of the groups of each optimizer step, a pure function of its arguments.

    Every epoch is a new permutation. A step closes at the first group that reaches `batch_pairs`; groups are never split.
    The run ends after `max_steps` steps or else after `epochs` passes, whose last step may be smaller.
    """
    step: list[int] = []
    pairs, made = 0, 0
    for index in _stream(pair_counts, seed=seed, epochs=None if max_steps is not None else epochs):
        step.append(index)
        pairs += pair_counts[index]
        if pairs >= batch_pairs:
            yield step
            made += 1
            step, pairs = [], 0
            if max_steps is not None and made >= max_steps:
                return
    if step:
        yield step


def _stream(pair_counts: Sequence[int], *, seed: int, epochs: float | None) -> Iterable[int]:
    epoch, left = 0, None if epochs is None else round(epochs * len(pair_counts))
    while left is None or left > 0:
        order = np.random.default_rng([seed, epoch]).permutation(len(pair_counts))
        order = order if left is None else order[:left]
        yield from (int(i) for i in order)
        left = None if left is None else left - len(order)
        epoch += 1
