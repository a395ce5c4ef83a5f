"""Text to rewards: the only such code, used by validation in training, evaluation, scoring and
serving."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch

from worldpm import console
from worldpm.errors import ConfigError, DataError, NotFiniteError, TemplateRefusalError
from worldpm.model import checkpoint, sources
from worldpm.model.devices import device_of, torch_dtype
from worldpm.model.encoder import EncodedGroup, Encoder
from worldpm.model.packing import pack
from worldpm.model.reward_model import RewardModel
from worldpm.model.sources import Source
from worldpm.options.shared import ModelOptions
from worldpm.records import ASSISTANT, Message
from worldpm.storage.manifest import MANIFEST, verified_files

ROW_TOKENS = 2048
"""Tokens that a row of groups is filled up to; on CPUs longer rows are slower, and take more
memory."""
GROUPS_AT_ONCE = 64
"""Groups that are sorted by length into rows together; it bounds the memory of a stream."""


class Request(NamedTuple):
    """One prompt and its responses."""

    name: str
    """Start of error messages about it, for instance `in.jsonl:7`."""
    prompt: Sequence[Message]
    responses: Sequence[str]
    last: Message = ASSISTANT
    """The turn that a response is the content of; it may have tool calls."""


Prompt = str | Sequence[Message | Mapping[str, object]]
"""A text, which is one user message, or messages, oldest first."""


def request_of(name: str, prompt: Prompt, responses: Iterable[str]) -> Request:
    """A request of values as Python users have them.

    Raises:
        TypeError: If `responses` is one text, or holds anything but texts, or a message is none.
    """
    if isinstance(responses, str | bytes | Mapping):
        raise TypeError(
            f"responses: one {type(responses).__name__} was given. Give a list of texts."
        )
    texts = list(responses)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"responses[{index}]: {text!r:.40} is not a text. Leave it out.")

    turns = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    messages = [turn if isinstance(turn, Message) else Message.of(turn) for turn in turns]
    # NumPy's texts are of a type of their own
    return Request(name, messages, list(map(str, texts)))


class Refused(NamedTuple):
    """Answer to a request that the chat template refuses."""

    name: str
    """Of the request."""
    reason: str
    """Without the name."""


class EncodedRequest(NamedTuple):
    """A request as tokens. Each list has an entry for each response."""

    request: Request
    group: EncodedGroup
    """The different sequences, each once, so that equal ones tie to the last bit."""
    indices: list[int]
    """The sequence of each response in the group."""
    length_tokens: list[int]
    """Tokens of each response's own words, before any cut."""
    truncated: list[bool]
    """Whether the prompt or the response was cut."""

    @property
    def sequence_tokens(self) -> list[int]:
        """Tokens of the prompt with each response, as the model reads them."""
        group = self.group
        return [len(group.prefix) + len(group.suffixes[index]) for index in self.indices]


class Scored(NamedTuple):
    """The answer to a request; each list is in the order of its responses."""

    rewards: list[float]
    """Logits: only differences at one prompt mean anything."""
    length_tokens: list[int]
    """Tokens of the response's own words, before any cut."""
    truncated: list[bool]
    """Whether the prompt or the response was cut."""


def rewards_of(
    model: RewardModel, groups: Sequence[EncodedGroup], *, row_tokens: int = ROW_TOKENS
) -> list[list[float]]:
    """Rewards of each group's responses, in order, without gradients; a group without responses has
    none."""
    rewards: list[list[float]] = [[] for _ in groups]
    # the model takes no empty groups
    computed = [index for index, group in enumerate(groups) if group.suffixes]
    rows = pack([groups[index].tokens for index in computed], row_tokens=row_tokens)

    with torch.no_grad():
        for row in rows:
            indices = [computed[i] for i in row]
            row_rewards = iter(model([groups[index] for index in indices]).tolist())
            for index in indices:
                rewards[index] = list(islice(row_rewards, len(groups[index].suffixes)))
    return rewards


