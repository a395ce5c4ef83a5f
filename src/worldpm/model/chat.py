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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from worldpm.errors import CheckpointError, ConfigError, first_line
from worldpm.model.template_trial import ALWAYS_FILLED, LARGEST_GROWTH, fault_of
from worldpm.records import ASSISTANT, Message

END_TOKEN = "<|endoftext|>"
MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Noncharacters: Unicode keeps them for a program's own use."""
TEMPLATE_ERRORS = (
    *(TemplateError, ArithmeticError, AttributeError),
    *(LookupError, TypeError, ValueError, RecursionError, SyntaxError),
)
"""Errors of a template: it is a program, and unexpected input can raise any of these."""

Turn = Mapping[str, Any]
"""A message as templates read it."""
Span = tuple[int, int]
"""Start and end, in characters."""

MADE_HERE = "{# with the frame of WorldPM #}"
"""First characters of the templates that `standing_alone` makes."""
FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""The day that templates of the Llama 3.2 kind fall back to."""
TURN_START, TURN_END, PAD_TOKEN = "<|im_start|>", "<|im_end|>", "<|pad|>"

DEFAULT_NAME = "default"
"""Name of the template that is taken of several."""
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
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Each turn as its speaker and its words: `User: How?`, an empty line, `Assistant: So.`"""
TEMPLATES = {"plain": PLAIN_TEMPLATE, "chatml": QWEN_TEMPLATE}
"""Templates that can be asked for by name, for tokenizers without one."""


class RefusalError(Exception):
    """A chat template refuses a conversation, or leaves the response out."""


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
            f"{tokenizer.name_or_path}: the tokenizer has no chat template. Name one with"
            " --chat-template: plain, chatml, or a file."
        )

    end_token = END_TOKEN if END_TOKEN in tokenizer.get_added_vocab() else tokenizer.eos_token
    if end_token is None:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no end token; set its eos_token"
        )
    return Frame(str(end_token), TURN_START in str(tokenizer.chat_template))


def template_of(
    tokenizer: PreTrainedTokenizerBase, asked: str | None, name: str | None
) -> str | None:
    """The template to read with: the one that was asked for, by one of TEMPLATES or as a file, or
    else the tokenizer's, which may have several by name. None if it has none.

    Raises:
        ConfigError: If there is no such file or name.
        CheckpointError: If the template runs too long or writes too much.
    """
    template = _named(tokenizer, name) if asked is None else _read(asked)
    if template is None or template in TRUSTED:
        return template
    if fault := fault_of(template):
        raise CheckpointError(
            f"{tokenizer.name_or_path}: its chat template is not safe to fill: {fault}. Name"
            " another with --chat-template."
        )
    return template


def _read(asked: str) -> str:
    if asked in TEMPLATES:
        return TEMPLATES[asked]
    try:
        return Path(asked).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--chat-template {asked}: not a template that can be read ({first_line(error)}). Name"
            f" a file, or one of {', '.join(TEMPLATES)}."
        ) from error


