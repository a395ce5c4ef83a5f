"""Every loss and accuracy formula of preferences. Rewards and margins are logits; losses are nats
per pair.

Source: Bradley and Terry 1952, `P(chosen over rejected) = sigmoid(reward_chosen -
reward_rejected)`.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worldpm.stats.precision import widest_float


class Pairs(NamedTuple):
    """The preferences of a row, each tensor of shape `(pairs,)`."""

    chosen: Tensor
    """Indices into the row's rewards."""
    rejected: Tensor
    """Indices into the row's rewards."""
    strength: Tensor
    """Vote or rating gap, above 0."""
    probability: Tensor
    """Probability that chosen is truly better, 0.5 to 1."""
    weight: Tensor
    """Weight of the pair in a sum or mean, at least 0."""


class Objective(NamedTuple):
    """The loss that training minimizes; the default is the Bradley-Terry loss of WorldPM's equation
    2."""

    loss: Literal["bradley-terry", "plackett-luce"] = "bradley-terry"
    """Compare pairs, or compare each response with all that it is preferred to at once."""
    target_margin: float = 0.0
    """Logits of margin required at a strength of e - 1 = 1.72, growing with its logarithm."""
    label_smoothing: float = 0.0
    """Share of labels that are assumed to be random, 0 to 1."""
    centring: float = 0.0
    """Coefficient of the penalty that keeps rewards around 0."""


def objective_nats(rewards: Tensor, pairs: Pairs, objective: Objective) -> Tensor:
    """The weighted sum of the training loss over a row's pairs, not normalized; 0 for a row without
    pairs.

    `rewards` has shape `(responses,)`. NaN rewards give NaN.
    """
    if objective.loss == "plackett-luce":
        total = plackett_luce_nats(rewards, pairs)
    else:
        row_margins = margins(rewards, pairs.chosen, pairs.rejected)
        targets = target_margins(pairs.strength, objective.target_margin)
        labels = smoothed(pairs.probability, objective.label_smoothing)
        total = (losses_nats(row_margins - targets, labels) * pairs.weight).sum()

    if objective.centring:
        penalties = centring_penalties(rewards, pairs.chosen, pairs.rejected)
        total = total + objective.centring * (penalties * pairs.weight).sum()

    return total


