"""Backends of the server: they read texts as tokens, and an engine computes the rewards.
`LocalBackend` has a scorer behind a queue, `replicas` several processes behind the same queue, and
`upstream` other servers."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from transformers import PreTrainedTokenizerBase

from worldpm.model.encoder import ALWAYS_TOKENIZED_CHARACTERS, EncodedGroup, Encoder
from worldpm.scoring import scorer as scoring
from worldpm.scoring.explanations import Run
from worldpm.scoring.scorer import EncodedRequest, Request, Scorer
from worldpm.serving.batcher import (
    Batcher,
    BusyError,
    ExpiredError,
    RowStatistics,
    TooLargeError,
    Worker,
)

Result = TypeVar("Result")
Value = TypeVar("Value")
Text = str | Sequence[int]
"""A text that the client rendered with the chat template, or its token ids."""
EXPLAINED_AT_ONCE = 2
"""Number of requests for explanations that are computed at once. Others wait."""
CHARACTERS_A_TOKEN = 16
"""Characters per token of the model's limit. Longer texts are rejected unread, even with a cut,
because a cut also needs the whole text. Four characters per token are usual."""
CHARACTERS_A_QUEUED_TOKEN = 8
"""Characters of all texts of a request per token of the queue. Longer requests are rejected."""
CUT_TO_MODEL_LIMIT = -1
"""Value of `cut_to` that means the model's limit. vLLM uses the same number."""


class UnavailableError(Exception):
    """The upstream server does not answer."""


class BackendReply(NamedTuple):
    """Rewards of one request's responses, in order, and their cost."""

    rewards: list[float]
    """Logits."""
    length_tokens: list[int]
    """Tokens of each response, or of a whole text, before any cut."""
    truncated: list[bool]
    """Whether the prompt or the response was cut."""
    sequence_tokens: list[int]
    """Number of tokens of prompt and response that the model reads."""
    computed_tokens: int
    """Tokens that the model computed: a shared prompt counts once."""


class Piece(NamedTuple):
    """A token of a text."""

    id: int
    text: str
    special: bool
    start: int | None
    """Index of its first character; None for special tokens."""
    stop: int | None
    """Index after its last character."""


def _piece(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    number: int,
    ends: tuple[int, int],
    special: Collection[int],
) -> Piece:
    if number in special:
        return Piece(number, str(tokenizer.convert_ids_to_tokens(number)), True, None, None)
    return Piece(number, text[slice(*ends)], False, *ends)


class Engine(Protocol):
    """Computes rewards of tokens for many clients at once."""

    async def rewards(
        self, groups: Sequence[EncodedGroup], *, deadline: float
    ) -> list[list[float]]:
        """Rewards of each group's responses, in order. The deadline is on the monotonic clock.

        Raises:
            NotFiniteError: If a reward is not finite.
            BusyError, ExpiredError, TooLargeError: See `Batcher.rewards`.
            UnavailableError: If no upstream server answers.
        """

    def seconds_until_room(self, tokens: float = 0.0, *, coming: int = 0) -> int | None:
        """See `Batcher.seconds_until_room`; None if only another server knows its queue."""

    @property
    def can_work(self) -> bool:
        """Whether requests can be answered now."""

    async def run(self) -> None:
        """Compute until cancelled."""


