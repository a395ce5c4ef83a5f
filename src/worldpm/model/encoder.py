"""From preference groups to the token ids that a model reads: cuts and shared prefixes."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from worldpm.errors import DataError
from worldpm.model import chat
from worldpm.records import Message

ALWAYS_TOKENIZED_CHARACTERS = 200_000
"""Characters up to which a text is tokenized even if it is surely too long, so that the error can
name its tokens."""

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
        """A group for each response, as a model runs it that shares no prompts."""
        responses = zip(self.suffixes, self.response_tokens, self.truncated, strict=True)
        return [
            EncodedGroup(self.prefix, [suffix], [tokens], [cut])
            for suffix, tokens, cut in responses
        ]


class Limits(NamedTuple):
    """How long a sequence may be, in tokens."""

    max_length: int
    """Prompt plus one response, frame and end token included."""
    prompt_length: int
    """Length that a prompt is cut to; it does not depend on the responses, so a reward does not
    depend on its neighbours."""
    cut: bool = True
    """Cut sequences over the limits; otherwise reject them."""
    trained: bool = False
    """Whether the model was trained on prompts cut to `prompt_length`: then longer ones are
    rejected where nothing is cut."""

    @classmethod
    def of(cls, max_length: int) -> "Limits":
        """The limits if only the length is known: a prompt is cut to half of it."""
        return cls(max_length, max_length // 2)

    def within(self, max_length: int | None, *, cut: bool) -> "Limits":
        """These limits for sequences of at most `max_length`; a length above the model's own limit
        is used as given.

        Shorter sequences are cut so that half is left for the response. Where nothing is cut, the
        prompt may be as long as in training.
        """
        if max_length is None or max_length == self.max_length:
            return self._replace(cut=cut)

        halved = Limits.of(max_length)
        if max_length > self.max_length:
            return halved._replace(cut=cut)

        prompt_length = min(self.prompt_length, halved.prompt_length) if cut else self.prompt_length
        return self._replace(max_length=max_length, prompt_length=prompt_length, cut=cut)


class TokenSequence(NamedTuple):
    """The tokens of one prompt and one response, with the positions of their own words."""

    ids: list[int]
    opening: int
    """Start of the prompt's words, after the template's opening."""
    prompt_end: int
    """Start of the response."""
    response_end: int
    """Start of the template's closing."""
    prompt_words: tuple[tuple[int, int], ...] = ()
    """Start and end of the words of each prompt message, without the template's."""

    @property
    def response_tokens(self) -> int:
        """Tokens of the response's own words."""
        return max(0, self.response_end - self.prompt_end)


class _Tokenized(NamedTuple):
    """The tokens of one text."""

    ids: list[int]
    ends: list[int]
    """Character at which each token ends."""


class _Neighbours(NamedTuple):
    """Consecutive sequences that begin with the same tokens."""

    shared: int
    """Number of tokens that all of them begin with."""
    indices: list[int]


