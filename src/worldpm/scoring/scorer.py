"""The one road from text to reward. Training's validation, evaluation, scoring and serving all take
it."""

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
from worldpm.storage import folders

ROW_TOKENS = 2048
"""A row of groups is filled up to so many tokens; on CPUs longer rows are slower, and take more
memory."""
GROUPS_AT_ONCE = 64
"""So many groups are sorted by length into rows together; it bounds the memory of a stream."""


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
    model: RewardModel, groups: Sequence[EncodedGroup], *, row_tokens: int = ROW_TOKENS
) -> list[list[float]]:
    """Rewards of each group's responses, in order, without gradients; a group without responses has
    none."""
    found: list[list[float]] = [[] for _ in groups]
    full = [place for place, group in enumerate(groups) if group.suffixes]
    with torch.no_grad():
        for row in pack([groups[place].tokens for place in full], row_tokens=row_tokens):
            members = [full[index] for index in row]
            rewards = model([groups[place] for place in members]).tolist()
            for place in members:
                count = len(groups[place].suffixes)
                found[place], rewards = rewards[:count], rewards[count:]
    return found


class Scorer:
    """A loaded checkpoint that turns text into rewards.

    A reward depends on the prompt and its response alone, up to rounding (about 1e-6 in float32):
    not on the batch, the padding or the other responses.
    """

    def __init__(self, model: RewardModel, encoder: Encoder) -> None:
        self.model = model
        self.encoder = encoder

    @classmethod
    def load(
        cls,
        place: Path | str | Source,
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
        CPU. `across_devices` spreads a model that is too large for one.

        Raises:
            CheckpointError: If the folder is not a reward model, or lacks a part.
            ConfigError: If it is not finished, if longer input is asked for than its positions
                reach, or if there is no such device.
            DataError: If a file of it was altered.
        """
        target = device_of(device)
        source = (
            place
            if isinstance(place, Source)
            else sources.find(place, revision=revision, remote_code=remote_code)
        )
        if (source.folder / folders.MANIFEST).is_file():
            folders.verified_files(source.folder)
        model = checkpoint.load(source, dtype=dtype, across_devices=across_devices)
        encoder = checkpoint.encoder_of(source, model.backbone.config)
        limits = encoder.limits.within(max_length, cut=cut)
        if limits.max_length > (positions := checkpoint.positions_of(model.backbone.config)):
            raise ConfigError(
                f"--max-length {max_length}: the model was made for {positions} positions; ask for"
                " at most that"
            )
        encoder = replace(encoder, limits=limits)
        return cls(model if across_devices else model.to(target), encoder)

    @classmethod
    def of(cls, place: Path | str | Source, options: ModelOptions) -> Self:
        """The same by the options of a verb."""
        if not isinstance(place, Source):
            place = sources.find(place, revision=options.revision, remote_code=options.remote_code)
        return cls.load(
            place,
            cut=options.cut,
            max_length=options.max_length,
            dtype=torch_dtype(options.dtype),
            device=options.device,
            across_devices=options.across_devices,
        )

    def cutting(self, max_length: int | None = None) -> Self:
        """The same scorer, which cuts what is too long: by its own limits, or to `max_length`
        tokens."""
        return type(self)(
            self.model,
            replace(self.encoder, limits=self.encoder.limits.within(max_length, cut=True)),
        )

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
            rewards = rewards_of(self.model, groups)
            for request, group, found in zip(chunk, groups, rewards, strict=False):
                yield scored(request, group, found)
            if failure:
                raise failure

    def _encode(self, requests: Sequence[Request]) -> tuple[list[EncodedGroup], DataError | None]:
        """The requests up to the first that is too long, and what is wrong with that."""
        groups: list[EncodedGroup] = []
        for request in requests:
            try:
                groups.append(encode(self.encoder, request))
            except DataError as error:
                return groups, error
        return groups, None


def encode(encoder: Encoder, request: Request) -> EncodedGroup:
    """The group that a request's rewards are computed from: equal responses stand once.

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
    places = {response: place for place, response in enumerate(dict.fromkeys(request.responses))}
    order = [places[response] for response in request.responses]
    for number, place in enumerate(order):
        if not math.isfinite(rewards[place]):
            raise NotFiniteError(
                f"{request.name}: the reward of response {number} is {rewards[place]}; the"
                " checkpoint or its dtype is unfit"
            )
    return Scored(
        [rewards[i] for i in order],
        [group.response_tokens[i] for i in order],
        [group.truncated[i] for i in order],
    )