class Backend:
    """Reads conversations and texts in a thread, and gives their tokens to an engine."""

    def __init__(
        self,
        encoder: Encoder,
        engine: Engine,
        *,
        queue_tokens: int,
        queue_wait: float = 0.0,
        on_stage: Callable[[str, float, RowStatistics | None], None],
    ) -> None:
        """If the engine is full, requests wait for up to `queue_wait` seconds."""
        self.encoder, self.engine = encoder, engine
        self._queue_tokens, self._queue_wait, self._on_stage = queue_tokens, queue_wait, on_stage
        self._being_read = 0
        # A tokenizer serves one thread at a time
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")

    async def conversations(
        self, requests: Sequence[Request], *, cut_to: int | None, deadline: float
    ) -> list[BackendReply]:
        """Rewards of requests, in order; a request without responses has an empty reply.

        Inputs over `cut_to` tokens of prompt and response are cut. With None, inputs over the
        model's limit are rejected. The deadline is on the monotonic clock.

        Raises:
            DataError: If a request cannot be read, or is too long and must not be cut. It is
                raised before anything is computed.
            NotFiniteError, BusyError, ExpiredError, TooLargeError, UnavailableError: See
                `Engine.rewards`.
        """

        def encode(encoder: Encoder) -> list[EncodedRequest]:
            return [scoring.encode(encoder, request) for request in requests]

        self._check_characters([text for request in requests for text in _texts(request)])
        # Encode all requests before computing any, so that a wrong request costs little
        encoded = await self._read(encode, cut_to, deadline)
        group_rewards = await self._rewards([request.group for request in encoded], deadline)
        return list(map(_reply, encoded, group_rewards))

    async def texts(
        self, texts: Sequence[Text], *, cut_to: int | None, deadline: float
    ) -> list[BackendReply]:
        """A reply with one reward for each text. Raises the errors of `conversations`."""
        self._check_characters([text for text in texts if isinstance(text, str)])
        groups = await self._read(lambda encoder: encoder.read_texts(texts), cut_to, deadline)
        group_rewards = await self._rewards(groups, deadline)

        # Texts with a common beginning share a group, but each text has its own reply
        replies: list[BackendReply] = []
        for group, rewards in zip(groups, group_rewards, strict=True):
            for text_group, reward in zip(group.apart, rewards, strict=True):
                request = Request(f"input {len(replies)}", (), ("",))
                lengths, truncated = [text_group.response_tokens[0]], [text_group.truncated[0]]
                encoded = EncodedRequest(request, text_group, [0], lengths, truncated)
                replies.append(_reply(encoded, [reward]))
        return replies

    async def tokens(self, text: str | Request, *, special: bool, deadline: float) -> list[int]:
        """The token ids of a text, or of a whole conversation, without a cut.

        `special` adds the special tokens that the tokenizer puts around a text.

        Raises:
            BusyError, ExpiredError, TooLargeError: See `Batcher.rewards`.
            DataError: If the chat template rejects the conversation.
        """
        self._check_characters([text] if isinstance(text, str) else _texts(text))
        if isinstance(text, str):
            tokenize = self.encoder.tokenizer.encode
            return await self._in_reader(
                partial(tokenize, text, add_special_tokens=special), deadline
            )

        # A cutting encoder checks no length, and `read` cuts nothing
        reading = partial(self._cutting(None).read, text.prompt, text.responses)
        sequences = await self._in_reader(reading, deadline)
        return sequences[0].ids

    async def pieces(
        self, texts: Sequence[str], *, special: bool, deadline: float
    ) -> list[list[Piece]]:
        """The tokens of texts with their places. Raises the errors of `tokens`."""
        # Their reply is far longer than the texts, so together they have the limit of one
        self._check_characters(["".join(texts)])

        def read() -> list[list[Piece]]:
            tokenizer = self.encoder.tokenizer
            encoded = tokenizer(
                list(texts), add_special_tokens=special, return_offsets_mapping=True, verbose=False
            )
            rows = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
            added = tokenizer.added_tokens_decoder.items()
            known = {number for number, token in added if token.special}
            return [
                [_piece(tokenizer, text, *token, known) for token in zip(ids, places, strict=True)]
                for text, ids, places in rows
            ]

        return await self._in_reader(read, deadline)

    async def text_of(
        self, ids: Sequence[int], *, deadline: float, without_special: bool = False
    ) -> str:
        """The text of token ids.

        Raises:
            BusyError, ExpiredError: See `Batcher.rewards`.
            DataError: If the tokenizer has no such id.
        """
        if not ids:
            return ""
        self.encoder.check_ids(ids, "tokens")

        def read() -> str:
            tokenizer = self.encoder.tokenizer
            return str(tokenizer.decode(list(ids), skip_special_tokens=without_special))

        return await self._in_reader(read, deadline)

    def seconds_until_room(self, tokens: float = 0.0, *, coming: int = 0) -> int | None:
        """Expected seconds, at least 1, until the queue has room for about this number of tokens,
        after `coming` requests that are not parsed yet; None if it has room."""
        return self.engine.seconds_until_room(tokens, coming=self._being_read + coming)

    async def run(self) -> None:
        """Compute until cancelled."""
        await self.engine.run()

    async def _rewards(self, groups: Sequence[EncodedGroup], deadline: float) -> list[list[float]]:
        return await self.engine.rewards(groups, deadline=deadline)

    def _cutting(self, max_length: int | None) -> Encoder:
        """The encoder that cuts inputs over its limits, or over `max_length` tokens."""
        return replace(self.encoder, limits=self.encoder.limits.within(max_length, cut=True))

    async def _read(
        self, encode: Callable[[Encoder], list[Result]], cut_to: int | None, deadline: float
    ) -> list[Result]:
        """Encode requests in the tokenizer's thread."""
        encoder = self.encoder
        if cut_to is not None:
            encoder = self._cutting(None if cut_to == CUT_TO_MODEL_LIMIT else cut_to)

        started = time.monotonic()
        groups = await self._in_reader(partial(encode, encoder), deadline)
        self._on_stage("read", time.monotonic() - started, None)
        return groups

    async def _in_reader(self, read: Callable[[], Result], deadline: float) -> Result:
        """The result of a call in the tokenizer's thread.

        A full queue rejects the call before any tokenizing, unless requests may wait for room.
        Calls that are cancelled or expire while they wait for the thread do not run.
        """
        seconds = self.seconds_until_room()
        if self._queue_wait <= 0 and seconds is not None:
            raise BusyError(seconds)

        self._being_read += 1
        try:
            return await before(
                deadline, asyncio.get_running_loop().run_in_executor(self._reader, read)
            )
        finally:
            self._being_read -= 1

    def _check_characters(self, texts: Sequence[str]) -> None:
        """Reject texts that are far too long.

        Raises:
            TooLargeError: If a text is too long, or all texts together are.
        """
        most_tokens = self.encoder.limits.max_length
        most = max(ALWAYS_TOKENIZED_CHARACTERS, CHARACTERS_A_TOKEN * most_tokens)
        longest = max(map(len, texts), default=0)
        if longest > most:
            raise TooLargeError(
                f"a text has {longest:,} characters. The model reads {most_tokens:,} tokens, and"
                f" texts over {most:,} characters are rejected even with a cut. Send less."
            )

        most_together = max(most, CHARACTERS_A_QUEUED_TOKEN * self._queue_tokens)
        together = sum(map(len, texts))
        if together > most_together:
            raise TooLargeError(
                f"the request has {together:,} characters, but at most {most_together:,} are"
                " accepted. Send less at once."
            )


