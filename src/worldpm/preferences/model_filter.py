"""Training pairs that a reward model contradicts are dropped, or for a study of what that injects,
kept alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from worldpm.preferences.grouping import Tally
from worldpm.records import PreferenceGroup
from worldpm.scoring.scorer import Request, Scorer

GROUPS_AT_ONCE = 64


@dataclass(frozen=True)
class ModelFilter:
    """What `worldpm group --filter-with` does to groups."""

    scorer: Scorer
    margin: float
    """Logits by which the scorer must prefer the rejected response of a training pair to contradict
    it."""
    keep_contradicted: bool
    """Whether the pairs that it contradicts are kept, in place of the others."""

    def __call__(
        self, groups: Iterable[PreferenceGroup], tally: Tally
    ) -> Iterator[PreferenceGroup]:
        """The groups, in order; training groups without the dropped pairs, and none that would be
        empty."""
        stream = iter(groups)
        while chunk := list(islice(stream, GROUPS_AT_ONCE)):
            rewards = self._rewards([group for group in chunk if group.split == "train"])
            for group in chunk:
                kept = (
                    group
                    if group.split != "train"
                    else self._filtered(group, rewards[group.group_id], tally)
                )
                if kept is not None:
                    yield kept

    def _rewards(self, groups: list[PreferenceGroup]) -> dict[str, list[float]]:
        requests = [
            Request(
                group.group_id, group.prompt, [response.content for response in group.responses]
            )
            for group in groups
        ]
        return {
            group.group_id: scored.rewards
            for group, scored in zip(groups, self.scorer.score(requests), strict=True)
        }

    def _filtered(
        self, group: PreferenceGroup, rewards: list[float], tally: Tally
    ) -> PreferenceGroup | None:
        verb = "does not contradict" if self.keep_contradicted else "contradicts"
        kept = []
        for preference in group.preferences:
            contradicted = rewards[preference.chosen] - rewards[preference.rejected] < -self.margin
            if contradicted == self.keep_contradicted:
                kept.append(preference)
        tally.drops[f"pair that --filter-with {verb}"] += len(group.preferences) - len(kept)
        if not kept:
            tally.drop(f"thread whose pairs --filter-with all {verb}", group.group_id)
            return None
        return replace(
            group,
            preferences=tuple(replace(preference, weight=1 / len(kept)) for preference in kept),
        )
