"""From preference groups to the rows a model reads: tokens, cuts, shared prefixes, rows filled to a token budget."""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from worldpm.field.errors import DataError
from worldpm.field.records import Message
from worldpm.formats import chat

Tokens = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One prompt and its K responses as token ids: the prompt's shared prefix once, and what follows it for each."""

    prefix: Tokens
    """The longest common token prefix of all rendered sequences that leaves each at least its end token."""
    suffixes: Sequence[Tokens]
    """One per response, each ending with the end token."""
    response_tokens: Sequence[int]
    """Tokens of each response's own words, before any cut."""
    truncated: Sequence[bool]
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


@dataclass(frozen=True)
class Encoder:
    """How a model reads text: its tokenizer, the frame of its conversations, and how long they may be."""

    tokenizer: PreTrainedTokenizerBase
    frame: chat.Frame
    limits: Limits

    def encode(self, prompt: Sequence[Message], responses: Sequence[str], *, name: str = "group") -> EncodedGroup:
        """Tokens of one group; no responses make an empty one.

        A prompt is cut from its left (the template's opening stays), a response before its closing.

        Raises:
            DataError: If the prompt has no message, the chat template refuses it, or a sequence is too long and cutting was
                not asked for.
        """
        if not prompt:
            raise DataError(name, "the prompt has no message; at least one is needed")
        if not responses:
            return EncodedGroup([], [], [], [])
        limits = self.limits
        try:
            conversations = [chat.render(self.tokenizer, prompt, response, frame=self.frame) for response in responses]
        except TemplateError as error:
            raise DataError(name, f"the model's chat template refuses it ({error}); roles or their order are not the model's") from error
        sequences, lengths, marks = [], [], []
        for conversation, (ids, ends) in zip(conversations, _tokens(self.tokenizer, conversations), strict=True):
            opening = int(np.searchsorted(ends, conversation.prompt_start, side="right"))
            prompt_count = int(np.searchsorted(ends, conversation.prompt_end, side="right"))
            body_end = int(np.searchsorted(ends, conversation.response_end, side="right"))
            lengths.append(max(0, body_end - prompt_count))
            if not limits.cut and len(ids) > limits.max_length:
                raise DataError(
                    name, f"{len(ids)} tokens of prompt and response; at most {limits.max_length} fit: shorten it or ask for a cut"
                )
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


def pack(sizes: Sequence[int], *, row_tokens: int) -> list[list[int]]:
    """Rows of whole groups, as indices into their sizes in tokens: each filled up to `row_tokens`, longest group first.

    Best-fit decreasing, so the same sizes always make the same rows. A group longer than a row is a row of its own.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = bisect_left(room, (sizes[index], -1))
        if place == len(room):
            rows.append([])
            left, row = row_tokens, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        insort(room, (left - sizes[index], row))
    return rows


def steps_of(
    pair_counts: Sequence[int] | NDArray[np.integer],
    *,
    batch_pairs: int,
    seed: int,
    epochs: float | None = None,
    max_steps: int | None = None,
) -> list[NDArray[np.int64]]:
    """Indices of the groups of each optimizer step, a pure function of its arguments.

    Every epoch is a new permutation. A step closes at the first group that reaches `batch_pairs`; groups are never split.
    The run ends after `max_steps` steps or else after `epochs` passes, whose last step may be smaller.
    """
    counts = np.asarray(pair_counts, dtype=np.int64)
    steps: list[NDArray[np.int64]] = []
    left = np.zeros(0, dtype=np.int64)
    for order in _epochs(len(counts), seed=seed, epochs=None if max_steps is not None else epochs):
        left = np.concatenate([left, order])
        pairs, start = np.cumsum(counts[left]), 0
        while (last := int(np.searchsorted(pairs, batch_pairs + (pairs[start - 1] if start else 0)))) < len(left):
            steps.append(left[start : last + 1])
            start = last + 1
            if max_steps is not None and len(steps) >= max_steps:
                return steps
        left = left[start:]
    return [*steps, left] if len(left) else steps


def _epochs(groups: int, *, seed: int, epochs: float | None) -> Iterator[NDArray[np.int64]]:
    """One permutation after another, the last cut short; without `epochs` they do not end."""
    left = math.inf if epochs is None else round(epochs * groups)
    epoch = 0
    while left > 0 and groups:
        order = np.random.default_rng([seed, epoch]).permutation(groups)
        yield order if left >= groups else order[: int(left)]
        left, epoch = left - groups, epoch + 1
