"""The only code that touches a chat template: a conversation becomes the text that a model
reads."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from worldpm.errors import CheckpointError
from worldpm.records import Message

END_TOKEN = "<|endoftext|>"
MARK = "\ufdd0"
"""A noncharacter that no text may hold."""
MADE_HERE = "{# with the frame of WorldPM #}"
FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""The day that templates of the Llama 3.2 kind fall back to."""
TURN_START, TURN_END, PAD_TOKEN = "<|im_start|>", "<|im_end|>", "<|pad|>"

QWEN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n<|im_end|>\n{% endif %}{% for message"
    " in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{%"
    " if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's chat format with its empty system turn, as the released WorldPM checkpoints read it."""


class ChangedError(Exception):
    """A template gives other words than it was given."""


class Frame(NamedTuple):
    """What surrounds the template's own words in the text of a model."""

    end_token: str | None = END_TOKEN
    """Appended, unless it is already last, after white space is dropped; None reads the template's
    text as it is."""
    empty_system: bool = True
    """Whether a prompt without a system turn gets an empty one, so that the template puts no words
    of its own there."""


AS_THE_TEMPLATE_HAS_IT = Frame(end_token=None, empty_system=False)
"""How reward models of others are read: their authors trained on the template's text and its last
token."""


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The frame in which a model is trained: the released WorldPM's where the tokenizer has its
    tokens.

    Raises:
        CheckpointError: If the tokenizer has no chat template, or no token that could end a text.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; take an instruct"
            " model's, or save one with it"
        )
    known = tokenizer.get_added_vocab()
    end_token = END_TOKEN if END_TOKEN in known else tokenizer.eos_token
    if end_token is None:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no end token; set its eos_token"
        )
    return Frame(str(end_token), TURN_START in str(tokenizer.chat_template))


def standing_alone(template: str, frame: Frame) -> str:
    """The template with the frame inside it: whoever fills it, knowing nothing of us, gets the text
    that the model was trained on.

    A template that was made so before comes back as it is. One that asks for the day gets a fixed
    one, or a reward would depend on it.
    """
    if MADE_HERE in template:
        return template
    template = on_a_fixed_day(template)
    if frame == AS_THE_TEMPLATE_HAS_IT:
        return template
    system = (
        "{% if messages[0].role != 'system' %}{% set messages = [{'role': 'system', 'content': ''}]"
        " + messages %}{% endif %}"
    )
    end = (
        ""
        if frame.end_token is None
        else (
            "{% if not add_generation_prompt %}{% set text = text.rstrip() %}{% if not"
            f" text.endswith('{frame.end_token}') %}}{{% set text = text + '{frame.end_token}'"
            " %}{% endif %}{% endif %}"
        )
    )
    return (
        f"{MADE_HERE}{system if frame.empty_system else ''}{{% set text %}}{template}{{% endset"
        f" %}}{end}{{{{ text }}}}"
    )


def on_a_fixed_day(template: str) -> str:
    """The template, in which it is always the same day."""
    return (
        FIXED_DAY + template
        if "strftime_now" in template and FIXED_DAY not in template
        else template
    )


