"""The only code that touches a chat template: a conversation becomes the text that a model reads."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from worldpm.field.errors import CheckpointError
from worldpm.field.records import Message

END_TOKEN = "<|endoftext|>"
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


def render(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], response: str, *, end_token: str = END_TOKEN) -> Conversation:
    """One prompt and one response in the tokenizer's own template, with an empty system turn kept for ChatML templates.

    White space after the last turn is dropped, and the end token is appended unless it is already last.

    Raises:
        CheckpointError: If the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise CheckpointError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; save one with it")
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    if messages[0]["role"] != "system" and TURN_START in str(tokenizer.chat_template):
        messages.insert(0, {"role": "system", "content": ""})
    opened = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    messages.append({"role": "assistant", "content": response})
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False)).rstrip()
    prompt_end = common_prefix([opened, whole])
    words = response.strip()
    response_end = whole.rindex(words) + len(words) if words else prompt_end
    first = next((message.content.strip() for message in prompt if message.content.strip()), "")
    return Conversation(
        text=whole if whole.endswith(end_token) else whole + end_token,
        prompt_start=max(0, whole.find(first, 0, prompt_end)) if first else prompt_end,
        prompt_end=prompt_end,
        response_end=response_end,
    )


def common_prefix(sequences: Sequence[Sequence[object]]) -> int:
    """How many leading elements all sequences share; they may be texts or token ids."""
    shortest = min(map(len, sequences))
    first = sequences[0]
    return next((i for i in range(shortest) if any(other[i] != first[i] for other in sequences)), shortest)


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 16 hex digits of the template's SHA-256, to print beside every result."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
