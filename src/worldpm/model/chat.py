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
"""Noncharacters, which Unicode reserves for use inside programs."""
TEMPLATE_ERRORS = (
    *(TemplateError, ArithmeticError, AttributeError),
    *(LookupError, TypeError, ValueError, RecursionError, SyntaxError),
)
"""Errors of a template: it is a program, and unexpected input can raise any of these."""

Turn = Mapping[str, Any]
"""A message in the form that templates read."""
Span = tuple[int, int]
"""Start and end, in characters."""

MADE_HERE = "{# with the frame of WorldPM #}"
"""First characters of the templates that `standing_alone` makes."""
FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""The day that templates of the Llama 3.2 kind fall back to."""
TURN_START, TURN_END, PAD_TOKEN = "<|im_start|>", "<|im_end|>", "<|pad|>"

DEFAULT_NAME = "default"
"""Name of the template that is used if a tokenizer has several."""
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
"""Each turn as its speaker and its text: `User: How?`, an empty line, `Assistant: So.`"""
TEMPLATES = {"plain": PLAIN_TEMPLATE, "chatml": QWEN_TEMPLATE}
"""Templates that users can choose by name, for tokenizers without one."""
ROLES_OF_SCORES = """{%- set ns = namespace(turns=[]) -%}
{%- for message in messages -%}
{%- set role = {"query": "user", "document": "assistant"}.get(message.role, message.role) -%}
{%- set ns.turns = ns.turns + [dict(message, role=role)] -%}
{%- endfor -%}
{%- set messages = ns.turns -%}
"""
"""Beginning of a template for vLLM's `/score` and `/rerank`, which send these roles."""


class RefusalError(Exception):
    """A conversation that a chat template rejects, or whose response it leaves out."""


class Frame(NamedTuple):
    """Text that a model needs around the template's text."""

    end_token: str | None = END_TOKEN
    """Appended in place of trailing white space, unless it is already last; None leaves the
    template's text unchanged."""
    empty_system: bool = True
    """Whether a prompt without a system turn gets an empty one, so that the template adds no system
    message by default."""


UNFRAMED = Frame(end_token=None, empty_system=False)
"""The frame of other authors' reward models: they are trained on the template's text and read at
its last token."""


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The frame for training a model: that of the released WorldPM if the tokenizer has its tokens.

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
            f"{tokenizer.name_or_path}: the tokenizer has no end token. Set its eos_token."
        )
    return Frame(str(end_token), TURN_START in str(tokenizer.chat_template))


def template_of(
    tokenizer: PreTrainedTokenizerBase, asked: str | None, name: str | None
) -> str | None:
    """The template to use: `asked`, which is a name in TEMPLATES or a file, or else the tokenizer's
    template, which may be one of several by `name`. None if the tokenizer has none.

    Raises:
        ConfigError: If the file or the name does not exist.
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
            f"--chat-template {asked}: not a readable template ({first_line(error)}). Name a file,"
            f" or one of {', '.join(TEMPLATES)}."
        ) from error


def _named(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | None:
    """The tokenizer's template of this name; a single template has the name `default`."""
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

    A template that this function made is returned unchanged. A template that asks for the current
    day gets a fixed day, so that rewards do not depend on the day.
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
"""Templates of this project, which need no trial."""


class Conversation(NamedTuple):
    """The text of one prompt and one response, ending with the end token; offsets are in
    characters."""

    text: str
    prompt_start: int
    """Start of the first message's text, after the template's opening."""
    prompt_end: int
    """Start of the response."""
    response_end: int
    """Start of the template's closing."""
    prompt_words: tuple[Span, ...] = ()
    """The text of each prompt message, without the template's; messages that are empty, or that the
    template changed, are left out."""
    literal: tuple[Span, ...] = ()
    """Parts of people's texts that look like special tokens, such as `<|im_end|>`. They are text
    and do not end a turn."""


