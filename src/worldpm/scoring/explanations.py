"""Explanations of rewards: attributions to tokens by integrated gradients, and the contribution of
each sentence."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldpm.errors import NotFiniteError
from worldpm.model import checkpoint
from worldpm.model.encoder import TokenSequence
from worldpm.scoring.scorer import Request, Scorer
from worldpm.stats.precision import widest_float

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
MOST_SENTENCES, SENTENCES_AT_ONCE = 64, 8
LARGEST_GAP = 0.01
"""The largest share of the reward difference that attributions may miss; above it, the integral is
computed with more points."""
FIRST_POINTS, MOST_POINTS, POINTS_AT_ONCE = 16, 256, 8


class TokenAttributions(NamedTuple):
    """A reward as a sum: the baseline's reward, plus an attribution for each token."""

    reward: float
    """In logits."""
    baseline_reward: float
    """The reward if the pad token replaces every token of prompt and response. The tokens of the
    template stay."""
    prompt: list[tuple[str, float]]
    """Token and attribution in logits, in order."""
    response: list[tuple[str, float]]
    """Token and attribution in logits, in order."""
    gap: float
    """Reward minus baseline reward minus all attributions; 0 if the integral is exact."""
    points: int
    """Number of points at which the gradient was computed."""


class Sentence(NamedTuple):
    """A part of a response, and its contribution to the reward."""

    text: str
    adds: float
    """Reward with the part minus reward without it, in logits."""


Value = TypeVar("Value")


class Run(Protocol):
    """Runs a piece of work with the model: at once, or, in a server, between rows of other
    requests."""

    def __call__(self, work: Callable[[], Value], /) -> Value:
        """Run the work, and return its result."""


class _Path(NamedTuple):
    """The straight line from the baseline's embeddings to the text's, each of shape (T, width)."""

    base: Tensor
    full: Tensor


class _Integral(NamedTuple):
    """An integral of the gradient along a path."""

    attributions: Tensor
    """Attribution of each token, in logits, shape (T,), float64."""
    gap: float
    """Reward difference minus the sum of the attributions."""
    points: int


def at_once(work: Callable[[], Value], /) -> Value:
    """Run the work in the caller's thread."""
    return work()


def of_tokens(scorer: Scorer, request: Request, *, run: Run = at_once) -> TokenAttributions:
    """Integrated gradients of the reward of a request's only response.

    Raises:
        DataError: If the request is too long and the scorer does not cut.
        NotFiniteError: If the reward is not finite.

    Source: Sundararajan, Taly and Yan, arXiv 1703.01365, equation 1 and proposition 1
    (completeness).
    """
    sequence = run(partial(_sequence, scorer, request))
    path = run(partial(_path, scorer, sequence))
    reward, baseline = run(partial(_rewards, scorer, torch.stack([path.full, path.base])))
    if not math.isfinite(reward - baseline):
        raise NotFiniteError(
            f"{request.name}: its reward is {reward}, and {baseline} with its tokens replaced by"
            " the pad token. Use another checkpoint, or --dtype float32."
        )

    integral = _complete_integral(scorer, path, reward - baseline, run)
    values = integral.attributions.tolist()
    prompt = []
    for start, end in sequence.prompt_words:
        prompt += _texts(scorer, sequence.ids[start:end], values[start:end])
    response = slice(sequence.prompt_end, sequence.response_end)
    return TokenAttributions(
        reward,
        baseline,
        prompt=prompt,
        response=_texts(scorer, sequence.ids[response], values[response]),
        gap=integral.gap,
        points=integral.points,
    )


def _sequence(scorer: Scorer, request: Request) -> TokenSequence:
    """The tokens of a request with one response, within the scorer's limits."""
    (sequence,) = scorer.encoder.read(
        request.prompt, request.responses, name=request.name, last=request.last
    )
    return scorer.encoder.fitted(sequence, request.name)


def _rewards(scorer: Scorer, embeddings: Tensor) -> list[float]:
    with torch.no_grad():
        rewards: list[float] = scorer.model.of_embeddings(embeddings).tolist()
    return rewards


def _path(scorer: Scorer, sequence: TokenSequence) -> _Path:
    """The path from the baseline, where the pad token replaces the text, to the text."""
    tokenizer, frame, device = scorer.encoder.tokenizer, scorer.encoder.frame, scorer.model.device
    pad = checkpoint.pad_token(tokenizer, frame) or frame.end_token or tokenizer.eos_token
    embed = scorer.model.backbone.get_input_embeddings()
    with torch.no_grad():
        full = embed(torch.tensor([sequence.ids], device=device))[0]
        # one embedding, broadcast over all positions of the text
        neutral = embed(torch.tensor([tokenizer.convert_tokens_to_ids(pad)], device=device))

    is_word = torch.zeros(len(sequence.ids), dtype=torch.bool, device=full.device)
    for start, end in (*sequence.prompt_words, (sequence.prompt_end, sequence.response_end)):
        is_word[start:end] = True
    return _Path(torch.where(is_word[:, None], neutral, full), full)


