"""Encoding of preference groups as token ids, with cuts and shared prefixes."""

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from worldpm.errors import DataError, TemplateRefusalError
from worldpm.model import chat
from worldpm.records import ASSISTANT, Message

ALWAYS_TOKENIZED_CHARACTERS = 200_000
"""A text with at most this number of characters is always tokenized, even if it is surely too long,
so that the error can state its tokens."""

SHORTEN = "Shorten it, or cut it with --cut (cut=True in Python)."
"""The advice about texts over the limit."""
TOLD_CUT, LARGEST_CUT = 0.05, 0.5
"""Shares of a set's responses that were cut: above the first the program warns, above the second an
accuracy on the set cannot be compared with others."""

Tokens = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """One prompt and its K responses as token ids: the shared prefix once, and the suffix of each
    response."""

    prefix: Tokens
    """The longest common token prefix of all rendered sequences that leaves each at least its end
    token."""
    suffixes: Sequence[Tokens]
    """One per response, each ending with the end token."""
    response_tokens: Sequence[int]
    """Tokens of each response's text, before any cut."""
    truncated: Sequence[bool]
    """Whether the prompt or this response was cut."""

    @property
    def tokens(self) -> int:
        """Tokens that the group costs in a packed row."""
        return len(self.prefix) + sum(map(len, self.suffixes))

    def at(self, indices: Sequence[int]) -> "EncodedGroup":
        """The group with only these responses."""
        return EncodedGroup(
            self.prefix,
            [self.suffixes[index] for index in indices],
            [self.response_tokens[index] for index in indices],
            [self.truncated[index] for index in indices],
        )

    @property
    def apart(self) -> "list[EncodedGroup]":
        """A group for each response, for models that do not share prompts."""
        return [self.at([index]) for index in range(len(self.suffixes))]


