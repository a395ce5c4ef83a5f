"""Text to rewards. Validation in training, evaluation, scoring and serving all use this code."""

import math
import threading
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
from worldpm.model.quantization import Bits
from worldpm.model.reward_model import RewardModel
from worldpm.model.sources import Source
from worldpm.options.shared import ModelOptions
from worldpm.records import ASSISTANT, Message
from worldpm.storage.manifest import MANIFEST, verified_files

ROW_TOKENS = 2048
"""The most tokens of groups in one row. On CPUs, longer rows are slower and need more memory."""
GROUPS_AT_ONCE = 64
"""Number of groups that are packed into rows together. It bounds the memory of a stream."""


class Request(NamedTuple):
    """One prompt and its responses."""

    name: str
    """The start of error messages about the request, for instance `in.jsonl:7`."""
    prompt: Sequence[Message]
    responses: Sequence[str]
    last: Message = ASSISTANT
    """The last turn, without its content, which is a response. It may have tool calls."""


Prompt = str | Sequence[Message | Mapping[str, object]]
"""A text, taken as one user message, or messages, oldest first."""


def request_of(name: str, prompt: Prompt, responses: Iterable[str]) -> Request:
    """A request from the arguments of a Python user.

    Raises:
        TypeError: If `responses` is a single text, if it holds anything but texts, or if a message
            is not a message.
    """
    if isinstance(responses, str | bytes | Mapping):
        raise TypeError(
            f"responses: a single {type(responses).__name__} was given. Give a list of texts."
        )
    texts = list(responses)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"responses[{index}]: {text!r:.40} is not a text. Leave it out.")

    turns = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    messages = [turn if isinstance(turn, Message) else Message.of(turn) for turn in turns]
    # NumPy has its own type of text
    return Request(name, messages, list(map(str, texts)))


class Refused(NamedTuple):
    """The answer to a request that the chat template refuses."""

    name: str
    """Name of the request."""
    reason: str
    """The reason, without the name."""


class EncodedRequest(NamedTuple):
    """A request as tokens. Each list has one entry per response."""

    request: Request
    group: EncodedGroup
    """The distinct sequences. Responses with equal tokens share one, and so get exactly the same
    reward."""
    indices: list[int]
    """Index of each response's sequence in the group."""
    length_tokens: list[int]
    """Tokens of each response's text, before any cut."""
    truncated: list[bool]
    """Whether the prompt or the response was cut."""

    @property
    def sequence_tokens(self) -> list[int]:
        """Number of tokens that the model reads for the prompt with each response."""
        group = self.group
        return [len(group.prefix) + len(group.suffixes[index]) for index in self.indices]


class Scored(NamedTuple):
    """The answer to a request. Each list has the order of its responses."""

    rewards: list[float]
    """Rewards in logits. Only differences between responses to the same prompt have a meaning."""
    length_tokens: list[int]
    """Tokens of each response's text, before any cut."""
    truncated: list[bool]
    """Whether the prompt or the response was cut."""