@dataclass(frozen=True)
class Encoder:
    """How a model reads text: its tokenizer, the frame of its conversations, and their limits."""

    tokenizer: PreTrainedTokenizerBase
    frame: chat.Frame
    limits: Limits

    def encode(
        self, prompt: Sequence[Message], responses: Sequence[str], *, name: str = "group"
    ) -> EncodedGroup:
        """Tokens of one group; without responses it is empty.

        A prompt is cut from its left (the template's opening stays), a response before its closing.

        Raises:
            DataError: If the prompt has no message, the chat template refuses it, or a sequence is
                too long and cutting was not asked for.
        """
        if not prompt:
            raise DataError(name, "the prompt has no message; at least one is needed")
        if not responses:
            return EncodedGroup([], [], [], [])

        sequences, response_tokens, truncated = [], [], []
        for sequence in self.read(prompt, responses, name=name):
            fitted = self.fitted(sequence, name)
            sequences.append(fitted.ids)
            response_tokens.append(sequence.response_tokens)
            truncated.append(len(fitted.ids) < len(sequence.ids))

        # one token less than the shortest: equal responses keep their end token
        shared = min(chat.common_prefix(sequences), min(map(len, sequences)) - 1)
        suffixes = [ids[shared:] for ids in sequences]
        return EncodedGroup(sequences[0][:shared], suffixes, response_tokens, truncated)

    def read(
        self, prompt: Sequence[Message], responses: Sequence[str], *, name: str = "group"
    ) -> list[TokenSequence]:
        """The prompt with each response, uncut, with the positions of their words.

        Raises:
            DataError: If the chat template refuses the prompt or changes a response, or there are
                more characters than tokens could hold and cutting was not asked for.
        """
        prompt_characters = sum(len(message.content) for message in prompt)
        self._check_size(prompt_characters + max(map(len, responses), default=0), name)

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

        texts = _tokenized(self.tokenizer, conversations)
        return list(map(_token_sequence, conversations, texts))

    def fitted(self, sequence: TokenSequence, name: str = "group") -> TokenSequence:
        """The sequence within the limits.

        Raises:
            DataError: If it is too long and cutting was not asked for.
        """
        limits = self.limits
        if limits.cut:
            return _cut(sequence, limits)

        _check_length("prompt and response", len(sequence.ids), limits.max_length, name)
        if limits.trained:
            _check_length("prompt", sequence.prompt_end, limits.prompt_length, name)
        return sequence

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token, at most."""
        return max(map(len, self.tokenizer.get_vocab()))

    def _check_size(self, characters: int, name: str) -> None:
        """Refuse texts that are surely too long without tokenizing them: megabytes take seconds."""
        if self.limits.cut or characters <= ALWAYS_TOKENIZED_CHARACTERS:
            return

        most = self.limits.max_length * self._longest_token
        if characters > most:
            raise DataError(
                name,
                f"{characters:,} characters; {self.limits.max_length} tokens hold at most {most:,}:"
                " shorten it or ask for a cut",
            )

    def _ids(self, text: str) -> list[int]:
        """The tokens of a rendered text, with those that the tokenizer puts before texts unless
        they are in the text."""
        # rendered texts of some templates begin with the bos_token already
        opening = self.tokenizer.bos_token
        adds_opening = not (opening and text.startswith(opening))
        ids: list[int] = self.tokenizer(
            chat.close(text, self.frame), add_special_tokens=adds_opening, verbose=False
        )["input_ids"]
        return ids

    def read_texts(
        self, texts: Sequence[str | Sequence[int]], *, name: str = "text"
    ) -> list[EncodedGroup]:
        """Groups of texts that the caller rendered, special tokens included, or of their token ids,
        which are taken unchanged.

        A text gets its end token unless it is already last; ids do not. Neighbours that begin alike
        share their beginning, so the groups together have one response per text, in order. Texts
        over the limit are cut from their left.

        Raises:
            DataError: If a text is empty or too long and cutting was not asked for, or the
                tokenizer has no such id.
        """
        most = self.limits.max_length
        sequences, truncated = [], []
        for text in texts:
            ids = self._checked_ids(text, name)
            truncated.append(len(ids) > most)
            # the left is cut, because the reward is read at the last token
            sequences.append(ids[-most:])

        return _sharing(sequences, truncated)

    def _checked_ids(self, text: str | Sequence[int], name: str) -> list[int]:
        """The tokens of a rendered text, or valid token ids, before any cut."""
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
        return ids


def _check_length(part: str, tokens: int, most: int, name: str) -> None:
    if tokens > most:
        raise DataError(
            name, f"{tokens} tokens of {part}; at most {most} fit: shorten it or ask for a cut"
        )


def _sharing(sequences: Sequence[list[int]], truncated: Sequence[bool]) -> list[EncodedGroup]:
    """Groups of neighbours that have at least half of the shortest in common; each keeps a token of
    its own."""
    runs: list[_Neighbours] = []
    for index, sequence in enumerate(sequences):
        longer_run = _with_next(runs[-1], index, sequences) if runs else None
        if longer_run is None:
            runs.append(_Neighbours(len(sequence) - 1, [index]))
        else:
            runs[-1] = longer_run

    groups = []
    for shared, indices in runs:
        prefix = sequences[indices[0]][:shared]
        suffixes = [sequences[i][shared:] for i in indices]
        lengths = [len(sequences[i]) for i in indices]
        groups.append(EncodedGroup(prefix, suffixes, lengths, [truncated[i] for i in indices]))
    return groups


def _with_next(run: _Neighbours, index: int, sequences: Sequence[list[int]]) -> _Neighbours | None:
    """The run with one sequence more; None if they have too little in common."""
    start = sequences[run.indices[0]][: run.shared]
    # one token less than the sequence, so that it has a suffix to read its reward at
    common = min(chat.common_prefix([start, sequences[index]]), len(sequences[index]) - 1)
    indices = [*run.indices, index]
    if 2 * common < min(len(sequences[i]) for i in indices):
        return None
    return _Neighbours(common, indices)


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[chat.Conversation]
) -> list[_Tokenized]:
    """The tokens of each conversation's text."""
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    # one call for all texts, which the tokenizer spreads over the cores
    encoded = tokenizer([conversation.text for conversation in conversations], **options)

    texts = []
    for index, conversation in enumerate(conversations):
        if conversation.literal:
            texts.append(_tokenized_around(tokenizer, conversation, options))
        else:
            ends = [end for _, end in encoded["offset_mapping"][index]]
            texts.append(_Tokenized(encoded["input_ids"][index], ends))
    return texts


