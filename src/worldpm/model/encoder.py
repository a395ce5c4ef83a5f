"""From preference groups to the rows a model reads: tokens, cuts, shared prefixes, rows filled to a
token budget."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from worldpm.errors import DataError
from worldpm.model import chat
from worldpm.records import Message

ALWAYS_READ = 200_000
"""Characters up to which a text is tokenized even where it is surely too long, so that the error
can tell its tokens."""

Tokens = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One prompt and its K responses as token ids: the prompt's shared prefix once, and what
    follows it for each."""

    prefix: Tokens
    """The longest common token prefix of all rendered sequences that leaves each at least its end
    token."""
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

    @property
    def apart(self) -> "list[EncodedGroup]":
        """What a model runs that shares no prompts: a group for each response."""
        each = zip(self.suffixes, self.response_tokens, self.truncated, strict=True)
        return [
            EncodedGroup(self.prefix, [suffix], [tokens], [cut]) for suffix, tokens, cut in each
        ]


class Limits(NamedTuple):
    """How long a sequence may be, in tokens."""

    max_length: int
    """Prompt plus one response, frame and end token included."""
    prompt_length: int
    """What a prompt is cut to; it does not depend on the responses, so a reward does not depend on
    its neighbours."""
    cut: bool = True
    """Cut what is too long; otherwise refuse it."""
    trained: bool = False
    """Whether the model was trained on prompts that were cut so: then one that is longer is refused
    where nothing is cut."""

    @classmethod
    def of(cls, max_length: int) -> "Limits":
        """Those of which only the length is known: a prompt is cut to half of it."""
        return cls(max_length, max_length // 2)

    def within(self, max_length: int | None, *, cut: bool) -> "Limits":
        """These, for sequences of at most another length. What is longer than the model's own is
        the asker's word.

        Shorter sequences are cut so that half is left for the response; where nothing is cut, what
        the model was trained on is taken.
        """
        if max_length is None or max_length == self.max_length:
            return self._replace(cut=cut)
        asked = Limits.of(max_length)
        if max_length > self.max_length:
            return asked._replace(cut=cut)
        prompt_length = min(self.prompt_length, asked.prompt_length) if cut else self.prompt_length
        return self._replace(max_length=max_length, prompt_length=prompt_length, cut=cut)


class TokenSequence(NamedTuple):
    """The tokens of one prompt and one response, and where their own words stand among them."""

    ids: list[int]
    opening: int
    """Where the prompt's words begin, after the template's opening."""
    prompt_end: int
    """Where the response begins."""
    response_end: int
    """Where the template's closing begins."""
    prompt_words: tuple[tuple[int, int], ...] = ()
    """Where the own words of the prompt's messages stand, between the template's."""

    @property
    def response_tokens(self) -> int:
        """Tokens of the response's own words."""
        return max(0, self.response_end - self.prompt_end)


@dataclass(frozen=True)
class Encoder:
    """How a model reads text: its tokenizer, the frame of its conversations, and how long they may
    be."""

    tokenizer: PreTrainedTokenizerBase
    frame: chat.Frame
    limits: Limits

    def encode(
        self, prompt: Sequence[Message], responses: Sequence[str], *, name: str = "group"
    ) -> EncodedGroup:
        """Tokens of one group; no responses make an empty one.

        A prompt is cut from its left (the template's opening stays), a response before its closing.

        Raises:
            DataError: If the prompt has no message, the chat template refuses it, or a sequence is
                too long and cutting was not asked for.
        """
        if not prompt:
            raise DataError(name, "the prompt has no message; at least one is needed")
        if not responses:
            return EncodedGroup([], [], [], [])
        sequences, lengths, marks = [], [], []
        for sequence in self.read(prompt, responses, name=name):
            lengths.append(sequence.response_tokens)
            kept = self.fitted(sequence, name)
            marks.append(len(kept.ids) < len(sequence.ids))
            sequences.append(kept.ids)
        shared = min(chat.common_prefix(sequences), min(map(len, sequences)) - 1)
        return EncodedGroup(sequences[0][:shared], [s[shared:] for s in sequences], lengths, marks)

    def read(
        self, prompt: Sequence[Message], responses: Sequence[str], *, name: str = "group"
    ) -> list[TokenSequence]:
        """The prompt with each response, uncut, and where their words stand.

        Raises:
            DataError: If the chat template refuses the prompt or changes a response, or there are
                more characters than tokens could hold and cutting was not asked for.
        """
        self._check_size(
            sum(len(message.content) for message in prompt) + max(map(len, responses), default=0),
            name,
        )
        try:
            conversations = chat.render(self.tokenizer, prompt, responses, frame=self.frame)
        except TemplateError as error:
            raise DataError(
                name,
                f"the model's chat template refuses it ({error}); roles or their order are not the"
                " model's",
            ) from error
        except chat.ChangedError as error:
            raise DataError(name, str(error)) from error
        tokens = _tokens(self.tokenizer, conversations)
        return [
            _placed(conversation, *found)
            for conversation, found in zip(conversations, tokens, strict=True)
        ]

    def fitted(self, sequence: TokenSequence, name: str = "group") -> TokenSequence:
        """The sequence within the limits.

        Raises:
            DataError: If it is too long and cutting was not asked for.
        """
        if self.limits.cut:
            return _cut(sequence, self.limits)
        found = [("prompt and response", len(sequence.ids), self.limits.max_length)]
        found += (
            [("prompt", sequence.prompt_end, self.limits.prompt_length)]
            if self.limits.trained
            else []
        )
        for what, tokens, most in found:
            if tokens > most:
                raise DataError(
                    name,
                    f"{tokens} tokens of {what}; at most {most} fit: shorten it or ask for a cut",
                )
        return sequence

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token, at most."""
        return max(map(len, self.tokenizer.get_vocab()))

    def _check_size(self, characters: int, name: str) -> None:
        """Refuse without reading what is surely too long: to read megabytes takes seconds."""
        if self.limits.cut or characters <= ALWAYS_READ:
            return
        if characters > (most := self.limits.max_length * self._longest_token):
            told = (
                f"{characters:,} characters; {self.limits.max_length} tokens hold at most {most:,}"
            )
            raise DataError(name, f"{told}: shorten it or ask for a cut")

    def _ids(self, text: str) -> list[int]:
        """The tokens of a rendered text, with those that the tokenizer puts before it unless they
        are there."""
        opening = self.tokenizer.bos_token
        special = not (opening and text.startswith(opening))
        found: list[int] = self.tokenizer(
            chat.close(text, self.frame), add_special_tokens=special, verbose=False
        )["input_ids"]
        return found

    def read_texts(
        self, texts: Sequence[str | Sequence[int]], *, name: str = "text"
    ) -> list[EncodedGroup]:
        """Texts that somebody else rendered, special tokens and all, or their token ids, which are
        taken as they are.

        A text gets its end token unless it is already last; ids do not. Neighbours that begin alike
        share what they begin with, so the groups together have one response per text, in order.
        What is too long is cut from its left.

        Raises:
            DataError: If a text is empty or too long and cutting was not asked for, or an id is
                none of the tokenizer's.
        """
        sequences, marks = [], []
        for text in texts:
            self._check_size(len(text) if isinstance(text, str) else 0, name)
            ids = self._ids(text) if isinstance(text, str) else list(text)
            if not ids or not (min(ids) >= 0 and max(ids) < len(self.tokenizer)):
                raise DataError(
                    name,
                    f"no token, or ids outside 0 to {len(self.tokenizer) - 1}; send text or ids of"
                    " this tokenizer",
                )
            if len(ids) > self.limits.max_length and not self.limits.cut:
                raise DataError(
                    name,
                    f"{len(ids)} tokens; at most {self.limits.max_length} fit: shorten it or ask"
                    " for a cut",
                )
            marks.append(len(ids) > self.limits.max_length)
            sequences.append(ids[-self.limits.max_length :])
        return _sharing(sequences, marks)


def _sharing(sequences: Sequence[list[int]], marks: Sequence[bool]) -> list[EncodedGroup]:
    """Groups of neighbours that have at least half of the shortest in common; each keeps a token of
    its own."""
    runs: list[tuple[int, list[int]]] = []  # (shared tokens, places)
    for place, sequence in enumerate(sequences):
        if runs:
            shared, places = runs[-1]
            common = min(
                chat.common_prefix([sequences[places[0]][:shared], sequence]), len(sequence) - 1
            )
            if 2 * common >= min(len(sequences[i]) for i in (*places, place)):
                runs[-1] = (common, [*places, place])
                continue
        runs.append((len(sequence) - 1, [place]))
    return [
        EncodedGroup(
            sequences[places[0]][:shared],
            [sequences[i][shared:] for i in places],
            [len(sequences[i]) for i in places],
            [marks[i] for i in places],
        )
        for shared, places in runs
    ]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[chat.Conversation]
) -> list[tuple[list[int], list[int]]]:
    """The token ids of each text, and the character at which each token ends."""
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    encoded = tokenizer([c.text for c in conversations], **options)
    found = [
        (ids, [end for _, end in offsets])
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    for place, conversation in enumerate(conversations):
        if conversation.literal:
            found[place] = _tokens_around(tokenizer, conversation, options)
    return found


def _tokens_around(
    tokenizer: PreTrainedTokenizerBase, conversation: chat.Conversation, options: dict[str, bool]
) -> tuple[list[int], list[int]]:
    """The tokens of a text in which people wrote special tokens: those spans are read as plain
    text."""
    ids: list[int] = []
    ends: list[int] = []
    borders = [
        0,
        *(border for span in conversation.literal for border in span),
        len(conversation.text),
    ]
    for number, (start, end) in enumerate(pairwise(borders)):
        piece = tokenizer(
            conversation.text[start:end], split_special_tokens=bool(number % 2), **options
        )
        ids += piece["input_ids"]
        ends += [start + stop for _, stop in piece["offset_mapping"]]
    return ids, ends


def _placed(conversation: chat.Conversation, ids: list[int], ends: list[int]) -> TokenSequence:
    """The tokens of a conversation with its places in characters as places in tokens."""

    def at(character: int) -> int:
        return bisect_right(ends, character)

    places = (
        at(conversation.prompt_start),
        at(conversation.prompt_end),
        at(conversation.response_end),
    )
    return TokenSequence(
        ids, *places, tuple((at(start), at(end)) for start, end in conversation.prompt_words)
    )


def _cut(sequence: TokenSequence, limits: Limits) -> TokenSequence:
    ids, opening, prompt_end, response_end, words = sequence
    prompt, body, closing = ids[:prompt_end], ids[prompt_end:response_end], ids[response_end:]
    if (gone := len(prompt) - limits.prompt_length) > 0:
        opening = opening if opening < limits.prompt_length else 0
        prompt = prompt[:opening] + prompt[opening + gone :]
        words = tuple(
            (max(opening, start - gone), end - gone) for start, end in words if end - gone > opening
        )
    body = body[: max(0, limits.max_length - len(prompt) - len(closing))]
    return TokenSequence(
        prompt + body + closing, opening, len(prompt), len(prompt) + len(body), words
    )