def _complete_integral(scorer: Scorer, path: _Path, difference: float, run: Run) -> _Integral:
    """The integral, with its number of points doubled until the attributions sum to the reward
    difference."""
    # a difference near 0 need not be matched exactly
    largest_gap = LARGEST_GAP * max(abs(difference), 0.01)

    points = FIRST_POINTS
    while True:
        attributions = _integrated(scorer, path, points, run)
        gap = difference - float(attributions.sum())
        if abs(gap) <= largest_gap or points >= MOST_POINTS:
            return _Integral(attributions, gap, points)
        points *= 2


def _integrated(scorer: Scorer, path: _Path, points: int, run: Run) -> Tensor:
    """The attribution of each token by Gauss-Legendre quadrature, shape (T,), in the device's
    widest float type."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    shares, weights = (nodes + 1) / 2, weights / 2  # from -1..1 to 0..1
    device = path.full.device
    total = torch.zeros(len(path.full), dtype=widest_float(device), device=device)
    # a few points at a time, so that a server can compute rows of other requests in between
    for start in range(0, points, POINTS_AT_ONCE):
        part = slice(start, start + POINTS_AT_ONCE)
        total += run(partial(_weighted_slopes, scorer, path, shares[part], weights[part]))
    return total


def _weighted_slopes(
    scorer: Scorer, path: _Path, shares: NDArray[np.float64], weights: NDArray[np.float64]
) -> Tensor:
    """Weighted sum over some points of the path, for the integral of each token, shape (T,), in the
    device's widest float type."""
    direction = path.full - path.base
    device = path.full.device
    along = torch.tensor(shares, dtype=path.full.dtype, device=device)
    points = (path.base + along[:, None, None] * direction).requires_grad_()
    # one backward pass for all points, because a reward depends on its row alone
    with torch.enable_grad():
        (slopes,) = torch.autograd.grad(scorer.model.of_embeddings(points).sum(), points)

    wide = widest_float(device)
    by_point = (slopes.to(wide) * direction.to(wide)).sum(dim=-1)
    point_weights = torch.tensor(weights, dtype=wide, device=device)
    return (by_point * point_weights[:, None]).sum(dim=0)


def _texts(scorer: Scorer, ids: Sequence[int], values: Sequence[float]) -> list[tuple[str, float]]:
    """Tokens as text, with their values. Tokens that share a character make one entry."""
    texts: list[tuple[str, float]] = []
    pending: list[int] = []
    total = 0.0
    for index, (token, value) in enumerate(zip(ids, values, strict=True)):
        pending.append(token)
        total += value
        text = str(scorer.encoder.tokenizer.decode(pending))
        # a final replacement character: the last bytes are the start of a character
        if not text.endswith("\ufffd") or index == len(ids) - 1:
            texts.append((text, total))
            pending, total = [], 0.0

    return texts


def of_sentences(scorer: Scorer, request: Request, *, run: Run = at_once) -> list[Sentence]:
    """The drop of the reward when each sentence is removed from a request's only response. The last
    part holds all text after the 63rd sentence.

    Raises:
        DataError: If the request is too long and the scorer does not cut.
        NotFiniteError: If a reward is not finite.
    """
    (response,) = request.responses
    spans = _spans(response)
    sentences: list[Sentence] = []

    for index in range(0, len(spans), SENTENCES_AT_ONCE):
        chunk = spans[index : index + SENTENCES_AT_ONCE]
        shortened = [response[:start] + response[end:] for start, end in chunk]
        # the full response is in every chunk, so that differences are between rewards of one group
        responses = [response, *shortened]
        full, *without = run(partial(_scored, scorer, request._replace(responses=responses)))
        for (start, end), reward in zip(chunk, without, strict=True):
            sentences.append(Sentence(response[start:end], full - reward))
    return sentences


def _scored(scorer: Scorer, request: Request) -> list[float]:
    return scorer.answer(request).rewards


def _spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, with the white space after it. Together they cover the
    text."""
    if not text:
        return []

    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    starts = [0, *(end for end in ends if end < len(text))][:MOST_SENTENCES]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))
