"""What a reward rests on: attributions to tokens by integrated gradients, and what each sentence adds."""

import math
import re
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
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
    """With every word of prompt and response replaced by the pad token; the template's own tokens stay."""
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


Result = TypeVar("Result")
Steps = Generator[None, None, Result]
"""Work that pauses where other work with the model may go first."""


def finished(steps: Steps[Result]) -> Result:
    """The result of work that nothing interrupts."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            found: Result = stop.value
            return found


def of_tokens(scorer: Scorer, request: Request) -> Steps[TokenAttributions]:
    """Integrated gradients of the reward of a request's one response; Gauss-Legendre points are doubled until the sum comes out.

    Raises:
        DataError: If it is too long and the scorer does not cut.
        NotFiniteError: If the reward is not finite.

    Source: Sundararajan, Taly and Yan, arXiv 1703.01365, equation 1 and proposition 1 (completeness).
    """
    (whole,) = scorer.encoder.read(request.prompt, request.responses, name=request.name)
    sequence = scorer.encoder.fitted(whole, request.name)
    base, full = _ends(scorer, sequence)
    with torch.no_grad():
        reward, baseline = scorer.model.of_embeddings(torch.stack([full, base])).tolist()
    if not math.isfinite(reward - baseline):
        raise NotFiniteError(
            f"{request.name}: its reward is {reward}, and {baseline} without its words; the checkpoint or its dtype is unfit"
        )
    points = FIRST_POINTS
    while True:
        yield
        attributions = yield from _integrated(scorer, base, full, points)
        gap = reward - baseline - float(attributions.sum())
        if abs(gap) <= COMPLETE * max(abs(reward - baseline), 0.01) or points >= MOST_POINTS:
            break
        points *= 2
    values = attributions.tolist()
    prompt = [pair for start, end in sequence.prompt_words for pair in _texts(scorer, sequence.ids[start:end], values[start:end])]
    words = slice(sequence.prompt_end, sequence.response_end)
    return TokenAttributions(reward, baseline, prompt, _texts(scorer, sequence.ids[words], values[words]), gap, points)


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


def _integrated(scorer: Scorer, base: Tensor, full: Tensor, points: int) -> Steps[Tensor]:
    """The attribution of each token, shape (T,), float64."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    path = full - base
    total = torch.zeros(len(full), dtype=torch.float64, device=full.device)
    for start in range(0, points, POINTS_AT_ONCE):
        shares = torch.tensor((nodes[start : start + POINTS_AT_ONCE] + 1) / 2, dtype=full.dtype, device=full.device)
        at = (base + shares[:, None, None] * path).requires_grad_()
        with torch.enable_grad():
            (slopes,) = torch.autograd.grad(scorer.model.of_embeddings(at).sum(), at)
        own = torch.tensor(weights[start : start + POINTS_AT_ONCE] / 2, dtype=torch.float64, device=full.device)
        total += ((slopes.double() * path.double()).sum(dim=-1) * own[:, None]).sum(dim=0)
        yield
    return total


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


def of_sentences(scorer: Scorer, request: Request) -> Steps[list[Sentence]]:
    """What the reward of a request's one response loses without each sentence; the last part holds what comes after the 63rd.

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
        full, *others = next(scorer.score([request._replace(responses=[response, *without])])).rewards
        found += [Sentence(response[begin:end], full - other) for (begin, end), other in zip(own, others, strict=True)]
        yield
    return found


def _spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences stand, each with the white space after it; they cover the text."""
    starts = [0, *(match.end() for match in SENTENCE.finditer(text) if match.end() < len(text))][:MOST_SENTENCES]
    return list(zip(starts, [*starts[1:], len(text)], strict=True)) if text else []
