"""Outcomes of `worldpm group` beside its groups: counts in the manifest, overlaps and rejects as
lines of JSON."""

from dataclasses import dataclass, field

from worldpm.preferences.splits import SPLITS
from worldpm.records import PreferenceGroup


@dataclass
class SplitCounts:
    """Contents of a split of a site."""

    groups: int = 0
    """Preference groups."""
    responses: int = 0
    """Responses of these groups."""
    pairs: int = 0
    """Preferences of these groups."""


@dataclass(frozen=True)
class FittedNoise:
    """Chance and head start in a site's votes; see `vote_noise.VoteNoise`."""

    age_power: float
    """Exposure grows with this power of an answer's age."""
    delay_power: float
    """Exposure also grows with this power of its delay; below 0 if early answers have a head
    start."""
    spread: float
    """Squared coefficient of variation of worth within a thread."""


def _no_groups() -> dict[str, SplitCounts]:
    return {split: SplitCounts() for split in SPLITS}


@dataclass
class GroupCounts:
    """Outcome of a site's threads. Mutable: a batch is counted group by group, and a site batch by
    batch."""

    threads: int = 0
    """Threads read."""
    overlapping_groups: int = 0
    """Groups that overlap with a benchmark and were only reported; dropped ones are drops."""
    masked: int = 0
    """Pieces of personal data that were replaced."""
    splits: dict[str, SplitCounts] = field(default_factory=_no_groups)
    """Counts by the name of the split."""
    languages: dict[str, int] = field(default_factory=dict[str, int])
    """Detected languages of the site's first prompts; empty for a batch."""
    vote_noise: FittedNoise | None = None
    """None for a batch, and under rules that give no probabilities."""

    @property
    def groups(self) -> int:
        """Groups of all splits."""
        return sum(split.groups for split in self.splits.values())

    @property
    def pairs(self) -> int:
        """Pairs of all splits."""
        return sum(split.pairs for split in self.splits.values())

    def count(self, group: PreferenceGroup) -> None:
        """Count a group that is written."""
        split = self.splits[group.split]
        split.groups += 1
        split.responses += len(group.responses)
        split.pairs += len(group.preferences)

    def add(self, batch: "GroupCounts") -> None:
        """Add the counts of a batch."""
        self.threads += batch.threads
        self.overlapping_groups += batch.overlapping_groups
        self.masked += batch.masked
        for code, number in batch.languages.items():
            self.languages[code] = self.languages.get(code, 0) + number
        for name, split in batch.splits.items():
            total = self.splits[name]
            total.groups += split.groups
            total.responses += split.responses
            total.pairs += split.pairs


@dataclass(frozen=True)
class OverlapLine:
    """A line of `contamination.jsonl`: a group that overlaps with a benchmark's item."""

    group_id: str
    split: str
    benchmark: str
    item: str
    shared_words: int
    """Length of the longest run of words that both contain."""
    dropped: bool
    """Whether the group was dropped, or only reported."""


@dataclass(frozen=True)
class RejectLine:
    """A line of `rejects.jsonl`: a thread or an answer that was dropped as unfit."""

    name: str
    """`THREAD`, or `THREAD#RESPONSE` of an answer."""
    reason: str
    text: str
    """Text of the thread or answer, masked if the groups are masked."""