def _named(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | None:
    """The tokenizer's template of a name; `default` is also that of one template alone."""
    templates = tokenizer.chat_template or {}
    if isinstance(templates, str):
        templates = {DEFAULT_NAME: templates}
    if name is None and not templates:
        return None

    template = templates.get(name or DEFAULT_NAME)
    if template is None:
        names = ", ".join(templates) or "none"
        raise ConfigError(
            f"--template-name {name or DEFAULT_NAME}: {tokenizer.name_or_path} has no such chat"
            f" template. It has {names}."
        )
    return str(template)


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


TRUSTED = (PLAIN_TEMPLATE, QWEN_TEMPLATE, standing_alone(QWEN_TEMPLATE, Frame()))
"""Templates of our own, which need no trial."""


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
    prompt_words: tuple[Span, ...] = ()
    """The words of each prompt message, without the template's; messages without words, or changed
    by the template, are left out."""
    literal: tuple[Span, ...] = ()
    """What looks like a special token in people's words, such as `<|im_end|>`: it is text, not a
    turn's end."""


class _Layout(NamedTuple):
    """The template's text around a response, the same for each response to a prompt."""

    head: str
    """Up to the response."""
    tail: str
    """After the response."""
    words: tuple[Span, ...]
    """The words of the prompt's messages in the head."""
    is_whole: bool
    """Whether `words` has those of every message."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    responses: Sequence[str],
    *,
    frame: Frame,
    last: Message = ASSISTANT,
) -> list[Conversation]:
    """One prompt with each of its responses, in order: the text that the tokenizer's own template
    gives, in the model's frame. A response is the content of the turn `last`, which may have tool
    calls.

    Raises:
        CheckpointError: If the tokenizer has no chat template, or lacks the frame's end token.
        RefusalError: If the template refuses the conversation, leaves the response out, or makes a
            text far longer than its messages.
    """
    special = _special_tokens(tokenizer, frame)
    for message in (*prompt, last):
        # templates write these keys in ways of their own, so that no mark could find the token
        if token := special.search(message.more):
            raise RefusalError(f"a tool call or another key of a message holds {token[0]!r}.")

    turns = [message.turn() for message in prompt]
    if frame.empty_system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": ""})
    template, layout = _layout(_Template(tokenizer, frame), turns)

    conversations = []
    for response in responses:
        dialogue = [*turns, {**last.turn(), "content": response}]
        conversation = _conversation(template.close(turns, dialogue), response, layout)
        if special.search("\0".join(_contents(dialogue))):
            literal = _literal(template, dialogue, conversation, layout, special)
            conversation = conversation._replace(literal=literal)
        conversations.append(conversation)
    return conversations


def _contents(turns: Sequence[Turn]) -> list[str]:
    return [turn["content"] for turn in turns]


@dataclass(frozen=True)
class _Template:
    """A tokenizer's chat template in a model's frame."""

    tokenizer: PreTrainedTokenizerBase
    frame: Frame
    in_parts: bool = False
    """Whether it takes a message as a list of parts, as templates of models with images do."""

    def fill(self, turns: Sequence[Turn]) -> str:
        """The text of a whole conversation, before the frame ends it.

        Raises:
            RefusalError: If the template refuses it, or writes far more than the messages hold.
        """
        dialogue = [dict(turn) for turn in turns]
        if self.in_parts:
            for turn in dialogue:
                turn["content"] = [{"type": "text", "text": turn["content"]}]

        try:
            text = str(self.tokenizer.apply_chat_template(dialogue, tokenize=False))
        except TEMPLATE_ERRORS as error:
            raise RefusalError(
                f"the chat template refuses it ({first_line(error)}). Its roles or their order are"
                " not the model's."
            ) from error

        most = LARGEST_GROWTH * (ALWAYS_FILLED + sum(map(len, map(str, turns))))
        if len(text) > most:
            raise RefusalError(f"the chat template makes {len(text):,} characters of it. Mend it.")
        return text

    def close(self, prompt: Sequence[Turn], dialogue: Sequence[Turn]) -> str:
        """The text of a prompt's dialogue, with its end token."""
        end, text = self.frame.end_token, self.fill(dialogue)
        if end is None or not text.rstrip().endswith(end):
            return close(text, self.frame)

        # an end token that people wrote last is text, and ends nothing
        ends_in_words = dialogue[-1]["content"].rstrip().endswith(end)
        probe = [*prompt, {"role": "assistant", "content": "x"}]
        if ends_in_words and not self.fill(probe).rstrip().endswith(end):
            return text.rstrip() + end
        return text.rstrip()

    def pieces(self, turns: Sequence[Turn], mark: str) -> list[str]:
        """The text between marks; empty if the template refuses the conversation with marks."""
        try:
            return close(self.fill(turns), self.frame).split(mark)
        except RefusalError:
            return []


def _layout(template: _Template, turns: Sequence[Turn]) -> tuple[_Template, _Layout]:
    """The text around any response to a prompt, and the template as it takes messages.

    Raises:
        RefusalError: If the template refuses the prompt, or leaves the response out.
    """
    mark = _unused_mark(_contents(turns))
    probe = {"role": "assistant", "content": f"{mark}x{mark}"}

    # marks around the words of every message, inside white space that a template may drop
    marked = [{**turn, "content": _around_words(turn["content"], mark)} for turn in turns]
    words = [content.strip() for content in _contents(turns) if content.strip()]
    pieces = template.pieces([*marked, probe], mark)
    if pieces[1::2] == [*words, "x"]:
        *before, _, tail = pieces
        ends = list(accumulate(map(len, before)))
        return template, _Layout("".join(before), tail, tuple(pairwise(ends))[::2], is_whole=True)

    # the template looks at how a message begins or ends: only the response is marked
    pieces = template.pieces([*turns, probe], mark)
    if len(pieces) > 1:
        head, *_, tail = pieces
        return template, _Layout(head, tail, tuple(_find(head, words)), is_whole=False)

    if not template.in_parts:
        with suppress(RefusalError):
            return _layout(replace(template, in_parts=True), turns)
    # the reason, if the template gives one
    template.fill([*turns, probe])
    raise RefusalError("the chat template leaves the response out. Take another template.")


def _unused_mark(contents: Sequence[str]) -> str:
    """A noncharacter that no content has."""
    used = set().union(*contents)
    for mark in MARKS:
        if mark not in used:
            return mark
    raise RefusalError("its texts hold all noncharacters of Unicode. Take them out.")


def _around_words(content: str, mark: str) -> str:
    words = content.strip()
    if not words:
        return content
    start = content.index(words)
    return f"{content[:start]}{mark}{words}{mark}{content[start + len(words) :]}"


def _conversation(text: str, response: str, layout: _Layout) -> Conversation:
    """A conversation with the places of its words."""
    head, tail, words, _ = layout
    prompt_start = words[0][0] if words else len(head)

    # templates drop white space around messages, or do not
    forms = (response, response.strip(), response.rstrip(), response.lstrip())
    if any(text == head + form + tail for form in forms):
        return Conversation(text, prompt_start, len(head), len(text) - len(tail), words)

    # the template moved or changed a part of the response, such as its thinking
    prompt_end = common_prefix([head, text])
    rest = text[prompt_end:]
    response_end = len(text) - common_prefix([tail[::-1], rest[::-1]])
    known = tuple(span for span in words if span[1] <= prompt_end)
    return Conversation(text, min(prompt_start, prompt_end), prompt_end, response_end, known)


def _literal(
    template: _Template,
    turns: Sequence[Turn],
    conversation: Conversation,
    layout: _Layout,
    special: re.Pattern[str],
) -> tuple[Span, ...]:
    """What looks like a special token in people's words."""
    text, _, prompt_end, response_end, words, _ = conversation
    is_as_written = text[prompt_end:response_end].strip() == turns[-1]["content"].strip()
    if layout.is_whole and is_as_written and len(words) == len(layout.words):
        spans = [*words, (prompt_end, response_end)]
        return tuple(match.span() for span in spans for match in special.finditer(text, *span))

    found: set[Span] = set()
    for number, content in enumerate(_contents(turns)):
        for token in {match[0] for match in special.finditer(content)}:
            places = _places_of(token, number, template, turns)
            # a template that searches texts for the token, as for `</think>`, decides what it is;
            # a token that ends texts is never left to it
            if places is None and token in _ends(template):
                raise RefusalError(f"a text has {token!r}, which the chat template looks for.")
            found.update(places or ())
    return tuple(sorted(found))


def _ends(template: _Template) -> tuple[object, ...]:
    tokenizer = template.tokenizer
    return tokenizer.eos_token, tokenizer.bos_token, template.frame.end_token


def _places_of(
    token: str, turn: int, template: _Template, turns: Sequence[Turn]
) -> list[Span] | None:
    """Spans of a special token that the words of one turn contain; None if the template searches
    the words for it."""
    contents = _contents(turns)
    mark = _unused_mark(contents)
    marked = [dict(other) for other in turns]
    marked[turn]["content"] = contents[turn].replace(token, token[:-1] + mark + token[-1])
    try:
        pieces = template.fill(marked).split(mark)
    except RefusalError:
        return None

    # before the frame ends them: one may seem to end with a token of the words
    if "".join(pieces) != template.fill(turns):
        return None
    ends = [end + 1 for end in accumulate(map(len, pieces[:-1]))]
    return [(end - len(token), end) for end in ends]


def _special_tokens(tokenizer: PreTrainedTokenizerBase, frame: Frame) -> re.Pattern[str]:
    """Matches the tokenizer's special tokens, after a check of template and end token.

    Added tokens that are not special, such as `<think>`, are words of a model's language.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template. Name one with"
            " --chat-template: plain, chatml, or a file."
        )

    special = any_of(special_tokens(tokenizer))
    if frame.end_token is not None and frame.end_token not in tokenizer.get_added_vocab():
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no token {frame.end_token!r} to end a"
            " text with"
        )
    return special


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens that no text of people may hold as tokens, sorted: those marked as special, but
    for pairs of tags such as `<think>` and `</think>`, which models write themselves."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token}
    openings = {token for token in special - named if f"</{token[1:]}" in special}
    closings = {f"</{token[1:]}" for token in openings}
    return tuple(sorted(special - openings - closings))


def close(text: str, frame: Frame) -> str:
    """A rendered text with its end token last, as the model reads it; unchanged where the frame has
    none."""
    if frame.end_token is None:
        return text
    text = text.rstrip()
    return text if text.endswith(frame.end_token) else text + frame.end_token


@lru_cache(maxsize=8)
def any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Matches each of the tokens, the longest first; without tokens it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _find(rendered: str, contents: Sequence[str]) -> list[Span]:
    """The words of each message, in order; those that the template changed are left out."""
    spans, start = [], 0
    for content in contents:
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