def _tokenized_around(
    tokenizer: PreTrainedTokenizerBase, conversation: chat.Conversation, options: dict[str, bool]
) -> _Tokenized:
    """The tokens of a text in which people wrote special tokens: those spans are read as plain
    text."""
    ids: list[int] = []
    ends: list[int] = []
    borders = [0, *chain.from_iterable(conversation.literal), len(conversation.text)]
    for number, (start, end) in enumerate(pairwise(borders)):
        # odd pieces are the literal spans
        piece = tokenizer(
            conversation.text[start:end], split_special_tokens=bool(number % 2), **options
        )

        ids += piece["input_ids"]
        ends += [start + stop for _, stop in piece["offset_mapping"]]
    return _Tokenized(ids, ends)


def _token_sequence(conversation: chat.Conversation, text: _Tokenized) -> TokenSequence:
    """The tokens of a conversation, with its offsets in characters as positions of tokens."""

    def position(character: int) -> int:
        # tokens that end at the character or before it
        return bisect_right(text.ends, character)

    return TokenSequence(
        text.ids,
        opening=position(conversation.prompt_start),
        prompt_end=position(conversation.prompt_end),
        response_end=position(conversation.response_end),
        prompt_words=tuple(
            (position(start), position(end)) for start, end in conversation.prompt_words
        ),
    )


def _cut(sequence: TokenSequence, limits: Limits) -> TokenSequence:
    """The prompt without its left after the template's opening, and the response without its
    end."""
    opening, prompt_words = sequence.opening, sequence.prompt_words
    prompt = sequence.ids[: sequence.prompt_end]
    response = sequence.ids[sequence.prompt_end : sequence.response_end]
    closing = sequence.ids[sequence.response_end :]

    excess = len(prompt) - limits.prompt_length
    if excess > 0:
        # an opening that is longer than the limit is cut like other words
        opening = opening if opening < limits.prompt_length else 0
        prompt = prompt[:opening] + prompt[opening + excess :]
        prompt_words = tuple(
            (max(opening, start - excess), end - excess)
            for start, end in prompt_words
            if end - excess > opening
        )

    response = response[: max(0, limits.max_length - len(prompt) - len(closing))]
    return TokenSequence(
        prompt + response + closing,
        opening=opening,
        prompt_end=len(prompt),
        response_end=len(prompt) + len(response),
        prompt_words=prompt_words,
    )
