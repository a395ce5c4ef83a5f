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


class Pairs(NamedTuple):
    """The preferences of a row, each tensor of shape `(pairs,)`."""

    chosen: Tensor
    """Indices into the row's rewards."""
    rejected: Tensor
    strength: Tensor
    """Vote or rating gap, above 0."""
    probability: Tensor
    """That chosen is truly the better one."""
    weight: Tensor


class Objective(NamedTuple):
    """What training lowers; the default is the Bradley-Terry loss of WorldPM's equation 2."""

    loss: Literal["bradley-terry", "plackett-luce"] = "bradley-terry"
    target_margin: float = 0.0
    """Logits of margin asked for at a strength of e - 1 = 1.72, growing with its logarithm."""
    label_smoothing: float = 0.0
    """Share of labels taken to be drawn by a coin, 0 to 1."""
    centring: float = 0.0
    """Coefficient of the penalty that keeps rewards around 0."""


def objective_nats(rewards: Tensor, pairs: Pairs, objective: Objective) -> Tensor:
    """The weighted sum, not yet divided by anything, of what training lowers over a row's pairs; 0
    where it has none.

    `rewards` has shape `(responses,)`. NaN rewards give NaN.
    """
    between = margins(rewards, pairs.chosen, pairs.rejected)
    if objective.loss == "plackett-luce":
        total = plackett_luce_nats(rewards, pairs)
    else:
        targets = target_margins(pairs.strength, objective.target_margin)
        labels = smoothed(pairs.probability, objective.label_smoothing)
        total = (losses_nats(between - targets, labels) * pairs.weight).sum()
    if objective.centring:
        total = (
            total
            + objective.centring
            * (centring_penalties(rewards, pairs.chosen, pairs.rejected) * pairs.weight).sum()
        )
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
    return probability * functional.softplus(-margins) + (1 - probability) * functional.softplus(
        margins
    )


def target_margins(strength: Tensor, scale: float) -> Tensor:
    """`scale ln(1 + strength)`, in logits: a vote gap of 100 asks for 4.6 times what a gap of e - 1
    does, not 58 times.

    Source: Llama 2, arXiv 2307.09288, equation 2, with a step function of the rating in place of
    the logarithm.
    """
    return scale * torch.log1p(strength)


def smoothed(probability: Tensor, share: float) -> Tensor:
    """The label when a share of all labels is a coin's: `(1 - share) p + share / 2`.

    Source: Szegedy et al., arXiv 1512.00567, section 7, for two classes.
    """
    return (1 - share) * probability + share / 2


def centring_penalties(rewards: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """`(reward chosen + reward rejected)^2` of each pair, shape `(pairs,)`: the loss alone leaves a
    prompt's mean free.

    Source: Eisenstein et al., arXiv 2312.09244, equation 2.
    """
    return (rewards[chosen] + rewards[rejected]).square()


def plackett_luce_nats(rewards: Tensor, pairs: Pairs) -> Tensor:
    """Weighted sum over responses i of `-log(exp r_i / (exp r_i + sum of exp r_j))`, j all that i
    is preferred to.

    For a full ranking these are the stages of Plackett and Luce; responses that tie are not
    compared, and labels are taken as certain. A stage weighs what its pairs weigh together, so two
    responses give the Bradley-Terry loss, and the unit is nats per pair. A pair that stands twice
    weighs twice and is compared once.

    Source: Plackett 1975, Luce 1959; as a loss ListMLE, Xia et al. 2008.
    """
    responses = rewards.numel()
    names, places = torch.unique(pairs.chosen * responses + pairs.rejected, return_inverse=True)
    weight = torch.zeros(names.numel(), dtype=pairs.weight.dtype, device=rewards.device).index_add(
        0, places, pairs.weight
    )
    chosen = names // max(1, responses)
    between = margins(rewards, chosen, names % max(1, responses))
    # logsumexp of 0 and the negative margins, by stage
    top = torch.zeros(responses, dtype=between.dtype, device=between.device)
    top = top.scatter_reduce(0, chosen, -between.detach(), reduce="amax")
    sums = torch.exp(-top).index_add(0, chosen, torch.exp(-between - top[chosen]))
    weights = torch.zeros_like(top).index_add(0, chosen, weight.to(top.dtype))
    return ((top + torch.log(sums)) * weights).sum()


def probabilities(margins: Tensor) -> Tensor:
    """That the first of two responses is preferred, at margins in logits: `sigmoid(margin)`, 0 to
    1, any shape."""
    return torch.sigmoid(margins)


def probability(margin: float) -> float:
    """`probabilities` of one margin, without overflow."""
    return 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))


def pair_credits(margins: Tensor) -> Tensor:
    """1 where the chosen response has the higher reward, 0 where it has the lower, 0.5 for a tie;
    shape `(pairs,)`.

    Raises:
        ValueError: If a margin is NaN: an unscored pair is neither right nor wrong.
    """
    if torch.isnan(margins).any():
        raise ValueError(
            f"{int(torch.isnan(margins).sum())} of {margins.numel()} margins are NaN; score every"
            " response first"
        )
    return (torch.sign(margins.double()) + 1) / 2


def weighted_mean(values: Tensor, weights: Tensor) -> float:
    """Mean of the pairs' losses or credits, each pair counted by its weight.

    Raises:
        ValueError: If there are no pairs, or their weights add up to nothing.
    """
    total = float(weights.double().sum())
    if values.numel() == 0 or not total > 0:
        raise ValueError(
            f"a mean over {values.numel()} pairs with total weight {total} does not exist"
        )
    return float((values.double() * weights.double()).sum() / total)