def rewards_of(
    model: RewardModel, groups: Sequence[EncodedGroup], *, row_tokens: int = ROW_TOKENS
) -> list[list[float]]:
    """Rewards of each group's responses, in order, without gradients. A group without responses has
    no rewards."""
    rewards: list[list[float]] = [[] for _ in groups]
    # the model does not accept empty groups
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
    """A loaded checkpoint that turns text into rewards, for any number of threads; they take turns.

    A reward depends only on the prompt and the response, up to rounding (about 1e-6 in float32). It
    does not depend on the batch, the padding or the other responses.
    """

    def __init__(
        self, model: RewardModel, encoder: Encoder, *, quantize: Bits | None = None
    ) -> None:
        """`quantize` is the form of the model's linear layers, for `precision`."""
        self.model = model
        self.encoder = encoder
        self._quantize = quantize
        # A tokenizer serves one thread at a time, and so does the model's first use
        self._lock = threading.Lock()

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
        quantize: Bits | None = None,
    ) -> Self:
        """Load the reward model in a folder or a hub repository.

        Inputs over the limit raise an error unless `cut` is set. `max_length`, in tokens, defaults
        to the checkpoint's limit, and `dtype` to the type of its weights. `device` defaults to the
        first CUDA GPU, else to Apple's GPU, else to the CPU. `across_devices` spreads a model that
        is too large for one device. `quantize` reads its layers in 8 or 4 bits, which changes
        rewards.

        Raises:
            CheckpointError: If the folder is not a reward model, or lacks a part.
            ConfigError: If the folder is not finished, if `max_length` exceeds the model's
                positions, or if the device does not exist.
            DataError: If a file of the folder was altered.
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
        # folders of other programs have no manifest
        if (source.folder / MANIFEST).is_file():
            verified_files(source.folder)

        reward_model = checkpoint.load(
            source, dtype=dtype, across_devices=across_devices, quantize=quantize, device=target
        )
        config = reward_model.backbone.config
        encoder = checkpoint.encoder_of(source, config)
        limits = encoder.limits.within(max_length, cut=cut)
        _check_positions(limits.max_length, checkpoint.positions_of(config))
        if not across_devices:
            reward_model = reward_model.to(target)
        return cls(reward_model, replace(encoder, limits=limits), quantize=quantize)

    @classmethod
    def of(cls, model: Path | str | Source, options: ModelOptions) -> Self:
        """Load the reward model in a folder or a hub repository with the options of a verb."""
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
            quantize=options.quantize,
        )

    def cutting(self, max_length: int | None = None) -> Self:
        """A copy of this scorer that cuts inputs over its limits, or over `max_length` tokens."""
        limits = self.encoder.limits.within(max_length, cut=True)
        encoder = replace(self.encoder, limits=limits)
        copy = type(self)(self.model, encoder, quantize=self._quantize)
        copy._lock = self._lock
        return copy

    @property
    def dtype(self) -> torch.dtype:
        """The compute type."""
        dtype: torch.dtype = self.model.backbone.dtype
        return dtype

    @property
    def precision(self) -> str:
        """The compute type and the form of the weights, such as `bfloat16` or `bfloat16, int4
        weights`."""
        dtype = str(self.dtype).removeprefix("torch.")
        return dtype if self._quantize is None else f"{dtype}, {self._quantize} weights"

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
            TypeError: If `responses` is a single text, or holds anything but texts.
            TemplateRefusalError: If the chat template refuses the conversation.
            DataError: If the input is longer than the checkpoint allows and the scorer does not
                cut.
            NotFiniteError: If a reward is not finite.
        """
        return self.answer(request_of("input", prompt, responses)).rewards

    def rewards_many(
        self, pairs: Iterable[tuple[Prompt, Iterable[str]]], *, progress: bool = False
    ) -> Iterator[list[float]]:
        """The rewards of the responses to each prompt, in order, computed in batches and streamed.
        `progress` shows a bar. Errors are those of `rewards`, raised at the prompt that causes
        them."""
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
            TemplateRefusalError: If the chat template refuses the request.
            DataError, NotFiniteError: See `score`.
        """
        with self._lock:
            encoded = encode(self.encoder, request)
            rewards = rewards_of(self.model, [encoded.group])[0]
        return scored(encoded, rewards)

    def score(self, requests: Iterable[Request]) -> Iterator[Scored | Refused]:
        """The answer to each request, in order, streamed, so that memory does not grow with their
        number.

        Raises:
            DataError: If a request is too long and the scorer does not cut. The requests before it
                are answered first.
            NotFiniteError: If a reward is not finite. The message names the request.
        """
        stream = iter(requests)
        while chunk := list(islice(stream, GROUPS_AT_ONCE)):
            with self._lock:
                encoded, failure = self._encode(chunk)
                groups = [entry.group for entry in encoded if isinstance(entry, EncodedRequest)]
                rewards = iter(rewards_of(self.model, groups))
            for entry in encoded:
                yield entry if isinstance(entry, Refused) else scored(entry, next(rewards))

            # raised only after the requests before it are answered
            if failure:
                raise failure

    def _encode(
        self, requests: Sequence[Request]
    ) -> tuple[list[EncodedRequest | Refused], DataError | None]:
        """The requests before the first bad one, and the error of the bad one."""
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
            f"--max-length {max_length}: the model has only {positions} positions. Use a length of"
            f" at most {positions}."
        )


def encode(encoder: Encoder, request: Request) -> EncodedRequest:
    """A request as the tokens that the model reads.

    Raises:
        TemplateRefusalError: If the chat template refuses the request.
        DataError: If the prompt is empty, or if the request is too long and `encoder` does not cut.
    """
    texts = {text: index for index, text in enumerate(dict.fromkeys(request.responses))}
    group = encoder.encode(request.prompt, list(texts), name=request.name, last=request.last)

    # different texts can have equal tokens, for instance after a cut
    indices: dict[bytes, int] = {}
    distinct: list[int] = []
    of_text: list[int] = []
    for number, suffix in enumerate(group.suffixes):
        index = indices.setdefault(np.asarray(suffix, dtype=np.int64).tobytes(), len(indices))
        if index == len(distinct):
            distinct.append(number)
        of_text.append(index)

    numbers = [texts[response] for response in request.responses]
    return EncodedRequest(
        request,
        group.at(distinct),
        [of_text[number] for number in numbers],
        [group.response_tokens[number] for number in numbers],
        [group.truncated[number] for number in numbers],
    )


def scored(encoded: EncodedRequest, rewards: Sequence[float]) -> Scored:
    """The answer for every response, from the rewards of the distinct sequences.

    Raises:
        NotFiniteError: If a reward is not finite.
    """
    for number, index in enumerate(encoded.indices):
        if not math.isfinite(rewards[index]):
            raise NotFiniteError(
                f"{encoded.request.name}: the reward of response {number} is {rewards[index]}. Use"
                " another checkpoint, or --dtype float32."
            )

    chosen = [rewards[index] for index in encoded.indices]
    return Scored(chosen, encoded.length_tokens, encoded.truncated)
