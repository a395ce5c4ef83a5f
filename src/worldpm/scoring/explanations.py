"""What a reward rests on: attributions to tokens by integrated gradients, and what each sentence
adds."""

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

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
MOST_SENTENCES, SENTENCES_AT_ONCE = 64, 8
COMPLETE = 0.01
"""The share of the explained difference that attributions may miss before more points are taken."""
FIRST_POINTS, MOST_POINTS, POINTS_AT_ONCE = 16, 256, 8


class TokenAttributions(NamedTuple):
    """The reward as a sum: that of the baseline, plus what each token adds."""

    reward: float
    baseline_reward: float
    """With every word of prompt and response replaced by the pad token; the template's own tokens
    stay."""
    prompt: list[tuple[str, float]]
    """Token and attribution in logits, in order."""
    response: list[tuple[str, float]]
    gap: float
    """Reward minus baseline minus all attributions: 0 if the integral is exact."""
    points: int
    """At which the gradient was taken."""


class Sentence(NamedTuple):
    """A part of a response and what it adds."""

    text: str
    adds: float
    """Reward with it minus reward without it, in logits."""


Value = TypeVar("Value")


class Run(Protocol):
    """How a piece of work with the model is run: at once, or in a server between two rows of other
    requests."""

    def __call__(self, work: Callable[[], Value], /) -> Value:
        """What the work returns."""


def at_once(work: Callable[[], Value], /) -> Value:
    """Run the work here and now."""
    return work()


def of_tokens(scorer: Scorer, request: Request, *, run: Run = at_once) -> TokenAttributions:
    """Integrated gradients of the reward of a request's one response.

    Gauss-Legendre points are doubled until the sum of the attributions agrees with the difference
    that they explain.

    Raises:
        DataError: If it is too long and the scorer does not cut.
        NotFiniteError: If the reward is not finite.

    Source: Sundararajan, Taly and Yan, arXiv 1703.01365, equation 1 and proposition 1
    (completeness).
    """
    sequence = run(partial(_sequence, scorer, request))
    base, full = run(partial(_ends, scorer, sequence))
    reward, baseline = run(partial(_rewards, scorer, torch.stack([full, base])))
    if not math.isfinite(reward - baseline):
        raise NotFiniteError(
            f"{request.name}: its reward is {reward}, and {baseline} without its words; the"
            " checkpoint or its dtype is unfit"
        )
    points = FIRST_POINTS
    while True:
        attributions = _integrated(scorer, base, full, points, run)
        gap = reward - baseline - float(attributions.sum())
        if abs(gap) <= COMPLETE * max(abs(reward - baseline), 0.01) or points >= MOST_POINTS:
            break
        points *= 2
    values = attributions.tolist()
    prompt = [
        pair
        for start, end in sequence.prompt_words
        for pair in _texts(scorer, sequence.ids[start:end], values[start:end])
    ]
    words = slice(sequence.prompt_end, sequence.response_end)
    return TokenAttributions(
        reward, baseline, prompt, _texts(scorer, sequence.ids[words], values[words]), gap, points
    )


def _sequence(scorer: Scorer, request: Request) -> TokenSequence:
    """The tokens of a request with one response, within the scorer's limits."""
    (whole,) = scorer.encoder.read(request.prompt, request.responses, name=request.name)
    return scorer.encoder.fitted(whole, request.name)


def _rewards(scorer: Scorer, embeddings: Tensor) -> list[float]:
    with torch.no_grad():
        rewards: list[float] = scorer.model.of_embeddings(embeddings).tolist()
    return rewards


def _ends(scorer: Scorer, sequence: TokenSequence) -> tuple[Tensor, Tensor]:
    """The embeddings of the baseline and of the text, shape (T, width)."""
    tokenizer, frame, device = scorer.encoder.tokenizer, scorer.encoder.frame, scorer.model.device
    pad = checkpoint.pad_token(tokenizer, frame) or frame.end_token or tokenizer.eos_token
    embed = scorer.model.backbone.get_input_embeddings()
    with torch.no_grad():
        full = embed(torch.tensor([sequence.ids], device=device))[0]
        neutral = embed(torch.tensor([tokenizer.convert_tokens_to_ids(pad)], device=device))
    words = torch.zeros(len(sequence.ids), dtype=torch.bool, device=full.device)
    for start, end in (*sequence.prompt_words, (sequence.prompt_end, sequence.response_end)):
        words[start:end] = True
    return torch.where(words[:, None], neutral, full), full


def _integrated(scorer: Scorer, base: Tensor, full: Tensor, points: int, run: Run) -> Tensor:
    """The attribution of each token, shape (T,), float64."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    shares, weights = (nodes + 1) / 2, weights / 2  # from -1..1 to 0..1
    total = torch.zeros(len(full), dtype=torch.float64, device=full.device)
    for start in range(0, points, POINTS_AT_ONCE):
        part = slice(start, start + POINTS_AT_ONCE)
        total += run(partial(_weighted_slopes, scorer, base, full, shares[part], weights[part]))
    return total


def _weighted_slopes(
    scorer: Scorer,
    base: Tensor,
    full: Tensor,
    shares: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> Tensor:
    """What some points of the path add to the integral of each token, shape (T,), float64."""
    path = full - base
    along = torch.tensor(shares, dtype=full.dtype, device=full.device)
    points = (base + along[:, None, None] * path).requires_grad_()
    with torch.enable_grad():
        (slopes,) = torch.autograd.grad(scorer.model.of_embeddings(points).sum(), points)
    own = torch.tensor(weights, dtype=torch.float64, device=full.device)
    return ((slopes.double() * path.double()).sum(dim=-1) * own[:, None]).sum(dim=0)


def _texts(scorer: Scorer, ids: Sequence[int], values: Sequence[float]) -> list[tuple[str, float]]:
    """Tokens as text, with their values; those that share a character stand together."""
    found: list[tuple[str, float]] = []
    held: list[int] = []
    value = 0.0
    for place, (token, own) in enumerate(zip(ids, values, strict=True)):
        held.append(token)
        value += own
        text = str(scorer.encoder.tokenizer.decode(held))
        if not text.endswith("\ufffd") or place == len(ids) - 1:
            found.append((text, value))
            held, value = [], 0.0
    return found


def of_sentences(scorer: Scorer, request: Request, *, run: Run = at_once) -> list[Sentence]:
    """What the reward of a request's one response loses without each sentence; the last part holds
    what comes after the 63rd.

    Raises:
        DataError: If it is too long and the scorer does not cut.
        NotFiniteError: If a reward is not finite.
    """
    (response,) = request.responses
    spans = _spans(response)
    found: list[Sentence] = []
    for start in range(0, len(spans), SENTENCES_AT_ONCE):
        own = spans[start : start + SENTENCES_AT_ONCE]
        without = [response[:begin] + response[end:] for begin, end in own]
        full, *others = run(
            partial(_scored, scorer, request._replace(responses=[response, *without]))
        )
        found += [
            Sentence(response[begin:end], full - other)
            for (begin, end), other in zip(own, others, strict=True)
        ]
    return found


def _scored(scorer: Scorer, request: Request) -> list[float]:
    return next(scorer.score([request])).rewards


def _spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences stand, each with the white space after it; they cover the text."""
    starts = [0, *(match.end() for match in SENTENCE.finditer(text) if match.end() < len(text))][
        :MOST_SENTENCES
    ]
    return list(zip(starts, [*starts[1:], len(text)], strict=True)) if text else []
