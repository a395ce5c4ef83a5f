"""Every loss and accuracy formula of preferences. Rewards and margins are logits; losses are nats per pair.

Source: Bradley and Terry 1952, `P(chosen over rejected) = sigmoid(reward_chosen - reward_rejected)`.
"""

import torch
from torch import Tensor
from torch.nn import functional


def margins(rewards: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Reward of the chosen minus reward of the rejected response, shape `(pairs,)`.

    `rewards` has shape `(responses,)`; `chosen` and `rejected` are indices into it, shape `(pairs,)`.
    """
    return rewards[chosen] - rewards[rejected]


def losses_nats(margins: Tensor, probability: Tensor) -> Tensor:
    """Bradley-Terry loss of each pair, shape `(pairs,)`, at least 0; a coin flip (margin 0) costs ln 2 = 0.693.

    `-p log sigmoid(m) - (1 - p) log sigmoid(-m)`, where p, 0.5 to 1, is the probability that chosen is truly better.
    A margin of NaN gives NaN.

    Source: WorldPM, arXiv 2505.10527, equation 2, with the label made soft.
    """
    return probability * functional.softplus(-margins) + (1 - probability) * functional.softplus(margins)


def pair_credits(margins: Tensor) -> Tensor:
    """1 where the chosen response has the higher reward, 0 where it has the lower, 0.5 for a tie; shape `(pairs,)`.

    Raises:
        ValueError: If a margin is NaN: an unscored pair is neither right nor wrong.
    """
    if torch.isnan(margins).any():
        raise ValueError(f"{int(torch.isnan(margins).sum())} of {margins.numel()} margins are NaN; score every response first")
    return (torch.sign(margins.double()) + 1) / 2


def weighted_mean(values: Tensor, weights: Tensor) -> float:
    """Mean of the pairs' losses or credits, each pair counted by its weight.

    Raises:
        ValueError: If there are no pairs, or their weights add up to nothing.
    """
    total = float(weights.double().sum())
    if values.numel() == 0 or not total > 0:
        raise ValueError(f"a mean over {values.numel()} pairs with total weight {total} does not exist")
    return float((values.double() * weights.double()).sum() / total)
