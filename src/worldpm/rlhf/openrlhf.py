"""Rewards for OpenRLHF as the file that `--reward.remote_url` may name in place of a URL; see
`runs/rlhf_openrlhf.sh`.

`WORLDPM_REWARD_MODEL` says where rewards come from: a folder, or the URL of a server, whose key is
`WORLDPM_API_KEY`. OpenRLHF hands over whole texts, so the prompt is taken off their front and the
policy's end token off their end. Prompts must be plain questions: one that OpenRLHF has rendered in
the policy's chat template would be read as the words of a user.
"""

import os
import re
import unicodedata
from collections.abc import Sequence

import torch

from worldpm.errors import ConfigError
from worldpm.records import Message
from worldpm.rlhf.judge import Guards, judge_of, rewards_of

PLACE, KEY = "WORLDPM_REWARD_MODEL", "WORLDPM_API_KEY"
SPECIAL = r"<\|[^|<>]{1,40}\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos)>|\[/?INST\]"
"""What templates of policies write."""
LEAST_LEFT = 32
"""Characters of a cut prompt by which it is known."""


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object]
) -> dict[str, object]:
    """`rewards`, `scores` and `extra_logs` of texts that begin with their prompts; torch tensors,
    as OpenRLHF wants them.

    Raises:
        ConfigError: If the variable is not set, or a text does not begin with its prompt, or with
            the end of it.
    """

    if not (place := os.environ.get(PLACE)):
        raise ConfigError(f"set {PLACE} to a checkpoint's folder, or to the URL of `worldpm serve`")
    responses = []
    for query, prompt in zip(queries, prompts, strict=True):
        if written := re.search(SPECIAL, prompt):
            raise ConfigError(
                f"a prompt is rendered already (it holds {written[0]}); give OpenRLHF plain"
                " questions, without a template"
            )
        responses.append(re.sub(rf"(?:\s*(?:{SPECIAL}))+\s*$", "", _after(prompt, query)))
    found = torch.tensor(
        rewards_of(
            judge_of(place, os.environ.get(KEY)),
            [(Message("user", prompt),) for prompt in prompts],
            responses,
            Guards(),
        )
    )
    return {"rewards": found, "scores": found, "extra_logs": {"reward": found}}


def _after(prompt: str, query: str) -> str:
    """What a text says after its prompt. It went through the policy's tokenizer: most compose
    letters with their accents, and OpenRLHF cuts a long prompt from its left."""
    if query.startswith(prompt):
        return query[len(prompt) :]
    asked, told = (unicodedata.normalize("NFC", text) for text in (prompt, query))
    least = min(LEAST_LEFT, len(asked))
    for start in range(len(asked) - least + 1):
        if told.startswith(asked[start : start + least]) and told.startswith(asked[start:]):
            return told[len(asked) - start :]
    raise ConfigError(
        f"a text begins neither with its prompt nor with the end of it ({prompt[:60]!r});"
        " OpenRLHF's own texts do"
    )