class QueuedBackend(Backend):
    """Workers with the model, behind a queue."""

    def __init__(
        self,
        encoder: Encoder,
        workers: Sequence[Worker],
        *,
        row_tokens: int,
        queue_tokens: int,
        queue_wait: float = 0.0,
        on_stage: Callable[[str, float, RowStatistics | None], None],
    ) -> None:
        """If the queue is full, requests wait for up to `queue_wait` seconds."""
        self.batcher = Batcher(
            workers,
            row_tokens=row_tokens,
            queue_tokens=queue_tokens,
            queue_wait=queue_wait,
            on_row=lambda row: on_stage("row", row.seconds, row),
        )
        super().__init__(
            encoder,
            self.batcher,
            queue_tokens=queue_tokens,
            queue_wait=queue_wait,
            on_stage=on_stage,
        )
        self._row_tokens = row_tokens

    async def _rewards(self, groups: Sequence[EncodedGroup], deadline: float) -> list[list[float]]:
        """Rewards of each group.

        A group longer than a row is computed in parts, which repeat the prompt.
        """
        parts = [_parts(group, self._row_tokens) for group in groups]
        flat = [part for group_parts in parts for part in group_parts]
        part_rewards = iter(await self.batcher.rewards(flat, deadline=deadline))

        group_rewards: list[list[float]] = []
        for group_parts in parts:
            rewards: list[float] = []
            for _ in group_parts:
                rewards += next(part_rewards)
            group_rewards.append(rewards)
        return group_rewards


