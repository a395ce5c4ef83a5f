"""The sections of folders of threads and of groups, which show the data before you train."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from worldpm import plots
from worldpm.errors import DataError
from worldpm.forums.counts import IngestCounts
from worldpm.preferences.outcomes import GroupCounts, OverlapLine, RejectLine
from worldpm.records import Preference, PreferenceGroup
from worldpm.report.layout import Example, Fold, Grid, Section, Shown, drops
from worldpm.storage import parquet, schema
from worldpm.storage.manifest import MANIFEST, Manifest

ROWS_SHOWN = 20_000
"""Figures show this number of rows from the start of each table."""
EXAMPLES = 3
"""Number of groups that are shown as examples."""
EXAMPLE_CHARACTERS = 600
"""Number of shown characters of an example's text."""
REJECT_CHARACTERS = 200
"""Number of shown characters of a dropped text."""
OVERLAPS_SHOWN = 20
"""Number of rows of the table of overlaps."""

Counts = TypeVar("Counts", IngestCounts, GroupCounts)
Bins = Sequence[tuple[float, str]]
"""First value and name of each bin, in order."""

SIZES: Bins = ((2, "2"), (3, "3"), (4, "4"), (5, "5-6"), (7, "7-9"), (10, "10-15"), (16, "16+"))
ANSWERS: Bins = ((0, "0"), (1, "1"), *SIZES)
GAPS: Bins = ((1, "1"), (2, "2"), (3, "3-4"), (5, "5-9"), (10, "10-19"), (20, "20+"))
VOTES: Bins = ((-(10**9), "<0"), (0, "0"), *GAPS)
PROBABILITIES: Bins = (
    (0.5, "0.5-0.6"),
    (0.6, "0.6-0.7"),
    (0.7, "0.7-0.8"),
    (0.8, "0.8-0.9"),
    (0.9, "0.9-1"),
    (1.0, "1"),
)


class _Thread(NamedTuple):
    """The parts of a thread that figures show."""

    year: int
    votes: list[int]
    """Votes of each answer."""


def threads(path: Path, manifest: Manifest) -> list[Section]:
    """The section of a folder of threads: counts, figures, and rows that could not be read."""
    counts = _counts(path, manifest, IngestCounts)
    rows = [[site, f"{of.threads:,}", f"{of.responses:,}"] for site, of in counts.items()]
    tiles = [
        (f"{sum(of.threads for of in counts.values()):,}", "threads"),
        (f"{sum(of.responses for of in counts.values()):,}", "responses"),
        (str(len(counts)), "sites"),
    ]

    text = "All threads that were read, before any filter. Only unreadable rows are left out."
    # Counts cover all threads. Only figures are limited to a sample.
    sample = list(_first_threads(path))
    return [
        Section(
            title=f"Threads: {path.name}",
            text=text + _sampling_note(path),
            tiles=tiles,
            figures=_thread_figures(sample) if sample else (),
            tables=[
                Grid("", ("site", "threads", "responses"), rows),
                *drops("Left out", manifest.drops),
            ],
        )
    ]


def groups(path: Path, manifest: Manifest) -> list[Section]:
    """The section of a folder of groups: counts, figures, drops by reason, and the relation of
    votes to length and time."""
    counts = _counts(path, manifest, GroupCounts)
    tiles = [
        (f"{sum(of.groups for of in counts.values()):,}", "groups"),
        (f"{sum(of.pairs for of in counts.values()):,}", "pairs"),
    ]

    text = (
        f"Training pairs follow the rule {manifest.config['rule']}. Validation and test have all"
        " pairs with different votes. The weights of a thread's pairs sum to 1, so the number of"
        " effective pairs is the number of groups."
    )
    sample = list(_first_groups(path))
    return [
        Section(
            title=f"Preference groups: {path.name}",
            text=text + _sampling_note(path),
            tiles=tiles,
            figures=_group_figures(sample) if sample else (),
            tables=[
                _split_table(counts),
                _habit_table(sample, counts),
                *drops("Dropped, by reason", manifest.drops),
                *_overlap_tables(path),
            ],
            folds=[_example_fold(sample), *_reject_folds(path)] if sample else (),
        )
    ]


