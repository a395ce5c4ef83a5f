"""The only code that touches a chat template: a conversation becomes the text that a model reads."""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from worldpm.field.errors import CheckpointError
from worldpm.field.records import Message

END_TOKEN = "<|endoftext|>"
MARK = "\ufdd0"
"""A noncharacter that no text may hold."""
TURN_START, TURN_END, PAD_TOKEN = "<|im_start|>", "<|im_end|>", "<|pad|>"

QWEN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's chat format with its empty system turn, as the released WorldPM checkpoints read it."""


class Conversation(NamedTuple):
    """The text of one prompt and one response, ending with the end token; offsets are in characters."""

    text: str
    prompt_start: int
    """Where the first message's own words begin, after the template's opening."""
    prompt_end: int
    """Where the response begins."""
    response_end: int
    """Where the template's closing begins."""
    literal: tuple[tuple[int, int], ...] = ()
    """Where people wrote what looks like a special token, such as `<|im_end|>`: it is text, not a turn's end."""


def render(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], response: str, *, end_token: str = END_TOKEN) -> Conversation:
    """One prompt and one response in the tokenizer's own template, with an empty system turn kept for ChatML templates.

    White space after the last turn is dropped, and the end token is appended unless it is already last.

    Raises:
        CheckpointError: If the tokenizer has no chat template, or one that changes the words of a response.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; save one with it")
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    if messages[0]["role"] != "system" and TURN_START in str(tokenizer.chat_template):
        messages.insert(0, {"role": "system", "content": ""})
    opened = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    messages.append({"role": "assistant", "content": response})
    if _special(tokenizer).search("\n".join(message["content"] for message in messages)):
        return _render_apart(tokenizer, messages, end_token)
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False)).rstrip()
    prompt_end = common_prefix([opened, whole])
    words = response.strip()
    response_end = whole.find(words, prompt_end) + len(words) if words else prompt_end
    if response_end < prompt_end + len(words):
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the chat template changes the words of a response; it cannot be read as it was written"
        )
    spans = _spans(whole[:prompt_end], [message.content for message in prompt])
    return Conversation(
        text=whole if whole.endswith(end_token) else whole + end_token,
        prompt_start=spans[0][0] if spans else prompt_end,
        prompt_end=prompt_end,
        response_end=response_end,
    )


def _render_apart(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], end_token: str) -> Conversation:
    """A conversation in which people wrote special tokens: the template is filled with marks, and the marks with the words."""
    marked = [{**message, "content": f"{MARK}{number}{MARK}"} for number, message in enumerate(messages)]
    pieces = str(tokenizer.apply_chat_template(marked, tokenize=False)).rstrip().split(MARK)
    text, spans = "", []
    for number, piece in enumerate(pieces):
        words = messages[int(piece)]["content"] if number % 2 else piece
        if number % 2:
            spans.append((len(text), len(text) + len(words)))
        text += words
    literal = tuple(match.span() for span in spans for match in _special(tokenizer).finditer(text, *span))
    start = next((begin for begin, end in spans if end > begin), spans[-1][0])
    closed = text if pieces[-1].endswith(end_token) else text + end_token
    return Conversation(closed, start, *spans[-1], literal)


def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every token that the tokenizer takes whole out of a text."""
    tokens = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def _spans(rendered: str, contents: Sequence[str]) -> list[tuple[int, int]]:
    """Where the messages' own words stand, in order; a message without words, or one that the template changed, has no place."""
    spans, start = [], 0
    for words in filter(None, (content.strip() for content in contents)):
        # the first occurrence after a line end: `user` stands in the template too
        place = rendered.find(f"\n{words}", start) + 1 or rendered.find(words, start)
        if place >= 0:
            spans.append((place, place + len(words)))
            start = place + len(words)
    return spans


def common_prefix(sequences: Sequence[Sequence[object]]) -> int:
    """How many leading elements all sequences share; they may be texts or token ids."""
    shortest = min(map(len, sequences))
    first = sequences[0]
    return next((i for i in range(shortest) if any(other[i] != first[i] for other in sequences)), shortest)


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 16 hex digits of the template's SHA-256, to print beside every result."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
