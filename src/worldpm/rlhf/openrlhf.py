"""Rewards for OpenRLHF. `--reward.remote_url` can name this file instead of a URL; see
`runs/rlhf_openrlhf.sh`.

`WORLDPM_REWARD_MODEL` names the source of rewards: a folder, or the URL of a server, whose key is
`WORLDPM_API_KEY`. OpenRLHF gives whole texts, so we remove the prompt from their start and the
policy's end token from their end. Prompts must be plain questions. If OpenRLHF renders them in a
template, the template would be scored as part of the user's message.
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
"""Least number of characters at the end of a cut prompt that identify it."""


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object]
) -> dict[str, object]:
    """The `rewards`, `scores` and `extra_logs` of texts that begin with their prompts, as torch
    tensors, which OpenRLHF needs.

    Raises:
        ConfigError: If the variable is not set, or if a text does not begin with its prompt or the
            end of its prompt.
    """
    source = os.environ.get(SOURCE_VARIABLE)
    if not source:
        raise ConfigError(
            f"{SOURCE_VARIABLE}: is not set. Set it to a checkpoint's folder, or to the URL of"
            " `worldpm serve`."
        )

    responses = [_response(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    judge = judge_of(source, os.environ.get(KEY_VARIABLE))
    messages = [(Message("user", prompt),) for prompt in prompts]
    # No guards, because OpenRLHF does not pass their settings
    rewards = torch.tensor(rewards_of(judge, messages, responses, Guards()))
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"reward": rewards}}


def _response(query: str, prompt: str) -> str:
    """The response in a text, without the policy's end tokens.

    Raises:
        ConfigError: If the prompt is rendered in a template, or if the text does not contain it.
    """
    template_token = re.search(TEMPLATE_TOKEN, prompt)
    if template_token:
        raise ConfigError(
            f"a prompt is already rendered in a template (it contains {template_token[0]}). Give"
            " OpenRLHF plain questions."
        )

    # Remove the policy's end token, and tokens that its tokenizer added after it
    return re.sub(rf"(?:\s*(?:{TEMPLATE_TOKEN}))+\s*$", "", _after(prompt, query))


def _after(prompt: str, query: str) -> str:
    """The part of a text after its prompt.

    The policy's tokenizer has changed the text: most tokenizers compose letters with their accents,
    and OpenRLHF cuts long prompts at the start.
    """
    if query.startswith(prompt):
        return query[len(prompt) :]

    prompt_nfc, query_nfc = (unicodedata.normalize("NFC", text) for text in (prompt, query))
    # Accept only the whole prompt or a long end of it, because a short end can match by chance
    least = min(LEAST_PROMPT_CHARACTERS, len(prompt_nfc))
    for start in range(len(prompt_nfc) - least + 1):
        # The first test is a quick filter, which compares few characters
        is_near = query_nfc.startswith(prompt_nfc[start : start + least])
        if is_near and query_nfc.startswith(prompt_nfc[start:]):
            return query_nfc[len(prompt_nfc) - start :]

    raise ConfigError(
        f"a text begins neither with its prompt nor with the end of it ({prompt[:60]!r}). Give"
        " texts in OpenRLHF's form."
    )
