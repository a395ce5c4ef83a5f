"""A filter by a reward model. It drops the training pairs that the model contradicts, or keeps only
these, to study what the filter adds to the data."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from worldpm.preferences.grouping import Tally
from worldpm.records import PreferenceGroup
from worldpm.scoring.scorer import Refused, Request, Scorer

GROUPS_AT_ONCE = 64
"""Groups that are scored together: enough for full rows of the model."""


@dataclass(frozen=True)
class ModelFilter:
    """The filter of `worldpm group --filter-with`."""

    scorer: Scorer
    """The reward model."""
    margin: float
    """Logits: the scorer contradicts a training pair if it prefers the rejected response by
    more."""
    keep_contradicted: bool
    """Whether the contradicted pairs are kept instead of the others."""

    def __call__(
        self, groups: Iterable[PreferenceGroup], tally: Tally
    ) -> Iterator[PreferenceGroup]:
        """The groups, in order. Training groups lose the dropped pairs, and groups without pairs
        are dropped."""
        stream = iter(groups)

        while chunk := list(islice(stream, GROUPS_AT_ONCE)):
            rewards = self._rewards([group for group in chunk if group.split == "train"])
            for group in chunk:
                # Validation and test use the votes alone.
                if group.split != "train":
                    yield group
                    continue

                group_rewards = rewards[group.group_id]
                if group_rewards is None:
                    tally.drop(
                        "thread that the chat template of --filter-with refuses", group.group_id
                    )
                    continue

                filtered = self._filtered(group, group_rewards, tally)
                if filtered is not None:
                    yield filtered

    def _rewards(self, groups: list[PreferenceGroup]) -> dict[str, list[float] | None]:
        """The rewards of the responses of each group, by its id; None for a group that the model's
        chat template rejects."""
        answers = self.scorer.score(map(_request, groups))
        return {
            group.group_id: None if isinstance(answer, Refused) else answer.rewards
            for group, answer in zip(groups, answers, strict=True)
        }

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
