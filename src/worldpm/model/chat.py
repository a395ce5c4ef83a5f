"""Conversations as text: the only code that fills chat templates.

A prompt and its response as the released WorldPM reads them:

    <|im_start|>system
    <|im_end|>
    <|im_start|>user
    How?<|im_end|>
    <|im_start|>assistant
    So.<|im_end|><|endoftext|>
"""

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
"""A noncharacter, which texts may not contain."""
MADE_HERE = "{# with the frame of WorldPM #}"
"""First characters of the templates that `standing_alone` makes."""
FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""The day that templates of the Llama 3.2 kind fall back to."""
TURN_START, TURN_END, PAD_TOKEN = "<|im_start|>", "<|im_end|>", "<|pad|>"

EMPTY_SYSTEM_TURN = (
    "{% if messages[0].role != 'system' %}{% set messages = [{'role': 'system', 'content': ''}] +"
    " messages %}{% endif %}"
)
"""Template code that puts an empty system turn before a conversation without one."""

QWEN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n<|im_end|>\n{% endif %}{% for message"
    " in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{%"
    " if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's chat format with its empty system turn, as the released WorldPM checkpoints read it."""


class ChangedError(Exception):
    """A chat template changed the words of a response."""


class Frame(NamedTuple):
    """Text around the template's, for one model."""

    end_token: str | None = END_TOKEN
    """Appended after white space is dropped, unless it is already last; None leaves the template's
    text unchanged."""
    empty_system: bool = True
    """Whether a prompt without a system turn gets an empty one, so that the template adds no system
    message by default."""


UNFRAMED = Frame(end_token=None, empty_system=False)
"""The frame of other authors' reward models: they trained on the template's text and its last
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

    end_token = END_TOKEN if END_TOKEN in tokenizer.get_added_vocab() else tokenizer.eos_token
    if end_token is None:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no end token; set its eos_token"
        )
    return Frame(str(end_token), TURN_START in str(tokenizer.chat_template))


def standing_alone(template: str, frame: Frame) -> str:
    """The template with the frame inside it: any program that fills it gets the text that the model
    was trained on.

    A template that this function made comes back unchanged. A template that asks for the day gets a
    fixed one, or rewards would depend on the day.
    """
    if MADE_HERE in template:
        return template

    template = on_a_fixed_day(template)
    if frame == UNFRAMED:
        return template

    system = EMPTY_SYSTEM_TURN if frame.empty_system else ""
    end = "" if frame.end_token is None else _end_code(frame.end_token)
    return f"{MADE_HERE}{system}{{% set text %}}{template}{{% endset %}}{end}{{{{ text }}}}"


def _end_code(end_token: str) -> str:
    """Template code that does to `text` what `close` does."""
    return (
        "{% if not add_generation_prompt %}{% set text = text.rstrip() %}{% if not"
        f" text.endswith('{end_token}') %}}{{% set text = text + '{end_token}'"
        " %}{% endif %}{% endif %}"
    )


def on_a_fixed_day(template: str) -> str:
    """The template with a fixed day in place of today."""
    if "strftime_now" in template and FIXED_DAY not in template:
        return FIXED_DAY + template
    return template


class Conversation(NamedTuple):
    """The text of one prompt and one response, ending with the end token; offsets are in
    characters."""

    text: str
    prompt_start: int
    """Start of the first message's words, after the template's opening."""
    prompt_end: int
    """Start of the response."""
    response_end: int
    """Start of the template's closing."""
    prompt_words: tuple[tuple[int, int], ...] = ()
    """Start and end of the words of each prompt message, without the template's."""
    literal: tuple[tuple[int, int], ...] = ()
    """Start and end of what looks like a special token in people's words, such as `<|im_end|>`: it
    is text, not a turn's end."""


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
    special = _special_tokens(tokenizer, frame)
    turns = [asdict(message) for message in prompt]
    if frame.empty_system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": ""})
    opened = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    is_plain = not any(special.search(turn["content"]) for turn in turns)

    conversations = []
    for response in responses:
        dialogue = [*turns, {"role": "assistant", "content": response}]
        if is_plain and not special.search(response):
            conversations.append(_render(tokenizer, dialogue, opened, frame))
        else:
            conversations.append(_render_marked(tokenizer, dialogue, frame, special))
    return conversations


