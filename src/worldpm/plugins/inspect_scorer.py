"""A scorer for inspect_ai: the reward of a model's answer, or its chance against the target.

    from worldpm.plugins.inspect_scorer import preference

    Task(dataset=..., solver=generate(), scorer=preference("checkpoint"))

inspect_ai is not a dependency: this module needs it installed.
"""

import asyncio
from typing import Literal

from inspect_ai.scorer import Score, Target, mean, stderr
from inspect_ai.scorer import Scorer as InspectScorer
from inspect_ai.scorer import scorer as inspect_scorer
from inspect_ai.solver import TaskState

from worldpm.errors import DataError
from worldpm.records import Message
from worldpm.scoring.scorer import Scorer
from worldpm.stats.bradley_terry import probability


@inspect_scorer(metrics=[mean(), stderr()])  # type: ignore[untyped-decorator]
def preference(model: str, *, against: Literal["nothing", "target"] = "nothing") -> InspectScorer:
    """The reward of the answer in logits, or with `against="target"` the probability that it is
    preferred to the sample's target. `model` is a folder or a hub id.

    A conversation that the chat template rejects has no score.
    """
    judge = Scorer.load(model, cut=True)

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        turns = [Message(turn.role, turn.text) for turn in state.messages]
        # The last turn is the answer itself
        prompt = turns[:-1] if turns and turns[-1].role == "assistant" else turns
        responses = [answer, target.text] if against == "target" else [answer]
        try:
            rewards = await asyncio.to_thread(judge.rewards, prompt, responses)
        except DataError as error:
            return Score.unscored(explanation=str(error))
        value = rewards[0]
        if against == "target":
            value = probability(rewards[0] - rewards[1])
        return Score(value=value, answer=answer, metadata={"rewards": rewards})

    return score
