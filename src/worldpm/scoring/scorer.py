"""Text to rewards: the only such code, used by validation in training, evaluation, scoring and
serving."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import torch

from worldpm.errors import ConfigError, DataError, NotFiniteError
from worldpm.model import checkpoint, sources
from worldpm.model.devices import device_of, torch_dtype
from worldpm.model.encoder import EncodedGroup, Encoder
from worldpm.model.packing import pack
from worldpm.model.reward_model import RewardModel
from worldpm.model.sources import Source
from worldpm.options.shared import ModelOptions
from worldpm.records import Message
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
        across_devices: bool = False,
    ) -> Self:
        """The reward model in a folder or a hub repository.

        Inputs over the limit are refused unless `cut`. `max_length`, in tokens, defaults to the
        checkpoint's, `dtype` to that of its weights, and `device` to the first GPU, or else the
        CPU. `across_devices` spreads a model that is too large for one device.

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
            source = sources.find(source, revision=revision, remote_code=remote_code)
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
            source = sources.find(
                source, revision=options.revision, remote_code=options.remote_code
            )

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

    def rewards(self, prompt: str | Sequence[Message], responses: Sequence[str]) -> list[float]:
        """The reward of each response to one prompt, in logits, in order; a text prompt is one user
        message.

        Raises:
            DataError: If the input is longer than the checkpoint allows and cutting was not asked
                for.
            NotFiniteError: If a reward is not finite.
        """
        messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        return next(self.score([Request("input", messages, responses)])).rewards

    def score(self, requests: Iterable[Request]) -> Iterator[Scored]:
        """The rewards of each request, in order, streamed: memory does not grow with their number.

        Raises:
            DataError: If a request is too long and cutting was not asked for; those before it were
                answered.
            NotFiniteError: If a reward is not finite; the message names the request.
        """
        stream = iter(requests)
        while chunk := list(islice(stream, GROUPS_AT_ONCE)):
            groups, failure = self._encode(chunk)
            # not strict: after a bad request there are fewer groups
            answers = zip(chunk, groups, rewards_of(self.model, groups), strict=False)
            for request, group, rewards in answers:
                yield scored(request, group, rewards)

            # the requests before the failure are answered first
            if failure:
                raise failure

    def _encode(self, requests: Sequence[Request]) -> tuple[list[EncodedGroup], DataError | None]:
        """The groups of the requests up to the first bad one, and the error of that."""
        groups: list[EncodedGroup] = []
        for request in requests:
            try:
                groups.append(encode(self.encoder, request))
            except DataError as error:
                return groups, error
        return groups, None


def _check_positions(max_length: int, positions: int) -> None:
    if max_length > positions:
        raise ConfigError(
            f"--max-length {max_length}: the model was made for {positions} positions; ask for"
            " at most that"
        )


def encode(encoder: Encoder, request: Request) -> EncodedGroup:
    """The group that a request's rewards are computed from, equal responses once.

    Raises:
        DataError: If the prompt is empty, its template refuses it, or it is too long and cutting
            was not asked for.
    """
    return encoder.encode(request.prompt, list(dict.fromkeys(request.responses)), name=request.name)


def scored(request: Request, group: EncodedGroup, rewards: Sequence[float]) -> Scored:
    """The answer for every response; equal responses have equal rewards to the last bit, so a tie
    is a tie.

    Raises:
        NotFiniteError: If a reward is not finite.
    """
    # the same order as in `encode`
    unique = {response: index for index, response in enumerate(dict.fromkeys(request.responses))}
    indices = [unique[response] for response in request.responses]
    for number, index in enumerate(indices):
        if not math.isfinite(rewards[index]):
            raise NotFiniteError(
                f"{request.name}: the reward of response {number} is {rewards[index]}; the"
                " checkpoint or its dtype is unfit"
            )

    return Scored(
        [rewards[i] for i in indices],
        [group.response_tokens[i] for i in indices],
        [group.truncated[i] for i in indices],
    )