def _special_tokens(tokenizer: PreTrainedTokenizerBase, frame: Frame) -> re.Pattern[str]:
    """Matches the tokenizer's special tokens, after a check of template and end token."""
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; save one with it"
        )

    special = _any_of(tuple(sorted(tokenizer.get_added_vocab())))
    if frame.end_token is not None and not special.fullmatch(frame.end_token):
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no token {frame.end_token!r} to end a"
            " text with"
        )
    return special


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], opened: str, frame: Frame
) -> Conversation:
    """A conversation; `opened` is the text of its prompt, up to the start of a response."""
    text = close(str(tokenizer.apply_chat_template(turns, tokenize=False)), frame)
    prompt_end = common_prefix([opened, text])

    # templates drop white space around messages
    *prompt, response = (turn["content"].strip() for turn in turns)
    response_end = text.find(response, prompt_end) + len(response) if response else prompt_end
    # `find` returns -1 if the text lacks the response
    if response_end < prompt_end + len(response):
        raise ChangedError(
            "the model's chat template changes the words of a response; it cannot be read as it was"
            " written"
        )

    spans = _spans(text[:prompt_end], prompt)
    return Conversation(
        text,
        prompt_start=spans[0][0] if spans else prompt_end,
        prompt_end=prompt_end,
        response_end=response_end,
        prompt_words=tuple(spans),
    )


def close(text: str, frame: Frame) -> str:
    """A rendered text with its end token last, as the model reads it; unchanged where the frame has
    none."""
    if frame.end_token is None:
        return text
    text = text.rstrip()
    return text if text.endswith(frame.end_token) else text + frame.end_token


def _render_marked(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    frame: Frame,
    special: re.Pattern[str],
) -> Conversation:
    """A conversation in which people wrote special tokens: numbered marks are put into the
    template, and then replaced by the messages."""
    # marks show where each message begins and ends, whatever its words
    marked = [
        {**message, "content": f"{MARK}{number}{MARK}"} for number, message in enumerate(messages)
    ]
    pieces = close(str(tokenizer.apply_chat_template(marked, tokenize=False)), frame).split(MARK)

    text, spans = "", []
    for index, piece in enumerate(pieces):
        # pieces at odd indices are numbers of messages, the others are the template's
        if index % 2:
            content = messages[int(piece)]["content"]
            spans.append((len(text), len(text) + len(content)))
            text += content
        else:
            text += piece

    *prompt, (prompt_end, response_end) = spans
    return Conversation(
        text,
        prompt_start=next((start for start, end in spans if end > start), prompt_end),
        prompt_end=prompt_end,
        response_end=response_end,
        prompt_words=tuple(prompt),
        literal=tuple(match.span() for span in spans for match in special.finditer(text, *span)),
    )


@lru_cache(maxsize=8)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Matches each of the tokens, the longest first; without tokens it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _spans(rendered: str, contents: Sequence[str]) -> list[tuple[int, int]]:
    """Start and end of the words of each message, in order, without white space around them;
    messages without words, or changed by the template, are left out."""
    spans, start = [], 0
    for content in filter(None, contents):
        # the first occurrence after a line end: `user` is a word of the template too
        first = rendered.find(f"\n{content}", start) + 1 or rendered.find(content, start)
        if first >= 0:
            spans.append((first, first + len(content)))
            start = first + len(content)
    return spans


def common_prefix(sequences: Sequence[Sequence[object]]) -> int:
    """Number of leading elements that all sequences share; they may be texts or lists of token
    ids."""
    first, *rest = sequences
    low, high = 0, min(map(len, sequences))

    # bisection, because slices are compared in one go and elements one by one
    while low < high:
        middle = (low + high + 1) // 2
        if all(sequence[low:middle] == first[low:middle] for sequence in rest):
            low = middle
        else:
            high = middle - 1
    return low


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 16 hex digits of the template's SHA-256, to print beside every result."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
