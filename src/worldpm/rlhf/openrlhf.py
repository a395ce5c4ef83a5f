"""Rewards for OpenRLHF, as the file that `--reward.remote_url` can name in place of a URL; see
`runs/rlhf_openrlhf.sh`.

`WORLDPM_REWARD_MODEL` names the source of rewards: a folder, or the URL of a server, whose key is
`WORLDPM_API_KEY`. OpenRLHF gives whole texts, so the prompt is removed from their start and the
policy's end token from their end. Prompts must be plain questions, because the template that
OpenRLHF can render them in would be scored as part of the user's message.
"""

import os
import re
import unicodedata
from collections.abc import Sequence

import torch

from worldpm.errors import ConfigError
from worldpm.records import Message
from worldpm.rlhf.judge import Guards, judge_of, rewards_of

SOURCE_VARIABLE, KEY_VARIABLE = "WORLDPM_REWARD_MODEL", "WORLDPM_API_KEY"
TEMPLATE_TOKEN = r"<\|[^|<>]{1,40}\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos)>|\[/?INST\]"
"""Special tokens in the chat templates of policies."""
LEAST_PROMPT_CHARACTERS = 32
"""Characters at the end of a cut prompt that identify it."""


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object]
) -> dict[str, object]:
    """`rewards`, `scores` and `extra_logs` of texts that begin with their prompts; torch tensors,
    as OpenRLHF needs them.

    Raises:
        ConfigError: If the variable is not set, or a text does not begin with its prompt, or with
            the end of it.
    """
    source = os.environ.get(SOURCE_VARIABLE)
    if not source:
        raise ConfigError(
            f"set {SOURCE_VARIABLE} to a checkpoint's folder, or to the URL of `worldpm serve`"
        )

    responses = [_response(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    judge = judge_of(source, os.environ.get(KEY_VARIABLE))
    messages = [(Message("user", prompt),) for prompt in prompts]
    # Guards would need settings, which OpenRLHF does not pass
    rewards = torch.tensor(rewards_of(judge, messages, responses, Guards()))
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"reward": rewards}}


def _response(query: str, prompt: str) -> str:
    """The response in a text, without the policy's end tokens.

    Raises:
        ConfigError: If the prompt is rendered in a template, or is not in the text.
    """
    template_token = re.search(TEMPLATE_TOKEN, prompt)
    if template_token:
        raise ConfigError(
            f"a prompt is rendered already (it holds {template_token[0]}); give OpenRLHF plain"
            " questions, without a template"
        )

    # The policy's end token, and tokens that its tokenizer put after it
    return re.sub(rf"(?:\s*(?:{TEMPLATE_TOKEN}))+\s*$", "", _after(prompt, query))


def _after(prompt: str, query: str) -> str:
    """The part of a text after its prompt.

    The text went through the policy's tokenizer: most compose letters with their accents, and
    OpenRLHF cuts a long prompt from its left.
    """
    if query.startswith(prompt):
        return query[len(prompt) :]

    prompt_nfc, query_nfc = (unicodedata.normalize("NFC", text) for text in (prompt, query))
    # Only the whole prompt, or a long end of it: a short end may match by chance
    least = min(LEAST_PROMPT_CHARACTERS, len(prompt_nfc))
    for start in range(len(prompt_nfc) - least + 1):
        # The first test is a quick filter: it compares few characters
        is_near = query_nfc.startswith(prompt_nfc[start : start + least])
        if is_near and query_nfc.startswith(prompt_nfc[start:]):
            return query_nfc[len(prompt_nfc) - start :]

    raise ConfigError(
        f"a text begins neither with its prompt nor with the end of it ({prompt[:60]!r});"
        " OpenRLHF's own texts do"
    )