class Limits(NamedTuple):
    """Limits of the length of a sequence, in tokens."""

    max_length: int
    """Prompt plus one response, frame and end token included."""
    prompt_length: int
    """Length that a prompt is cut to if it does not fit with its response, whatever the length of
    the response."""
    cut: bool = True
    """Cut sequences over `max_length`; otherwise reject them."""

    @classmethod
    def of(cls, max_length: int) -> "Limits":
        """The limits if only the length is known: a prompt is cut to half of it."""
        return cls(max_length, max_length // 2)

    def within(self, max_length: int | None, *, cut: bool) -> "Limits":
        """These limits for sequences of at most `max_length`. A prompt is cut to at most half of
        it. A length above the model's own limit is used as given."""
        if max_length is None or max_length == self.max_length:
            return self._replace(cut=cut)

        prompt_length = max_length // 2
        if max_length < self.max_length:
            prompt_length = min(self.prompt_length, prompt_length)
        return Limits(max_length, prompt_length, cut)


class TokenSequence(NamedTuple):
    """The tokens of one prompt and one response, with the positions of their texts."""

    ids: list[int]
    opening: int
    """Start of the prompt's text, after the template's opening."""
    prompt_end: int
    """Start of the response."""
    response_end: int
    """Start of the template's closing."""
    prompt_words: tuple[tuple[int, int], ...] = ()
    """Start and end of the text of each prompt message, without the template's."""

    @property
    def response_tokens(self) -> int:
        """Tokens of the response's text."""
        return max(0, self.response_end - self.prompt_end)


class _Tokenized(NamedTuple):
    """The tokens of one text."""

    ids: list[int]
    ends: list[int]
    """Character at which each token ends."""


class _Opening(NamedTuple):
    """The start of a rendered conversation."""

    text: str
    begins_turns: bool
    """Whether every turn begins with it, as with a bos_token of `<|im_start|>`."""


class _Neighbours(NamedTuple):
    """Consecutive sequences that begin with the same tokens."""

    shared: int
    """Number of tokens that all of them begin with."""
    indices: list[int]


@dataclass(frozen=True)
class Encoder:
    """The path from texts to a model's tokens: tokenizer, frame of conversations, and limits."""

    tokenizer: PreTrainedTokenizerBase
    frame: chat.Frame
    limits: Limits

    def encode(
        self,
        prompt: Sequence[Message],
        responses: Sequence[str],
        *,
        name: str = "group",
        last: Message = ASSISTANT,
        one_prompt: bool = False,
    ) -> EncodedGroup:
        """Tokens of one group; without responses it is empty.

        Sequences within the limit are not cut. In longer ones the prompt is cut at its start (but
        keeps the template's opening) to its fixed length, and then the response at its end (but
        keeps the closing). Each response is cut without regard to the others, so that rewards do
        not depend on them. With `one_prompt`, as in training, the prompt is cut for all responses
        if it is cut for one.

        Raises:
            DataError: If the prompt has no message, or a sequence is too long and must not be cut.
            TemplateRefusalError: If the chat template rejects the conversation.
        """
        if not prompt:
            raise DataError(name, "the prompt has no message. Give at least one.")
        if not responses:
            return EncodedGroup([], [], [], [])

        whole = self.read(prompt, responses, name=name, last=last)
        too_long = one_prompt and any(
            len(sequence.ids) > self.limits.max_length for sequence in whole
        )
        sequences, response_tokens, truncated = [], [], []
        for sequence in whole:
            fitted = self.fitted(sequence, name, cut_prompt=too_long)
            sequences.append(fitted.ids)
            response_tokens.append(sequence.response_tokens)
            truncated.append(len(fitted.ids) < len(sequence.ids))

        # one token less than the shortest, so that equal responses keep their end token
        shared = min(chat.common_prefix(sequences), min(map(len, sequences)) - 1)
        suffixes = [ids[shared:] for ids in sequences]
        return EncodedGroup(sequences[0][:shared], suffixes, response_tokens, truncated)

    def read(
        self,
        prompt: Sequence[Message],
        responses: Sequence[str],
        *,
        name: str = "group",
        last: Message = ASSISTANT,
    ) -> list[TokenSequence]:
        """The prompt with each response, uncut, with the positions of their texts.

        Raises:
            DataError: If the texts are surely too long and must not be cut.
            TemplateRefusalError: If the chat template rejects the conversation.
        """
        prompt_characters = sum(len(message.content) for message in prompt)
        self._check_size(prompt_characters + max(map(len, responses), default=0), name)

        try:
            conversations = chat.render(
                self.tokenizer, prompt, responses, frame=self.frame, last=last
            )
        except chat.RefusalError as error:
            raise TemplateRefusalError(name, str(error)) from error

        texts = self._tokenized(conversations)
        return list(map(_token_sequence, conversations, texts))

    def fitted(
        self, sequence: TokenSequence, name: str = "group", *, cut_prompt: bool = False
    ) -> TokenSequence:
        """Cut a sequence to the limits; `cut_prompt` cuts a long prompt even if the sequence fits.

        Raises:
            DataError: If it is too long and must not be cut.
        """
        tokens, most = len(sequence.ids), self.limits.max_length
        if tokens <= most and not cut_prompt:
            return sequence
        if not self.limits.cut:
            raise DataError(
                name,
                f"{tokens} tokens of prompt and response, but at most {most} fit. {SHORTEN}",
            )
        return _cut(sequence, self.limits)

    def _tokenized(self, conversations: Sequence[chat.Conversation]) -> list[_Tokenized]:
        """The tokens of each conversation's text."""
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        # one call for all texts, which the tokenizer spreads over the cores
        encoded = self.tokenizer([conversation.text for conversation in conversations], **options)

        texts = []
        for index, conversation in enumerate(conversations):
            if conversation.literal:
                texts.append(self._literal_tokenizer.tokenize(conversation))
            else:
                ends = [end for _, end in encoded["offset_mapping"][index]]
                texts.append(_Tokenized(encoded["input_ids"][index], ends))
        return texts

    @cached_property
    def _literal_tokenizer(self) -> "_LiteralTokenizer":
        return _LiteralTokenizer.of(self.tokenizer)

    @cached_property
    def _longest_token(self) -> int:
        """An upper limit of the characters of a token."""
        return max(map(len, self.tokenizer.get_vocab()))

    def _check_size(self, characters: int, name: str) -> None:
        """Reject texts that are surely too long before tokenizing, which takes seconds for
        megabytes."""
        if self.limits.cut or characters <= ALWAYS_TOKENIZED_CHARACTERS:
            return

        most = self.limits.max_length * self._longest_token
        if characters > most:
            raise DataError(
                name,
                f"{characters:,} characters, but {self.limits.max_length} tokens hold at most"
                f" {most:,}. {SHORTEN}",
            )

    def _ids(self, text: str) -> list[int]:
        """The tokens of a rendered text. Some clients remove the template's bos_token; it is added
        again."""
        text = chat.close(text, self.frame)
        opening, begins_turns = self._opening
        # Where the bos_token begins every turn, plain text has none to be added again.
        is_conversation = not begins_turns or opening in text
        if is_conversation and not text.startswith(opening):
            text = opening + text
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    @cached_property
    def _opening(self) -> _Opening:
        """The bos_token if the template writes it before conversations; otherwise empty, even if
        the tokenizer would write it."""
        (conversation,) = chat.render(
            self.tokenizer, [Message("user", "a")], ["b"], frame=self.frame
        )
        opening = str(self.tokenizer.bos_token or "")
        if not opening or not conversation.text.startswith(opening):
            return _Opening("", False)
        return _Opening(opening, conversation.text.count(opening) > 1)

    def read_texts(
        self, texts: Sequence[str | Sequence[int]], *, name: str = "text"
    ) -> list[EncodedGroup]:
        """Groups of texts that the caller rendered, special tokens included, or of their token ids,
        which are used unchanged.

        A text gets its end token unless it is already last; ids do not. Neighbours with the same
        beginning share it in one group. Together the groups have one response per text, in order.
        Texts over the limit are cut at their start.

        Raises:
            DataError: If a text is empty, or too long and must not be cut, or the tokenizer has no
                such id.
        """
        most = self.limits.max_length
        sequences, truncated = [], []
        for text in texts:
            ids = self._checked_ids(text, name)
            truncated.append(len(ids) > most)
            # cut the start, because the reward is read at the last token
            sequences.append(ids[-most:])

        return _sharing(sequences, truncated)

    def _checked_ids(self, text: str | Sequence[int], name: str) -> list[int]:
        """The tokens of a rendered text, or valid token ids, before any cut."""
        self._check_size(len(text) if isinstance(text, str) else 0, name)
        ids = self._ids(text) if isinstance(text, str) else list(text)
        self.check_ids(ids, name)

        if len(ids) > self.limits.max_length and not self.limits.cut:
            raise DataError(
                name,
                f"{len(ids)} tokens, but at most {self.limits.max_length} fit. {SHORTEN}",
            )
        return ids

    def check_ids(self, ids: Sequence[int], name: str) -> None:
        """Check that there are token ids, all of this tokenizer.

        Raises:
            DataError: If not.
        """
        if not ids or not (min(ids) >= 0 and max(ids) < len(self.tokenizer)):
            raise DataError(
                name,
                f"no token, or ids outside 0 to {len(self.tokenizer) - 1}. Send text or ids of"
                " this tokenizer.",
            )


def _sharing(sequences: Sequence[list[int]], truncated: Sequence[bool]) -> list[EncodedGroup]:
    """Groups of neighbours that share at least half of the shortest sequence; each sequence keeps
    at least one token as its suffix."""
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
    """The run with one more sequence; None if they have too little in common."""
    start = sequences[run.indices[0]][: run.shared]
    # one token less than the sequence, so that its reward can be read at a suffix
    common = min(chat.common_prefix([start, sequences[index]]), len(sequences[index]) - 1)
    indices = [*run.indices, index]
    if 2 * common < min(len(sequences[i]) for i in indices):
        return None
    return _Neighbours(common, indices)


@dataclass(frozen=True)
class _LiteralTokenizer:
    """Tokenizer of texts in which people wrote special tokens. It renames those that the template
    wrote, so that all others are plain text."""

    backend: Tokenizer
    names: dict[str, str]
    """The name of each special token."""
    ids: dict[int | None, int]
    """The model's ids of the added tokens, by the ids in `backend`."""
    special: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "_LiteralTokenizer":
        """The same tokenizer with other names for its special tokens."""
        # a secret, so that no text can contain such a name
        secret = secrets.token_hex(8)
        names = {
            token: f"\ufdd0{secret}:{number}\ufdd0"
            for number, token in enumerate(chat.special_tokens(tokenizer))
        }

        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        backend = Tokenizer.from_str(json.dumps(state))
        ids: dict[int | None, int] = {}
        for own_id, token in sorted(tokenizer.added_tokens_decoder.items()):
            name = names.get(token.content, token.content)
            renamed = AddedToken(
                name,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
            )
            backend.add_tokens([renamed])
            ids[backend.token_to_id(name)] = own_id
        return cls(backend, names, ids, chat.any_of(tuple(names)))

    def tokenize(self, conversation: chat.Conversation) -> _Tokenized:
        """The tokens of the text; spans in `literal` are plain text."""
        text, literal = conversation.text, set(conversation.literal)
        pieces, start, renamed_ends, shifts = [], 0, [0], [0]
        for match in self.special.finditer(text):
            if match.span() in literal:
                continue

            name = self.names[match[0]]
            pieces += [text[start : match.start()], name]
            start = match.end()
            renamed_ends.append(sum(map(len, pieces[-2:])) + renamed_ends[-1])
            shifts.append(renamed_ends[-1] - start)

        encoding = self.backend.encode("".join([*pieces, text[start:]]), add_special_tokens=False)
        ends = [end - shifts[bisect_right(renamed_ends, end) - 1] for _, end in encoding.offsets]
        return _Tokenized([self.ids.get(i, i) for i in encoding.ids], ends)


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
    """Cut the prompt at its start, after the template's opening, and the response at its end."""
    opening, prompt_words = sequence.opening, sequence.prompt_words
    prompt = sequence.ids[: sequence.prompt_end]
    response = sequence.ids[sequence.prompt_end : sequence.response_end]
    closing = sequence.ids[sequence.response_end :]

    excess = len(prompt) - limits.prompt_length
    if excess > 0:
        # an opening that is longer than the limit is cut like other text
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