class _Layout(NamedTuple):
    """The template's text around a response, the same for each response to a prompt."""

    head: str
    """Up to the response."""
    tail: str
    """After the response."""
    spans: tuple[Span, ...]
    """The texts of the prompt's messages in the head."""
    is_whole: bool
    """Whether `spans` has the text of every message."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    responses: Sequence[str],
    *,
    frame: Frame,
    last: Message = ASSISTANT,
) -> list[Conversation]:
    """Render one prompt with each of its responses, in order, by the tokenizer's template in the
    model's frame. A response becomes the content of the turn `last`, which may have tool calls.

    Raises:
        CheckpointError: If the tokenizer has no chat template, or lacks the frame's end token.
        RefusalError: If the template rejects the conversation, leaves the response out, or makes a
            text far longer than its messages.
    """
    special = _special_tokens(tokenizer, frame)
    for message in (*prompt, last):
        # templates format these keys in different ways, so that marks could not locate the token
        if token := special.search(message.more):
            raise RefusalError(
                f"a tool call or another key of a message contains {token[0]!r}. Remove it."
            )

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
    """Whether it reads a message as a list of parts, like templates of models with images."""

    def fill(self, turns: Sequence[Turn]) -> str:
        """The text of a whole conversation, without the frame's end token.

        Raises:
            RefusalError: If the template rejects it, or writes far more text than the messages.
        """
        dialogue = [dict(turn) for turn in turns]
        if self.in_parts:
            for turn in dialogue:
                turn["content"] = [{"type": "text", "text": turn["content"]}]

        try:
            text = str(self.tokenizer.apply_chat_template(dialogue, tokenize=False))
        except TEMPLATE_ERRORS as error:
            raise RefusalError(
                f"the chat template rejects it ({first_line(error)}). Use the roles and the order"
                " of turns that the model expects."
            ) from error

        most = LARGEST_GROWTH * (ALWAYS_FILLED + sum(map(len, map(str, turns))))
        if len(text) > most:
            raise RefusalError(
                f"the chat template turns it into {len(text):,} characters. Fix the template."
            )
        return text

    def close(self, prompt: Sequence[Turn], dialogue: Sequence[Turn]) -> str:
        """The text of a prompt's dialogue, with its end token."""
        end, text = self.frame.end_token, self.fill(dialogue)
        if end is None or not text.rstrip().endswith(end):
            return close(text, self.frame)

        # an end token at the end of a person's text is text, and the frame's must follow it
        ends_in_words = dialogue[-1]["content"].rstrip().endswith(end)
        probe = [*prompt, {"role": "assistant", "content": "x"}]
        if ends_in_words and not self.fill(probe).rstrip().endswith(end):
            return text.rstrip() + end
        return text.rstrip()

    def pieces(self, turns: Sequence[Turn], mark: str) -> list[str]:
        """The text between marks; empty if the template rejects the conversation with marks."""
        try:
            return close(self.fill(turns), self.frame).split(mark)
        except RefusalError:
            return []


def _layout(template: _Template, turns: Sequence[Turn]) -> tuple[_Template, _Layout]:
    """The text around any response to a prompt, and the template in the form that reads messages.

    Raises:
        RefusalError: If the template rejects the prompt, or leaves the response out.
    """
    mark = _unused_mark(_contents(turns))
    probe = {"role": "assistant", "content": f"{mark}x{mark}"}

    # put marks around the text of every message, inside white space that a template may drop
    marked = [{**turn, "content": _marked(turn["content"], mark)} for turn in turns]
    texts = [content.strip() for content in _contents(turns) if content.strip()]
    pieces = template.pieces([*marked, probe], mark)
    if pieces[1::2] == [*texts, "x"]:
        *before, _, tail = pieces
        ends = list(accumulate(map(len, before)))
        return template, _Layout("".join(before), tail, tuple(pairwise(ends))[::2], is_whole=True)

    # the template depends on how a message begins or ends, so mark only the response
    pieces = template.pieces([*turns, probe], mark)
    if len(pieces) > 1:
        head, *_, tail = pieces
        return template, _Layout(head, tail, tuple(_find(head, texts)), is_whole=False)

    if not template.in_parts:
        with suppress(RefusalError):
            return _layout(replace(template, in_parts=True), turns)
    # raises the template's reason, if it gives one
    template.fill([*turns, probe])
    raise RefusalError("the chat template leaves the response out. Use another template.")


def _unused_mark(contents: Sequence[str]) -> str:
    """A noncharacter that no content has."""
    used = set().union(*contents)
    for mark in MARKS:
        if mark not in used:
            return mark
    raise RefusalError("its texts contain all noncharacters of Unicode. Remove them.")


def _marked(content: str, mark: str) -> str:
    """The content with marks around its text, inside white space."""
    text = content.strip()
    if not text:
        return content
    start = content.index(text)
    return f"{content[:start]}{mark}{text}{mark}{content[start + len(text) :]}"


def _conversation(text: str, response: str, layout: _Layout) -> Conversation:
    """A conversation with the spans of its messages' texts."""
    head, tail, spans, _ = layout
    prompt_start = spans[0][0] if spans else len(head)

    # templates may drop white space around messages
    forms = (response, response.strip(), response.rstrip(), response.lstrip())
    if any(text == head + form + tail for form in forms):
        return Conversation(text, prompt_start, len(head), len(text) - len(tail), spans)

    # the template moved or changed part of the response, such as its thinking
    prompt_end = common_prefix([head, text])
    rest = text[prompt_end:]
    response_end = len(text) - common_prefix([tail[::-1], rest[::-1]])
    known = tuple(span for span in spans if span[1] <= prompt_end)
    return Conversation(text, min(prompt_start, prompt_end), prompt_end, response_end, known)


