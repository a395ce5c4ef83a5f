"""Results of a checkpoint on a benchmark, as `metrics.json` holds them."""

from dataclasses import dataclass, field
from typing import Literal

from worldpm.stats.style_control import LevelAccuracy, Phi, StyleControl
from worldpm.storage.json_files import Plain


@dataclass(frozen=True, kw_only=True)
class Measures:
    """How well rewards agree with some preferences."""

    accuracy: float
    """Weighted share of preferences with a positive margin, 0 to 1; a tie counts half."""
    accuracy_unweighted: float
    """The same with each pair counted once."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the accuracy over prompts; None with one prompt, or if all prompts
    are alike and neither all right nor all wrong."""
    detectable: float | None
    """Smallest distance of the accuracy from a fixed number that a 5 % test finds in 80 % of cases;
    None without an interval."""
    loss_nats: float
    """Weighted Bradley-Terry loss, nats per pair; a coin flip costs 0.693."""
    n: int
    """Number of pairs."""
    effective_pairs: float
    """Sum of the pairs' weights."""
    prompts: int
    """Number of different prompts: the clusters of the interval."""
    ties: int
    """Pairs with a margin of 0."""
    nulls: dict[str, float | None]
    """Accuracy of each null baseline on the same pairs; None if it cannot judge all of them."""


@dataclass(frozen=True, kw_only=True)
class SubsetResult(Measures):
    """Measures of one subset; it has the keys of a benchmark that has no subsets."""

    domain: str
    """The domain that names the subset, or `mixed`."""
    native: Plain = field(default_factory=dict)
    """Always empty: a benchmark's own aggregates are about all its subsets."""
    subsets: Plain = field(default_factory=dict)
    """Always empty."""


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """The pairs whose preference probability fell into one bin."""

    probability: float
    """Mean predicted probability, 0.5 to 1."""
    right: float
    """Share that was right, 0 to 1; a tie, or a pair whose label is a coin's, is half right."""
    pairs: int
    """Number of pairs, at least 1."""
    weight: float
    """Sum of the pairs' weights."""


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """How well preference probabilities agree with the labels."""

    temperature: float
    """Divisor of the margins, in logits; the median of the folds if cross-fitted."""
    source: Literal["validation", "cross-fitted"]
    """Fitted on the checkpoint's validation preferences, or on the benchmark's other prompts."""
    loss_nats: float
    """Weighted Bradley-Terry loss of the divided margins, nats per pair."""
    expected_error: float
    """Expected calibration error, 0 to 0.5."""
    bins: list[CalibrationBin]
    """From probability 0.5 to 1, without empty ones."""


@dataclass(frozen=True, kw_only=True)
class StyleResult:
    """How much of the preferences style explains."""

    controlled: dict[str, StyleControl]
    """With style as a covariate, by normalisation of its differences: `paper` and `arena`."""
    phi: dict[str, Phi]
    """Correlation of prediction and label with each style feature."""
    by_length: dict[str, float | None]
    """Accuracy where the chosen response is longer, shorter, or as long; None without such a
    pair."""
    by_level: LevelAccuracy
    """Accuracy by the style levels of both sides."""
    unit_of_length: Literal["characters", "tokens"]
    """Unit of the feature `length`: tokens if the rewards come with them."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult(Measures):
    """Everything measured of one checkpoint on one benchmark; the measures are over all items."""

    domain: str
    """The benchmark's only domain, or `mixed`."""
    accuracy_macro: float
    """Plain mean of the subsets' accuracies."""
    items: int
    """Number of items that were judged."""
    missing_items: dict[str, int]
    """Items by subset that the release has more (below 0: less) than were judged; subsets that are
    complete, or of unknown size, are left out."""
    native: Plain
    """Its authors' own aggregates."""
    subsets: dict[str, SubsetResult]
    """By name, in the order of the items."""
    domains: dict[str, Measures]
    """Of the subsets of each domain together."""
    style: StyleResult | None
    """None if the texts are not known."""
    calibration: CalibrationResult
    """At the checkpoint's own temperature, or at cross-fitted ones."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two checkpoints on one benchmark, pair by pair."""

    benchmark: str
    """Its name."""
    first: str
    """Name of a checkpoint."""
    second: str
    """Name of a later checkpoint in the order given."""
    difference: float
    """Accuracy of the first minus that of the second, -1 to 1."""
    interval: tuple[float, float] | None
    """Paired 95 % interval over prompts; None with one prompt, or if all prompts differ alike."""
    p_value: float
    """Two-sided, that checkpoints of equal accuracy differ as much."""
    detectable: float | None
    """Smallest true difference that a 5 % test finds in 80 % of cases; None without an interval."""
    p_value_holm: float
    """Corrected for the number of comparisons by Holm's procedure."""


@dataclass(frozen=True, kw_only=True)
class PresetMeasures(Measures):
    """Measures of one test set of a preset."""

    accuracy_with_other_originals: dict[str, float] | None = None
    """Accuracy if another of RM-Bench's styles, named by its index, is taken as the original one;
    None for sets of other benchmarks."""


@dataclass(frozen=True, kw_only=True)
class PresetMean:
    """Plain means over some test sets of a preset."""

    accuracy: float | None
    """None without a test set."""
    loss_nats: float | None
    """Nats per pair; None without a test set."""
    test_sets: list[str]
    """Those of the mean that have items."""


@dataclass(frozen=True, kw_only=True)
class PresetResult:
    """A checkpoint on the test sets of a preset, which are views of several benchmarks."""

    test_sets: dict[str, PresetMeasures]
    """By name."""
    missing: list[str]
    """Test sets without items."""
    domains: dict[str, PresetMean]
    """By domain."""
    subtasks: dict[str, PresetMean]
    """By benchmark, over the test sets that the preset counts as its subtasks."""
