"""What computes rewards for the server: a scorer behind a queue. Another engine offers the same two
calls."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from worldpm.model.encoder import EncodedGroup, Encoder
from worldpm.scoring import scorer as scoring
from worldpm.scoring.explanations import Run
from worldpm.scoring.scorer import Request, Scored, Scorer
from worldpm.serving.batcher import Batcher, BusyError, ExpiredError, Ran

Result = TypeVar("Result")
Value = TypeVar("Value")
Text = str | Sequence[int]
"""What somebody else rendered, or token ids."""
EXPLAINED_AT_ONCE = 2
"""Requests for explanations that are under way at once; others wait."""
AS_MADE = -1
"""To be cut to as many tokens as the model was made for; vLLM's number for it."""


class UnavailableError(Exception):
    """What computes the rewards does not answer."""


class Answer(NamedTuple):
    """Rewards of one request's responses, in order, and what they cost."""

    rewards: list[float]
    length_tokens: list[int]
    """Tokens of each response's own words, or of a whole text, before any cut."""
    truncated: list[bool]
    sequence_tokens: list[int]
    """Tokens of prompt and response together, as the model reads them."""
    computed_tokens: int
    """Tokens really computed: the prompt once."""


class Engine(Protocol):
    """Turns requests into rewards for many clients at once."""

    async def conversations(
        self, requests: Sequence[Request], *, cut_to: int | None, deadline: float
    ) -> list[Answer]:
        """Answers in order; a request without responses has an empty one.

        What is longer than `cut_to` tokens of prompt and response is cut to them; without it, what
        is longer than the model was made for is refused.

        Raises:
            DataError: If one cannot be read, or is too long and cutting was not asked for: before
                anything is computed.
            NotFiniteError: If a reward is not finite.
            BusyError, ExpiredError, TooLargeError: As the batcher has it.
            UnavailableError: If what computes is elsewhere, and does not answer.
        """

    async def texts(
        self, texts: Sequence[Text], *, cut_to: int | None, deadline: float
    ) -> list[Answer]:
        """One answer, with one reward, for each text; raises as `conversations` does."""

    async def run(self) -> None:
        """Work, until cancelled."""


