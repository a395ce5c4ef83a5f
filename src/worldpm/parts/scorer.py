"""The one road from text to reward. Training's validation, evaluation, scoring and serving all take it."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from worldpm.field.errors import CheckpointError, DataError, NotFiniteError
from worldpm.field.records import Message
from worldpm.formats import chat, folders
from worldpm.parts import reward_model
from worldpm.parts.batches import EncodedGroup, Limits, encode_group, pack
from worldpm.parts.shared_prefix import plan_row

ROW_TOKENS = 4096
"""A row of groups is filled up to so many tokens."""
GROUPS_AT_ONCE = 64
"""So many groups are sorted by length into rows together; it bounds the memory of a stream."""
DESCRIPTION = "worldpm.json"


class Request(NamedTuple):
    """One prompt and its responses."""

    name: str
    """What an error calls it, for instance `in.jsonl:7`."""
    prompt: Sequence[Message]
    responses: Sequence[str]


class Scored(NamedTuple):
    """The answer to a request; each list is in the order of its responses."""

    rewards: list[float]
    """Logits: only differences at one prompt mean anything."""
    length_tokens: list[int]
    """Tokens of the response's own words, before any cut."""
    truncated: list[bool]


def rewards_of(
    model: reward_model.RewardModel, groups: Sequence[EncodedGroup], *, row_tokens: int, dtype: torch.dtype
) -> list[list[float]]:
    """Rewards of each group's responses, in order, without gradients."""
    found: list[list[float]] = [[] for _ in groups]
    full = [place for place, group in enumerate(groups) if group.suffixes]
    device = model.score.weight.device
    with torch.no_grad(), compute_type(device, dtype):
        for row in pack([groups[place] for place in full], row_tokens=row_tokens):
            rewards = model(plan_row(row.groups, device=device, dtype=dtype)).tolist()
            for index, group in zip(row.indices, row.groups, strict=True):
                found[full[index]], rewards = rewards[: len(group.suffixes)], rewards[len(group.suffixes) :]
    return found


def compute_type(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to the compute type; master weights stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    features = torch.cpu.get_capabilities()
    return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16") else torch.float32


class Scorer:
    """A loaded checkpoint that turns text into rewards.

    A reward depends on the prompt and its response alone, up to rounding (about 1e-6 in float32): not on the batch, the
    padding or the other responses.
    """

    def __init__(
        self, model: reward_model.RewardModel, tokenizer: PreTrainedTokenizerBase, *, limits: Limits, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.limits = limits
        self.dtype = dtype

    @classmethod
    def load(cls, folder: Path | str, *, cut: bool = False, max_length: int | None = None, dtype: torch.dtype = torch.float32) -> Self:
        """The checkpoint in a folder, on the GPU where there is one.

        Over-long input is refused unless `cut`; `max_length` is in tokens and defaults to that of the training.

        Raises:
            CheckpointError: If the folder is not a checkpoint, or lacks a part.
            ConfigError: If it is not finished.
            DataError: If a file of it was altered.
        """
        folder = Path(folder)
        description = read_description(folder)
        folders.verified_files(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: no readable tokenizer ({error})") from error
        if chat.template_hash(tokenizer) != description["template_hash"]:
            raise CheckpointError(f"{folder}: the chat template is not the one it was trained with; restore the tokenizer's files")
        limits = Limits(description["max_length"], description["prompt_length"], cut)
        if max_length is not None:
            limits = Limits(max_length, max_length // 2, cut)
        model = reward_model.load(folder).to(default_device())
        return cls(model, tokenizer, limits=limits, dtype=dtype)

    def rewards(self, prompt: str | Sequence[Message], responses: Sequence[str]) -> list[float]:
        """The reward of each response to one prompt, in logits, in order; a text prompt is one user message.

        Raises:
            DataError: If the input is longer than the checkpoint allows and cutting was not asked for.
            NotFiniteError: If a reward is not finite.
        """
        messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        return next(self.score([Request("input", messages, responses)])).rewards

    def score(self, requests: Iterable[Request]) -> Iterator[Scored]:
        """The rewards of each request, in order, streamed: memory does not grow with their number.

        Raises:
            DataError: If a request is too long and cutting was not asked for; those before it were answered.
            NotFiniteError: If a reward is not finite; the message names the request.
        """
        stream = iter(requests)
        while chunk := list(islice(stream, GROUPS_AT_ONCE)):
            groups, failure = self._encode(chunk)
            rewards = rewards_of(self.model, groups, row_tokens=ROW_TOKENS, dtype=self.dtype)
            for request, group, found in zip(chunk, groups, rewards, strict=False):
                yield _scored(request, group, found)
            if failure:
                raise failure

    def _encode(self, requests: Sequence[Request]) -> tuple[list[EncodedGroup], DataError | None]:
        """The requests up to the first that is too long, and what is wrong with that. Equal responses stand once."""
        groups: list[EncodedGroup] = []
        for request in requests:
            try:
                distinct = list(dict.fromkeys(request.responses))
                groups.append(encode_group(self.tokenizer, request.prompt, distinct, limits=self.limits, name=request.name))
            except DataError as error:
                return groups, error
        return groups, None


def _scored(request: Request, group: EncodedGroup, rewards: list[float]) -> Scored:
    """The answer for every response; equal responses have equal rewards to the last bit, so a tie is a tie."""
    places = {response: place for place, response in enumerate(dict.fromkeys(request.responses))}
    order = [places[response] for response in request.responses]
    for number, place in enumerate(order):
        if not math.isfinite(rewards[place]):
            raise NotFiniteError(
                f"{request.name}: the reward of response {number} is {rewards[place]}; the checkpoint or its dtype is unfit"
            )
    return Scored([rewards[i] for i in order], [group.response_tokens[i] for i in order], [group.truncated[i] for i in order])


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of a checkpoint's `worldpm.json`.

    Raises:
        CheckpointError: If the folder has none, or it cannot be read.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint of ours (it has no {DESCRIPTION}); `worldpm train` makes one")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable ({error})") from error
    if missing := [key for key in ("template_hash", "max_length", "prompt_length") if key not in content]:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}")
    return content
