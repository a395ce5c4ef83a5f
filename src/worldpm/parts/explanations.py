"""What a reward rests on: attributions to tokens by integrated gradients, and what each sentence adds."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldpm.field.records import Message
from worldpm.parts import checkpoint
from worldpm.parts.batches import TokenSequence
from worldpm.parts.scorer import Request, Scorer

Json = dict[str, Any]
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
MOST_SENTENCES = 64
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


def of_tokens(scorer: Scorer, prompt: Sequence[Message], response: str, *, cut: bool = False) -> TokenAttributions:
    """Integrated gradients of one response's reward; Gauss-Legendre points are doubled until the sum comes out.

    Raises:
        DataError: If it is too long and cutting was not asked for.

    Source: Sundararajan, Taly and Yan, arXiv 1703.01365, equation 1 and proposition 1 (completeness).
    """
    sequence = _sequence(scorer, prompt, response, cut=cut)
    model, tokenizer, frame = scorer.model, scorer.encoder.tokenizer, scorer.encoder.frame
    pad = checkpoint.pad_token(tokenizer, frame) or frame.end_token or tokenizer.eos_token
    embed = model.backbone.get_input_embeddings()
    with torch.no_grad():
        ids = torch.tensor([sequence.ids], device=model.device)
        full = embed(ids)[0]
        words = torch.zeros(len(sequence.ids), dtype=torch.bool, device=full.device)
        for start, end in (*sequence.prompt_words, (sequence.prompt_end, sequence.response_end)):
            words[start:end] = True
        neutral = embed(torch.tensor([tokenizer.convert_tokens_to_ids(pad)], device=model.device))
        base = torch.where(words[:, None], neutral, full)
        reward, baseline = model.of_embeddings(torch.stack([full, base])).tolist()
    points = FIRST_POINTS
    while True:
        attributions = _integrated(scorer, base, full, points)
        gap = reward - baseline - float(attributions.sum())
        if abs(gap) <= COMPLETE * max(abs(reward - baseline), 0.01) or points >= MOST_POINTS:
            break
        points *= 2
    pairs = [(str(tokenizer.decode([token])), float(value)) for token, value in zip(sequence.ids, attributions.tolist(), strict=True)]
    prompt_pairs = [pair for start, end in sequence.prompt_words for pair in pairs[start:end]]
    return TokenAttributions(reward, baseline, prompt_pairs, pairs[sequence.prompt_end : sequence.response_end], gap, points)


def _integrated(scorer: Scorer, base: Tensor, full: Tensor, points: int) -> Tensor:
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
    return total


def _sequence(scorer: Scorer, prompt: Sequence[Message], response: str, *, cut: bool) -> TokenSequence:
    (sequence,) = scorer.encoder.read(prompt, [response], name="explanation")
    encoder = scorer.encoder if not cut else scorer.cutting().encoder
    return encoder.fitted(sequence, "explanation")


def of_sentences(scorer: Scorer, prompt: Sequence[Message], response: str, *, cut: bool = False) -> list[Sentence]:
    """What the reward loses without each sentence, all computed as one group; the last part holds what comes after the 63rd.

    Raises:
        DataError: If it is too long and cutting was not asked for.
    """
    spans = _spans(response)
    without = [response[:start] + response[end:] for start, end in spans]
    own = scorer.cutting() if cut else scorer
    full, *others = next(own.score([Request("explanation", prompt, [response, *without])])).rewards
    return [Sentence(response[start:end], full - other) for (start, end), other in zip(spans, others, strict=True)]


def _spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences stand, each with the white space after it; they cover the text."""
    starts = [0, *(match.end() for match in SENTENCE.finditer(text) if match.end() < len(text))][:MOST_SENTENCES]
    return list(zip(starts, [*starts[1:], len(text)], strict=True)) if text else []