class LocalEngine:
    """A scorer on this machine."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        row_tokens: int,
        queue_tokens: int,
        on_stage: Callable[[str, float, Ran | None], None],
    ) -> None:
        self.scorer = scorer
        self._row_tokens, self._queue_tokens, self._on_stage = row_tokens, queue_tokens, on_stage
        self._explainers = ThreadPoolExecutor(EXPLAINED_AT_ONCE, thread_name_prefix="explainer")
        self._reader = ThreadPoolExecutor(
            1, thread_name_prefix="reader"
        )  # a tokenizer serves one thread at a time
        compute = partial(scoring.rewards_of, scorer.model, row_tokens=row_tokens)
        self.batcher = Batcher(
            compute,
            row_tokens=row_tokens,
            queue_tokens=queue_tokens,
            on_row=lambda ran: on_stage("row", ran.seconds, ran),
        )

    async def conversations(
        self, requests: Sequence[Request], *, cut_to: int | None, deadline: float
    ) -> list[Answer]:
        """As `Engine` has it."""
        groups = await self._read(
            lambda encoder: [scoring.encode(encoder, request) for request in requests],
            cut_to,
            deadline,
        )
        found = await self._rewards(groups, deadline)
        return [_answer(*one) for one in zip(requests, groups, found, strict=True)]

    async def texts(
        self, texts: Sequence[Text], *, cut_to: int | None, deadline: float
    ) -> list[Answer]:
        """As `Engine` has it."""
        groups = await self._read(lambda encoder: encoder.read_texts(texts), cut_to, deadline)
        found = await self._rewards(groups, deadline)
        answers: list[Answer] = []
        for group, rewards in zip(groups, found, strict=True):
            for one, reward in zip(group.apart, rewards, strict=True):
                answers.append(_answer(Request(f"input {len(answers)}", (), ("",)), one, [reward]))
        return answers

    async def explained(self, work: Callable[[Run], Result], *, deadline: float) -> Result:
        """What `work` returns, in a thread of its own; the pieces that it hands to its argument run
        between two rows of the model.

        Raises:
            ExpiredError: If the deadline passed before it was done.
        """
        left = threading.Event()

        def run(piece: Callable[[], Value], /) -> Value:
            if left.is_set() or time.monotonic() > deadline:
                raise ExpiredError
            return self.batcher.between_rows(piece)

        try:
            return await before(
                deadline, asyncio.get_running_loop().run_in_executor(self._explainers, work, run)
            )
        finally:
            left.set()

    async def _rewards(self, groups: Sequence[EncodedGroup], deadline: float) -> list[list[float]]:
        """Rewards of each group; one that is longer than a row is computed in parts, each with the
        prompt again."""
        parts = [part for group in groups for part in _parts(group, self._row_tokens)]
        found = iter(await self.batcher.rewards(parts, deadline=deadline))
        return [
            [reward for _ in _parts(group, self._row_tokens) for reward in next(found)]
            for group in groups
        ]

    async def tokens(self, text: str | Request, *, special: bool, deadline: float) -> list[int]:
        """The ids of a text, with the tokens that the tokenizer itself puts around it if `special`,
        or of a whole conversation, uncut.

        Raises:
            BusyError, ExpiredError: As the batcher has it.
            DataError: If the chat template refuses the conversation.
        """
        encoder = self.scorer.encoder
        if isinstance(text, str):
            return await self._in_reader(
                partial(encoder.tokenizer.encode, text, add_special_tokens=special), deadline
            )
        reading = partial(
            self.scorer.cutting().encoder.read, text.prompt, text.responses
        )  # which refuses no length, and cuts none
        return (await self._in_reader(reading, deadline))[0].ids

    async def run(self) -> None:
        """As `Engine` has it."""
        await self.batcher.run()

    async def _read(
        self, encode: Callable[[Encoder], list[EncodedGroup]], cut_to: int | None, deadline: float
    ) -> list[EncodedGroup]:
        """The groups, read in a thread."""
        encoder = (
            self.scorer
            if cut_to is None
            else self.scorer.cutting(None if cut_to == AS_MADE else cut_to)
        ).encoder
        started = time.monotonic()
        groups = await self._in_reader(partial(encode, encoder), deadline)
        self._on_stage("read", time.monotonic() - started, None)
        return groups

    async def _in_reader(self, read: Callable[[], Result], deadline: float) -> Result:
        """What the thread of the tokenizer returns. A full queue refuses before any reading, and
        what waits there too long, or whose client left, is not read at all."""
        if self.batcher.waiting_tokens >= self._queue_tokens:
            raise BusyError(self.batcher.seconds_to_wait())
        return await before(
            deadline, asyncio.get_running_loop().run_in_executor(self._reader, read)
        )


async def before(deadline: float, work: Awaitable[Result]) -> Result:
    """The result, if it is there in time; else the work is cancelled.

    Raises:
        ExpiredError: If it is not.
    """
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await work
    except TimeoutError:
        raise ExpiredError from None


def _parts(group: EncodedGroup, row_tokens: int) -> list[EncodedGroup]:
    """The group in parts of at most so many tokens, or of one response."""
    runs: list[list[int]] = [[]]
    tokens = len(group.prefix)
    for place, suffix in enumerate(group.suffixes):
        if runs[-1] and tokens + len(suffix) > row_tokens:
            runs.append([])
            tokens = len(group.prefix)
        runs[-1].append(place)
        tokens += len(suffix)
    return [
        replace(
            group,
            suffixes=[group.suffixes[i] for i in run],
            response_tokens=[group.response_tokens[i] for i in run],
            truncated=[group.truncated[i] for i in run],
        )
        for run in runs
    ]


def _answer(request: Request, group: EncodedGroup, rewards: Sequence[float]) -> Answer:
    if not request.responses:
        return Answer([], [], [], [], 0)
    found: Scored = scoring.scored(request, group, rewards)
    places = {response: place for place, response in enumerate(dict.fromkeys(request.responses))}
    lengths = [
        len(group.prefix) + len(group.suffixes[places[response]]) for response in request.responses
    ]
    return Answer(*found, lengths, group.tokens)