def _literal(
    template: _Template,
    turns: Sequence[Turn],
    conversation: Conversation,
    layout: _Layout,
    special: re.Pattern[str],
) -> tuple[Span, ...]:
    """The spans of people's texts that look like special tokens."""
    text, _, prompt_end, response_end, prompt_spans, _ = conversation
    is_as_written = text[prompt_end:response_end].strip() == turns[-1]["content"].strip()
    if layout.is_whole and is_as_written and len(prompt_spans) == len(layout.spans):
        spans = [*prompt_spans, (prompt_end, response_end)]
        return tuple(match.span() for span in spans for match in special.finditer(text, *span))

    literal: set[Span] = set()
    for number, content in enumerate(_contents(turns)):
        for token in {match[0] for match in special.finditer(content)}:
            places = _places_of(token, number, template, turns)
            # a template that searches texts for a token, such as `</think>`, decides whether it is
            # text; it must not decide this for a token that begins or ends texts
            if places is None and token in _ends(template):
                raise RefusalError(
                    f"a text contains {token!r}, which the chat template searches for. Remove it."
                )
            literal.update(places or ())
    return tuple(sorted(literal))


def _ends(template: _Template) -> tuple[object, ...]:
    tokenizer = template.tokenizer
    return tokenizer.eos_token, tokenizer.bos_token, template.frame.end_token


def _places_of(
    token: str, turn: int, template: _Template, turns: Sequence[Turn]
) -> list[Span] | None:
    """Spans of a special token in the text of one turn; None if the template searches the text for
    the token."""
    contents = _contents(turns)
    mark = _unused_mark(contents)
    marked = [dict(other) for other in turns]
    marked[turn]["content"] = contents[turn].replace(token, token[:-1] + mark + token[-1])
    try:
        pieces = template.fill(marked).split(mark)
    except RefusalError:
        return None

    # compare without the frame's end token, because only one of both may seem to have it already
    if "".join(pieces) != template.fill(turns):
        return None
    ends = [end + 1 for end in accumulate(map(len, pieces[:-1]))]
    return [(end - len(token), end) for end in ends]


def _special_tokens(tokenizer: PreTrainedTokenizerBase, frame: Frame) -> re.Pattern[str]:
    """A pattern of the tokenizer's special tokens, after a check of template and end token.

    Added tokens that are not special, such as `<think>`, are ordinary text to a model.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template. Name one with"
            " --chat-template: plain, chatml, or a file."
        )

    special = any_of(special_tokens(tokenizer))
    if frame.end_token is not None and frame.end_token not in tokenizer.get_added_vocab():
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the tokenizer lacks the end token {frame.end_token!r}."
            " Restore the tokenizer's files."
        )
    return special


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens that people's texts must not produce, sorted: special tokens, except pairs of tags
    such as `<think>` and `</think>`, which models write themselves."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token}
    openings = {token for token in special - named if f"</{token[1:]}" in special}
    closings = {f"</{token[1:]}" for token in openings}
    return tuple(sorted(special - openings - closings))


def close(text: str, frame: Frame) -> str:
    """A rendered text with the end token last, as the model reads it; unchanged if the frame has no
    end token."""
    if frame.end_token is None:
        return text
    text = text.rstrip()
    return text if text.endswith(frame.end_token) else text + frame.end_token


@lru_cache(maxsize=8)
def any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern of the tokens, longest first; without tokens it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _find(rendered: str, contents: Sequence[str]) -> list[Span]:
    """The spans of the messages' texts, in order; texts that the template changed are left out."""
    spans, start = [], 0
    for content in contents:
        # prefer an occurrence after a line end: the template contains words such as `user` too
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

    # bisection compares slices, which is faster than comparing elements one by one
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


def score_template(tokenizer: PreTrainedTokenizerBase, frame: Frame) -> str | None:
    """Our template for engines that send a prompt as `query` and a response as `document`; None if
    the template is not ours, or if engines, which add special tokens, would read other tokens."""
    if MADE_HERE not in str(tokenizer.chat_template):
        return None

    template = f"{ROLES_OF_SCORES}{tokenizer.chat_template}"
    pair = [{"role": "query", "content": "a"}, {"role": "document", "content": "b"}]
    text = tokenizer.apply_chat_template(pair, chat_template=template, tokenize=False)
    (conversation,) = render(tokenizer, [Message("user", "a")], ["b"], frame=frame)
    ids = tokenizer(conversation.text, add_special_tokens=False)["input_ids"]
    return template if tokenizer(text)["input_ids"] == ids else None