def margins(rewards: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Reward of the chosen minus reward of the rejected response, shape `(pairs,)`.

    `rewards` has shape `(responses,)`; `chosen` and `rejected` are indices into it, shape
    `(pairs,)`.
    """
    return rewards[chosen] - rewards[rejected]


def losses_nats(margins: Tensor, probability: Tensor) -> Tensor:
    """Bradley-Terry loss of each pair, shape `(pairs,)`, at least 0; a coin flip (margin 0) costs
    ln 2 = 0.693.

    `-p log sigmoid(m) - (1 - p) log sigmoid(-m)`, where p, 0.5 to 1, is the probability that chosen
    is truly better. With a target margin t, m is the margin minus t. A margin of NaN gives NaN.

    Source: WorldPM, arXiv 2505.10527, equation 2, with the label made soft.
    """
    # -log sigmoid(m) = softplus(-m), which neither overflows nor loses digits for large margins.
    loss_if_right = functional.softplus(-margins)
    loss_if_wrong = functional.softplus(margins)
    return probability * loss_if_right + (1 - probability) * loss_if_wrong


def target_margins(strength: Tensor, scale: float) -> Tensor:
    """`scale ln(1 + strength)`, in logits: a vote gap of 100 requires 4.6 times the margin of a gap
    of e - 1, not 58 times.

    Source: Llama 2, arXiv 2307.09288, equation 2, with a step function of the rating in place of
    the logarithm.
    """
    return scale * torch.log1p(strength)


def smoothed(probability: Tensor, share: float) -> Tensor:
    """The label if a share of all labels is random: `(1 - share) p + share / 2`.

    Source: Szegedy et al., arXiv 1512.00567, section 7, for two classes.
    """
    return (1 - share) * probability + share / 2


def centring_penalties(rewards: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """`(reward chosen + reward rejected)^2` of each pair, shape `(pairs,)`. Without this penalty
    the loss does not determine the mean reward of a prompt.

    Source: Eisenstein et al., arXiv 2312.09244, equation 2.
    """
    return (rewards[chosen] + rewards[rejected]).square()


def plackett_luce_nats(rewards: Tensor, pairs: Pairs) -> Tensor:
    """Weighted sum over responses i of `-log(exp r_i / (exp r_i + sum of exp r_j))`, where j are
    the responses that i is preferred to.

    For a full ranking these are the stages of Plackett and Luce. Responses that tie are not
    compared, and labels are assumed to be certain. The weight of a stage is the sum of its pairs'
    weights, so two responses give the Bradley-Terry loss, and the unit is nats per pair. A pair
    that is listed twice has twice the weight and is compared once.

    Source: Plackett 1975, Luce 1959; as a loss ListMLE, Xia et al. 2008.
    """
    responses = rewards.numel()

    # One integer a pair, so that `unique` merges pairs that are listed twice.
    codes = pairs.chosen * responses + pairs.rejected
    unique_codes, code_of_pair = torch.unique(codes, return_inverse=True)
    weight = torch.zeros(unique_codes.numel(), dtype=pairs.weight.dtype, device=rewards.device)
    weight = weight.index_add(0, code_of_pair, pairs.weight)

    # A row without responses has no codes to decode, but torch would still divide by 0.
    base = max(1, responses)
    chosen, rejected = unique_codes // base, unique_codes % base
    pair_margins = margins(rewards, chosen, rejected)

    # The loss of stage i is ln(1 + sum of exp(-margin)) over its pairs: a logsumexp of 0 and the
    # negative margins. The largest of them is subtracted first, so that exp cannot overflow. It
    # cancels in the result, so it needs no gradient.
    largest = torch.zeros(responses, dtype=pair_margins.dtype, device=pair_margins.device)
    largest = largest.scatter_reduce(0, chosen, -pair_margins.detach(), reduce="amax")
    sums = torch.exp(-largest).index_add(0, chosen, torch.exp(-pair_margins - largest[chosen]))
    stage_losses = largest + torch.log(sums)

    stage_weights = torch.zeros_like(largest).index_add(0, chosen, weight.to(largest.dtype))
    return (stage_losses * stage_weights).sum()


def probabilities(margins: Tensor) -> Tensor:
    """Probabilities that the first of two responses is preferred: `sigmoid(margin)`, 0 to 1, for
    margins in logits of any shape."""
    return torch.sigmoid(margins)


def probability(margin: float) -> float:
    """`probabilities` of one margin, without overflow."""
    # exp gets only numbers of at most 0: Python raises an error for exp(710).
    if margin >= 0:
        return 1 / (1 + math.exp(-margin))
    return math.exp(margin) / (1 + math.exp(margin))


def pair_credits(margins: Tensor) -> Tensor:
    """1 where the chosen response has the higher reward, 0 where it has the lower, 0.5 for a tie;
    shape `(pairs,)`.

    Raises:
        ValueError: If a margin is NaN: an unscored pair is neither right nor wrong.
    """
    nan_count = int(torch.isnan(margins).sum())
    if nan_count:
        raise ValueError(
            f"{nan_count} of {margins.numel()} margins are NaN; score every response first"
        )
    return (torch.sign(margins).to(widest_float(margins.device)) + 1) / 2


def weighted_mean(values: Tensor, weights: Tensor) -> float:
    """Mean of the pairs' losses or credits, each pair counted by its weight.

    Raises:
        ValueError: If `values` is empty, or the weights add up to 0.
    """
    total = float(weights.double().sum())
    if values.numel() == 0 or not total > 0:
        raise ValueError(
            f"the mean over {values.numel()} pairs with total weight {total} is undefined"
        )
    return float((values.double() * weights.double()).sum() / total)