class Conversation(NamedTuple):
    """The text of one prompt and one response, ending with the end token; offsets are in
    characters."""

    text: str
    prompt_start: int
    """Where the first message's own words begin, after the template's opening."""
    prompt_end: int
    """Where the response begins."""
    response_end: int
    """Where the template's closing begins."""
    prompt_words: tuple[tuple[int, int], ...] = ()
    """Where the own words of the prompt's messages stand, between the template's."""
    literal: tuple[tuple[int, int], ...] = ()
    """Where people wrote what looks like a special token, such as `<|im_end|>`: it is text, not a
    turn's end."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    responses: Sequence[str],
    *,
    frame: Frame,
) -> list[Conversation]:
    """One prompt with each of its responses, in order, in the tokenizer's own template and the
    model's frame.

    Raises:
        CheckpointError: If the tokenizer has no chat template, or lacks the frame's end token.
        ChangedError: If the template changes the words of a response.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; save one with it"
        )
    special = _special(tuple(sorted(tokenizer.get_added_vocab())))
    if frame.end_token is not None and not special.fullmatch(frame.end_token):
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no token {frame.end_token!r} to end a"
            " text with"
        )
    turns = [asdict(message) for message in prompt]
    if frame.empty_system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": ""})
    opened = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    asked = any(special.search(turn["content"]) for turn in turns)
    conversations = []
    for response in responses:
        whole = [*turns, {"role": "assistant", "content": response}]
        apart = asked or special.search(response)
        conversations.append(
            _render_apart(tokenizer, whole, frame, special)
            if apart
            else _render(tokenizer, whole, opened, frame)
        )
    return conversations


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], opened: str, frame: Frame
) -> Conversation:
    """A conversation; `opened` is the text of its prompt, up to where a response would begin."""
    whole = close(str(tokenizer.apply_chat_template(turns, tokenize=False)), frame)
    prompt_end = common_prefix([opened, whole])
    *prompt, words = (turn["content"].strip() for turn in turns)
    response_end = whole.find(words, prompt_end) + len(words) if words else prompt_end
    if response_end < prompt_end + len(words):
        raise ChangedError(
            "the model's chat template changes the words of a response; it cannot be read as it was"
            " written"
        )
    spans = _spans(whole[:prompt_end], prompt)
    return Conversation(
        whole, spans[0][0] if spans else prompt_end, prompt_end, response_end, tuple(spans)
    )


def close(text: str, frame: Frame) -> str:
    """A rendered text with its end token last, as the model reads it; nothing is added where the
    frame has none."""
    if frame.end_token is None:
        return text
    text = text.rstrip()
    return text if text.endswith(frame.end_token) else text + frame.end_token


def _render_apart(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    frame: Frame,
    special: re.Pattern[str],
) -> Conversation:
    """A conversation in which people wrote special tokens: the template is filled with marks, and
    the marks with the words."""
    marked = [
        {**message, "content": f"{MARK}{number}{MARK}"} for number, message in enumerate(messages)
    ]
    pieces = close(str(tokenizer.apply_chat_template(marked, tokenize=False)), frame).split(MARK)
    text, spans = "", []
    for number, piece in enumerate(pieces):
        words = messages[int(piece)]["content"] if number % 2 else piece
        if number % 2:
            spans.append((len(text), len(text) + len(words)))
        text += words
    literal = tuple(match.span() for span in spans for match in special.finditer(text, *span))
    start = next((begin for begin, end in spans if end > begin), spans[-1][0])
    return Conversation(text, start, *spans[-1], tuple(spans[:-1]), literal)


@lru_cache(maxsize=8)
def _special(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Matches every token that the tokenizer takes whole out of a text."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _spans(rendered: str, contents: Sequence[str]) -> list[tuple[int, int]]:
    """Where the messages' own words stand, in order, white space around them left out; a message
    without words, or one that the template changed, has no place."""
    spans, start = [], 0
    for words in filter(None, contents):
        # the first occurrence after a line end: `user` stands in the template too
        place = rendered.find(f"\n{words}", start) + 1 or rendered.find(words, start)
        if place >= 0:
            spans.append((place, place + len(words)))
            start = place + len(words)
    return spans


def common_prefix(sequences: Sequence[Sequence[object]]) -> int:
    """How many leading elements all sequences share; they may be texts or lists of token ids."""
    first, *others = sequences
    low, high = 0, min(map(len, sequences))
    while low < high:  # slices are compared in one go, elements one by one
        middle = (low + high + 1) // 2
        if all(other[low:middle] == first[low:middle] for other in others):
            low = middle
        else:
            high = middle - 1
    return low


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 16 hex digits of the template's SHA-256, to print beside every result."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