class Scorer:
    """A loaded checkpoint that turns text into rewards.

    A reward depends on the prompt and its response alone, up to rounding (about 1e-6 in float32),
    and not on the batch, the padding or the other responses.
    """

    def __init__(self, model: RewardModel, encoder: Encoder) -> None:
        self.model = model
        self.encoder = encoder

    @classmethod
    def load(
        cls,
        model: Path | str | Source,
        *,
        cut: bool = False,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        remote_code: bool = False,
        chat_template: str | None = None,
        template_name: str | None = None,
        across_devices: bool = False,
    ) -> Self:
        """The reward model in a folder or a hub repository.

        Inputs over the limit are refused unless `cut`. `max_length`, in tokens, defaults to the
        checkpoint's, `dtype` to that of its weights, and `device` to the first GPU of
        CUDA, or else Apple's, or else the CPU. `across_devices` spreads a model that is too large
        for one device.

        Raises:
            CheckpointError: If the folder is not a reward model, or lacks a part.
            ConfigError: If it is not finished, if `max_length` exceeds the model's positions, or
                if there is no such device.
            DataError: If a file of it was altered.
        """
        # first, because the other steps take seconds
        target = device_of(device)
        source = model
        if not isinstance(source, Source):
            source = sources.find(
                source,
                revision=revision,
                remote_code=remote_code,
                chat_template=chat_template,
                template_name=template_name,
            )
        # folders of other programs have no manifest to check
        if (source.folder / MANIFEST).is_file():
            verified_files(source.folder)

        reward_model = checkpoint.load(source, dtype=dtype, across_devices=across_devices)
        config = reward_model.backbone.config
        encoder = checkpoint.encoder_of(source, config)
        limits = encoder.limits.within(max_length, cut=cut)
        _check_positions(limits.max_length, checkpoint.positions_of(config))
        if not across_devices:
            reward_model = reward_model.to(target)
        return cls(reward_model, replace(encoder, limits=limits))

    @classmethod
    def of(cls, model: Path | str | Source, options: ModelOptions) -> Self:
        """The reward model in a folder or a hub repository, by the options of a verb."""
        source = model
        if not isinstance(source, Source):
            source = sources.of(source, options)

        return cls.load(
            source,
            cut=options.cut,
            max_length=options.max_length,
            dtype=torch_dtype(options.dtype),
            device=options.device,
            across_devices=options.across_devices,
        )

    def cutting(self, max_length: int | None = None) -> Self:
        """The same scorer, which cuts inputs over its own limits, or over `max_length` tokens."""
        limits = self.encoder.limits.within(max_length, cut=True)
        return type(self)(self.model, replace(self.encoder, limits=limits))

    @property
    def dtype(self) -> torch.dtype:
        """The compute type."""
        dtype: torch.dtype = self.model.backbone.dtype
        return dtype

    def __repr__(self) -> str:
        parameters = sum(weight.numel() for weight in self.model.parameters())
        return (
            f"Scorer({self.encoder.tokenizer.name_or_path!r}, {parameters:,} parameters,"
            f" {str(self.dtype).removeprefix('torch.')} on {self.model.device},"
            f" at most {self.encoder.limits.max_length:,} tokens)"
        )

    def rewards(self, prompt: Prompt, responses: Iterable[str]) -> list[float]:
        """The reward of each response to one prompt, in logits, in order.

        A text prompt is one user message. Responses are a list, a tuple, or a column of NumPy,
        pandas or Polars.

        Raises:
            TypeError: If `responses` is one text, or holds anything but texts.
            TemplateRefusalError: If the chat template refuses the conversation.
            DataError: If the input is longer than the checkpoint allows and cutting was not asked
                for.
            NotFiniteError: If a reward is not finite.
        """
        return self.answer(request_of("input", prompt, responses)).rewards

    def rewards_many(
        self, pairs: Iterable[tuple[Prompt, Iterable[str]]], *, progress: bool = False
    ) -> Iterator[list[float]]:
        """The rewards of the responses to each prompt, in order, computed in batches and streamed;
        `progress` shows a bar. Raises as `rewards` does, at the prompt in question."""
        total = len(pairs) if isinstance(pairs, Sized) else None
        requests = (request_of(f"input {i}", *pair) for i, pair in enumerate(pairs))
        answers = self.score(requests)
        for answer in console.track(answers, "score", total=total) if progress else answers:
            if isinstance(answer, Refused):
                raise TemplateRefusalError(answer.name, answer.reason)
            yield answer.rewards

    def answer(self, request: Request) -> Scored:
        """The rewards of one request.

        Raises:
            TemplateRefusalError: If the chat template refuses it.
            DataError, NotFiniteError: See `score`.
        """
        encoded = encode(self.encoder, request)
        return scored(encoded, rewards_of(self.model, [encoded.group])[0])

    def score(self, requests: Iterable[Request]) -> Iterator[Scored | Refused]:
        """The answer to each request, in order, streamed: memory does not grow with their number.

        Raises:
            DataError: If a request is too long and cutting was not asked for; those before it were
                answered.
            NotFiniteError: If a reward is not finite; the message names the request.
        """
        stream = iter(requests)
        while chunk := list(islice(stream, GROUPS_AT_ONCE)):
            encoded, failure = self._encode(chunk)
            groups = [one.group for one in encoded if isinstance(one, EncodedRequest)]
            rewards = iter(rewards_of(self.model, groups))
            for one in encoded:
                yield one if isinstance(one, Refused) else scored(one, next(rewards))

            # the requests before the failure are answered first
            if failure:
                raise failure

    def _encode(
        self, requests: Sequence[Request]
    ) -> tuple[list[EncodedRequest | Refused], DataError | None]:
        """The requests up to the first bad one, and the error of that."""
        encoded: list[EncodedRequest | Refused] = []
        for request in requests:
            try:
                encoded.append(encode(self.encoder, request))
            except TemplateRefusalError as error:
                reason = str(error).removeprefix(f"{request.name}: ")
                encoded.append(Refused(request.name, reason))
            except DataError as error:
                return encoded, error
        return encoded, None