class LocalBackend(QueuedBackend):
    """A scorer in this process, behind a queue."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        row_tokens: int,
        queue_tokens: int,
        queue_wait: float = 0.0,
        on_stage: Callable[[str, float, RowStatistics | None], None],
    ) -> None:
        """If the queue is full, requests wait for up to `queue_wait` seconds."""
        super().__init__(
            scorer.encoder,
            [Worker(partial(scoring.rewards_of, scorer.model, row_tokens=row_tokens))],
            row_tokens=row_tokens,
            queue_tokens=queue_tokens,
            queue_wait=queue_wait,
            on_stage=on_stage,
        )
        self.scorer = scorer
        self._explainers = ThreadPoolExecutor(EXPLAINED_AT_ONCE, thread_name_prefix="explainer")

    async def explained(
        self, request: Request, work: Callable[[Run], Result], *, deadline: float
    ) -> Result:
        """The result of `work`, which explains a request in a separate thread.

        `work` gets a function that runs a piece of work with the model, between two rows.

        Raises:
            ExpiredError: If the deadline passed first.
            TooLargeError: If a text is far too long.
        """
        self._check_characters(_texts(request))
        abandoned = threading.Event()

        def run(piece: Callable[[], Value], /) -> Value:
            # A thread cannot be cancelled, so it stops itself before its next piece
            if abandoned.is_set() or time.monotonic() > deadline:
                raise ExpiredError
            return self.batcher.between_rows(piece)

        try:
            return await before(
                deadline, asyncio.get_running_loop().run_in_executor(self._explainers, work, run)
            )
        finally:
            # Also after a result, when it has no effect
            abandoned.set()


async def before(deadline: float, work: Awaitable[Result]) -> Result:
    """The result of the work, which is cancelled at the deadline.

    Raises:
        ExpiredError: If the deadline passed first.
    """
    try:
        # `timeout` takes a duration, and the deadline may have passed already
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await work
    except TimeoutError:
        raise ExpiredError from None


def _texts(request: Request) -> list[str]:
    """The contents and other texts of the prompt's messages, and the responses."""
    turns = [turn.content + turn.more for turn in request.prompt]
    return [*turns, *request.responses]


def _parts(group: EncodedGroup, row_tokens: int) -> list[EncodedGroup]:
    """The group in parts of at most `row_tokens` tokens. A response that is too long for this is a
    part alone."""
    part_indices: list[list[int]] = [[]]
    # Each part repeats the prompt
    tokens = len(group.prefix)
    for index, suffix in enumerate(group.suffixes):
        if part_indices[-1] and tokens + len(suffix) > row_tokens:
            part_indices.append([])
            tokens = len(group.prefix)
        part_indices[-1].append(index)
        tokens += len(suffix)

    return [group.at(indices) for indices in part_indices]


def _reply(encoded: EncodedRequest, rewards: Sequence[float]) -> BackendReply:
    """The reply to a request, whose group holds equal sequences only once."""
    scored = scoring.scored(encoded, rewards)
    return BackendReply(
        rewards=scored.rewards,
        length_tokens=scored.length_tokens,
        truncated=scored.truncated,
        sequence_tokens=encoded.sequence_tokens,
        computed_tokens=encoded.group.tokens,
    )
