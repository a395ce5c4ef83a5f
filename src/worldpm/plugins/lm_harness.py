"""A model for lm-evaluation-harness that answers multiple-choice tasks by the highest reward.

    from worldpm.plugins.lm_harness import RewardLM

    lm_eval.simple_evaluate(model=RewardLM("checkpoint"), tasks=["arc_easy"])

lm_eval is not a dependency: this module needs it installed.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from worldpm.scoring.scorer import Scorer


@register_model("worldpm")
class RewardLM(LM):  # type: ignore[misc]
    """Gives the reward of a choice in place of its log-likelihood.

    Only `acc` has a meaning: it takes the choice with the highest reward. `acc_norm` divides by
    lengths, which is wrong for rewards. Tasks that generate text or measure perplexity fail.
    """

    def __init__(self, pretrained: str, **_: object) -> None:
        """`pretrained` is a folder or a hub id. The harness's other arguments have no effect."""
        super().__init__()
        self._scorer = Scorer.load(pretrained, cut=True)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The rewards of continuations, in order. Continuations of one context share its
        computation; none counts as greedy."""
        choices: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            choices.setdefault(request.args[0], []).append(index)

        rewards = [0.0] * len(requests)
        contexts = [
            (context, [requests[index].args[1].strip() for index in indices])
            for context, indices in choices.items()
        ]
        scored = self._scorer.rewards_many(contexts)
        for indices, values in zip(choices.values(), scored, strict=True):
            for index, value in zip(indices, values, strict=True):
                rewards[index] = value
        return [(reward, False) for reward in rewards]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Not possible.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a reward model has no perplexity. Choose multiple-choice tasks.")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Not possible.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a reward model writes no text. Choose multiple-choice tasks.")