def _check_positions(max_length: int, positions: int) -> None:
    if max_length > positions:
        raise ConfigError(
            f"--max-length {max_length}: the model was made for {positions} positions; ask for"
            " at most that"
        )


def encode(encoder: Encoder, request: Request) -> EncodedRequest:
    """The tokens that a request's rewards are computed from.

    Raises:
        TemplateRefusalError: If the chat template refuses it.
        DataError: If the prompt is empty, or it is too long and cutting was not asked for.
    """
    texts = {text: index for index, text in enumerate(dict.fromkeys(request.responses))}
    group = encoder.encode(request.prompt, list(texts), name=request.name, last=request.last)

    # different texts may be equal tokens, for instance after a cut
    indices: dict[bytes, int] = {}
    kept: list[int] = []
    of_text: list[int] = []
    for number, suffix in enumerate(group.suffixes):
        index = indices.setdefault(np.asarray(suffix, dtype=np.int64).tobytes(), len(indices))
        if index == len(kept):
            kept.append(number)
        of_text.append(index)

    numbers = [texts[response] for response in request.responses]
    return EncodedRequest(
        request,
        group.at(kept),
        [of_text[number] for number in numbers],
        [group.response_tokens[number] for number in numbers],
        [group.truncated[number] for number in numbers],
    )


def scored(encoded: EncodedRequest, rewards: Sequence[float]) -> Scored:
    """The answer for every response, by the rewards of the different sequences.

    Raises:
        NotFiniteError: If a reward is not finite.
    """
    for number, index in enumerate(encoded.indices):
        if not math.isfinite(rewards[index]):
            raise NotFiniteError(
                f"{encoded.request.name}: the reward of response {number} is {rewards[index]}; the"
                " checkpoint or its dtype is unfit"
            )

    chosen = [rewards[index] for index in encoded.indices]
    return Scored(chosen, encoded.length_tokens, encoded.truncated)
