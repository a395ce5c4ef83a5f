"""A filter by a reward model. It drops the training pairs that the model contradicts, or keeps only
these, to study what the filter adds to the data."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from worldpm.preferences.grouping import Tally
from worldpm.records import PreferenceGroup
from worldpm.scoring.scorer import Refused, Request, Scorer

GROUPS_AT_ONCE = 64
"""Groups that are scored together: enough for full rows of the model."""


class GroupRewards(NamedTuple):
    """Rewards of one group of the training split."""

    group_id: str
    rewards: list[float] | None
    """One for each response; None if the model's chat template rejects the group."""


def score(scorer: Scorer, groups: Iterable[PreferenceGroup]) -> Iterator[GroupRewards]:
    """The rewards of the training groups, in order. Validation and test use the votes alone."""
    training = (group for group in groups if group.split == "train")
    while chunk := list(islice(training, GROUPS_AT_ONCE)):
        answers = scorer.score(map(_request, chunk))
        for group, answer in zip(chunk, answers, strict=True):
            rewards = None if isinstance(answer, Refused) else answer.rewards
            yield GroupRewards(group.group_id, rewards)


@dataclass(frozen=True)
class ModelFilter:
    """The filter of `worldpm group --filter-with`."""

    rewards: Iterator[GroupRewards]
    """Results of `score` for the same groups, in the same order."""
    margin: float
    """Logits: the model contradicts a training pair if it prefers the rejected response by more."""
    keep_contradicted: bool
    """Whether the contradicted pairs are kept instead of the others."""

    def __call__(
        self, groups: Iterable[PreferenceGroup], tally: Tally
    ) -> Iterator[PreferenceGroup]:
        """The groups, in order. Training groups lose the dropped pairs, and groups without pairs
        are dropped."""
        for group in groups:
            if group.split != "train":
                yield group
                continue

            group_id, rewards = next(self.rewards)
            assert group_id == group.group_id
            if rewards is None:
                tally.drop("thread that the chat template of --filter-with refuses", group_id)
                continue

            filtered = self._filtered(group, rewards, tally)
            if filtered is not None:
                yield filtered

    def _filtered(
        self, group: PreferenceGroup, rewards: list[float], tally: Tally
    ) -> PreferenceGroup | None:
        """The group with the pairs that are kept; None if there are none."""
        verb = "does not contradict" if self.keep_contradicted else "contradicts"
        preferences = []
        for preference in group.preferences:
            margin = rewards[preference.chosen] - rewards[preference.rejected]
            if (margin < -self.margin) == self.keep_contradicted:
                preferences.append(preference)

        dropped = len(group.preferences) - len(preferences)
        tally.drops[f"pair that --filter-with {verb}"] += dropped
        if not preferences:
            tally.drop(f"thread whose pairs --filter-with all {verb}", group.group_id)
            return None

        # The weights of a thread add up to 1 again.
        weight = 1 / len(preferences)
        return replace(
            group,
            preferences=tuple(replace(preference, weight=weight) for preference in preferences),
        )


def _request(group: PreferenceGroup) -> Request:
    texts = [response.content for response in group.responses]
    return Request(group.group_id, group.prompt, texts)