def _counts(path: Path, manifest: Manifest, kind: type[Counts]) -> dict[str, Counts]:
    """The manifest's counts by site."""
    try:
        return msgspec.convert(manifest.counts, dict[str, kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise DataError(
            path / MANIFEST, f"lacks the counts of its sites ({error}). Make the folder again."
        ) from error


def _thread_figures(sample: Sequence[_Thread]) -> list[Shown]:
    # Years are names, not numbers, so that only years with threads have a bar.
    years = Counter(str(thread.year) for thread in sample)
    sizes = _histogram((len(thread.votes) for thread in sample), ANSWERS)
    votes = _histogram((votes for thread in sample for votes in thread.votes), VOTES)
    return [
        Shown(
            plots.bars("Threads by year", dict(sorted(years.items())), x="", y="threads"),
            "When questions were asked.",
        ),
        Shown(
            plots.bars("Answers per thread", sizes, x="answers", y="threads"),
            "A pair needs two answers.",
        ),
        Shown(
            plots.bars("Votes of answers", votes, x="votes, up minus down", y="answers"),
            "Most answers have few votes.",
        ),
    ]


def _group_figures(sample: Sequence[PreferenceGroup]) -> list[Shown]:
    sizes = _histogram((len(group.responses) for group in sample), SIZES)
    gaps = _histogram((pair.strength for pair in _pairs(sample)), GAPS)
    # Pairs of the other splits have no probabilities.
    train = [group for group in sample if group.split == "train"]
    probabilities = _histogram((pair.probability for pair in _pairs(train)), PROBABILITIES)
    votes = _votes_by_length(sample)

    return [
        Shown(
            plots.bars("Answers per group", sizes, x="answers", y="groups"),
            "After filters and --max-responses.",
        ),
        Shown(
            plots.bars("Strength of pairs", gaps, x="gap of votes", y="pairs"),
            "A gap of one vote is mostly chance.",
        ),
        Shown(
            plots.bars("How sure training pairs are", probabilities, x="probability", y="pairs"),
            "Probability that the chosen answer is truly better, corrected for chance and for the"
            " head start of early answers.",
        ),
        Shown(
            plots.bars("Votes by length", votes, x="characters, fifths", y="mean votes"),
            "Do long answers get more votes?",
        ),
    ]


def _pairs(sample: Iterable[PreferenceGroup]) -> Iterator[Preference]:
    for group in sample:
        yield from group.preferences


def _votes_by_length(sample: Sequence[PreferenceGroup]) -> dict[str, float]:
    """Mean votes of the responses in each fifth of lengths."""
    points = [
        (len(response.content), response.votes)
        for group in sample
        for response in group.responses
        if response.votes is not None
    ]
    if not points:
        return {}

    # Merge equal quantiles, so that no bin is empty if many responses have the same length.
    lengths, votes = np.array(points, dtype=np.float64).T
    edges = np.unique(np.quantile(lengths, [0.2, 0.4, 0.6, 0.8]))
    bins = np.searchsorted(edges, lengths, side="right")

    names = [f"<{edge:.0f}" for edge in edges] + [f">={edges[-1]:.0f}"]
    means: dict[str, float] = {}
    for index, name in enumerate(names):
        inside = bins == index
        if inside.any():
            means[name] = float(votes[inside].mean())
    return means


def _split_table(counts: Mapping[str, GroupCounts]) -> Grid:
    """Groups and pairs by site and split."""
    names = list(GroupCounts().splits)
    rows = []
    for site, of_site in counts.items():
        splits = [of_site.splits[name] for name in names]
        rows.append([site, *(f"{split.groups:,} / {split.pairs:,}" for split in splits)])
    return Grid("Groups / pairs", ("site", *names), rows)


def _habit_table(sample: Sequence[PreferenceGroup], counts: Mapping[str, GroupCounts]) -> Grid:
    """How often the longer and the earlier answer of a pair wins, and the fitted head start, by
    site."""
    wins: dict[str, list[tuple[float, float]]] = {}
    for group in sample:
        wins.setdefault(group.site, []).extend(
            (_longer_wins(group, pair), _earlier_wins(group, pair)) for pair in group.preferences
        )

    rows = []
    for site, of_site in wins.items():
        # A single pair without dates makes the share of earlier answers NaN, which is shown.
        shares = [f"{share:.3f}" for share in np.array(of_site).mean(axis=0)]
        noise = counts[site].vote_noise if site in counts else None
        fitted = (
            ["-", "-"] if noise is None else [f"{noise.delay_power:.2f}", f"{noise.spread:.2f}"]
        )
        rows.append([site, *shares, *fitted])

    head = ("site", "the longer answer wins", "the earlier answer wins", "delay power", "spread")
    return Grid("Votes, length and time", head, rows)


def _longer_wins(group: PreferenceGroup, pair: Preference) -> float:
    """1 if the chosen response of a pair is longer, 0 if it is shorter, 0.5 for equal lengths."""
    chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
    return float(np.sign(len(chosen.content) - len(rejected.content)) + 1) / 2


def _earlier_wins(group: PreferenceGroup, pair: Preference) -> float:
    """1 if the chosen response of a pair is earlier, 0 if not, NaN without dates."""
    chosen, rejected = group.responses[pair.chosen], group.responses[pair.rejected]
    if chosen.created is None or rejected.created is None:
        return float("nan")
    return float(chosen.created < rejected.created)


def _overlap_tables(path: Path) -> list[Grid]:
    """The first overlaps with benchmarks, if the groups were compared with any."""
    file = path / "contamination.jsonl"
    if not file.is_file():
        return []

    lines = file.read_bytes().splitlines()
    overlaps = [msgspec.json.decode(line, type=OverlapLine) for line in lines]
    rows = []
    for overlap in overlaps[:OVERLAPS_SHOWN]:
        outcome = "dropped" if overlap.dropped else "kept"
        rows.append(
            [overlap.group_id, overlap.benchmark, overlap.item, str(overlap.shared_words), outcome]
        )

    group_ids = {overlap.group_id for overlap in overlaps}
    title = f"Overlap with benchmarks: {len(overlaps):,} places in {len(group_ids):,} groups"
    return [Grid(title, ("group", "benchmark", "item", "words in a row", ""), rows)]


def _example_fold(sample: Sequence[PreferenceGroup]) -> Fold:
    """The strongest pair of the first groups."""
    examples = []
    for group in sample[:EXAMPLES]:
        # Readers can check the pair with the widest gap of votes most easily.
        pair = max(group.preferences, key=lambda pair: pair.strength)
        title = (
            f"{group.group_id} ({group.split}): gap of {pair.strength:.0f} votes, probability"
            f" {pair.probability:.2f} that the chosen answer is better"
        )
        texts = (
            group.prompt[-1].content,
            group.responses[pair.chosen].content,
            group.responses[pair.rejected].content,
        )
        examples.append(Example(title, *(text[:EXAMPLE_CHARACTERS] for text in texts)))

    return Fold(
        title="Examples of groups",
        examples=examples,
        sides=("chosen", "rejected"),
        heading="The clearest pair of the first groups",
    )


def _reject_folds(path: Path) -> list[Fold]:
    """One example for each reason, if dropped texts were written."""
    file = path / "rejects.jsonl"
    if not file.is_file():
        return []

    # Line by line, because the file can be larger than memory.
    first: dict[str, RejectLine] = {}
    with file.open("rb") as lines:
        for line in lines:
            reject = msgspec.json.decode(line, type=RejectLine)
            first.setdefault(reject.reason, reject)

    rows = []
    for reason, reject in sorted(first.items()):
        text = " ".join(reject.text.split())[:REJECT_CHARACTERS]
        rows.append([reason, reject.name, text])
    table = Grid("", ("reason", "name", "text"), rows)
    return [Fold(title="Examples of what was dropped", tables=[table])]


def _first_threads(path: Path) -> Iterator[_Thread]:
    """The first threads of each table."""
    # Read only the columns that figures need.
    columns = ["created", "responses"]
    for table in parquet.paths_of(path):
        for row in islice(parquet.read_rows(table, columns), ROWS_SHOWN):
            yield _Thread(row["created"].year, [answer["votes"] for answer in row["responses"]])


def _first_groups(path: Path) -> Iterator[PreferenceGroup]:
    """The first groups of each table."""
    for table in parquet.paths_of(path):
        yield from islice(schema.read_groups(table), ROWS_SHOWN)


def _sampling_note(path: Path) -> str:
    """A note if figures do not show all rows; empty otherwise."""
    large = any(parquet.count_rows(table) > ROWS_SHOWN for table in parquet.paths_of(path))
    return f" Figures show only the first {ROWS_SHOWN:,} rows of each table." if large else ""


def _histogram(values: Iterable[float], bins: Bins) -> dict[str, float]:
    """The number of values in each bin, by name, in the order of the bins."""
    counts = Counter(_bin(value, bins) for value in values)
    return {name: counts[name] for _, name in bins}


def _bin(value: float, bins: Bins) -> str:
    """The name of the last bin that begins at or below the value."""
    # Search backwards, so that the first match is right. Values below all bins go to the first.
    return next((name for start, name in reversed(bins) if value >= start), bins[0][1])
