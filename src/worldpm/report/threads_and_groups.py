"""What folders of threads and of groups show: look before you train."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from worldpm import plots
from worldpm.report.layout import Example, Fold, Grid, Section, Shown, drops
from worldpm.storage import parquet, schema

Json = dict[str, Any]

ROWS_SHOWN = 20_000
"""Of each table, the first so many rows are looked at for figures."""
SIZES = ((2, "2"), (3, "3"), (4, "4"), (5, "5-6"), (7, "7-9"), (10, "10-15"), (16, "16+"))
ANSWERS = ((0, "0"), (1, "1"), *SIZES)
GAPS = ((1, "1"), (2, "2"), (3, "3-4"), (5, "5-9"), (10, "10-19"), (20, "20+"))
VOTES = (
    (-(10**9), "<0"),
    (0, "0"),
    (1, "1"),
    (2, "2"),
    (3, "3-4"),
    (5, "5-9"),
    (10, "10-19"),
    (20, "20+"),
)
CHANCES = (
    (0.5, "0.5-0.6"),
    (0.6, "0.6-0.7"),
    (0.7, "0.7-0.8"),
    (0.8, "0.8-0.9"),
    (0.9, "0.9-1"),
    (1.0, "1"),
)
EXAMPLES, TEXT = 3, 600


def threads(path: Path, manifest: Json) -> list[Section]:
    """What was read, and what could not be."""
    counts: dict[str, dict[str, int]] = manifest["counts"]
    rows = [
        [site, *(f"{count.get(key, 0):,}" for key in ("threads", "responses"))]
        for site, count in counts.items()
    ]
    total = {
        key: sum(count.get(key, 0) for count in counts.values()) for key in ("threads", "responses")
    }
    seen = list(_first(path, schema.only(schema.THREADS, ["created", "votes", "responses"])))
    years = Counter(str(row["created"].year) for row in seen)
    sizes = Counter(_bin(len(row["responses"]), ANSWERS) for row in seen)
    votes = Counter(_bin(answer["votes"], VOTES) for row in seen for answer in row["responses"])
    per_thread = _ordered(sizes, ANSWERS)
    shown = [
        Shown(
            plots.bars("Threads by year", dict(sorted(years.items())), x="", y="threads"),
            "When questions were asked.",
        ),
        Shown(
            plots.bars("Answers per thread", per_thread, x="answers", y="threads"),
            "Two make a pair.",
        ),
        Shown(
            plots.bars(
                "Votes of answers", _ordered(votes, VOTES), x="votes, up minus down", y="answers"
            ),
            "Most answers have few.",
        ),
    ]
    return [
        Section(
            title=f"Threads: {path.name}",
            text=(
                "What was read, before any filter. Only rows that cannot be read are left out here."
            )
            + _sampled(path),
            tiles=[
                (f"{total['threads']:,}", "threads"),
                (f"{total['responses']:,}", "responses"),
                (str(len(counts)), "sites"),
            ],
            figures=shown if seen else (),
            tables=[
                Grid("", ("site", "threads", "responses"), rows),
                *drops("Left out", manifest["drops"]),
            ],
        )
    ]


def groups(path: Path, manifest: Json) -> list[Section]:
    """What became of the threads, what was dropped for which reason, and what the votes go with."""
    counts: dict[str, dict[str, int]] = manifest["counts"]
    splits = ("train", "validation", "test")
    rows = [
        [
            site,
            *(
                f"{count.get(f'{split} groups', 0):,} / {count.get(f'{split} pairs', 0):,}"
                for split in splits
            ),
        ]
        for site, count in counts.items()
    ]
    total = {
        kind: sum(count.get(f"{split} {kind}", 0) for count in counts.values() for split in splits)
        for kind in ("groups", "pairs")
    }
    seen = list(_first(path, schema.GROUPS))
    return [
        Section(
            title=f"Preference groups: {path.name}",
            text=(
                f"Rule {manifest['config']['rule']} for training; every pair of different votes for"
                " validation and test. The pairs of a thread weigh 1 together, so the effective"
                " pairs are as many as the groups."
            )
            + _sampled(path),
            tiles=[(f"{total['groups']:,}", "groups"), (f"{total['pairs']:,}", "pairs")],
            figures=_group_figures(seen) if seen else (),
            tables=[
                Grid("Groups / pairs", ("site", *splits), rows),
                Grid(
                    "What votes go with",
                    (
                        "site",
                        "the longer answer wins",
                        "the earlier answer wins",
                        "delay power",
                        "spread",
                    ),
                    _habits(seen, counts),
                ),
                *drops("Dropped, and why", manifest["drops"]),
                *_overlaps(path),
            ],
            folds=[_kept(seen), *_rejected(path)] if seen else (),
        )
    ]


def _group_figures(seen: Sequence[Json]) -> list[Shown]:
    pairs = [pair for row in seen for pair in row["preferences"]]
    sizes = Counter(_bin(len(row["responses"]), SIZES) for row in seen)
    gaps = Counter(_bin(pair["strength"], GAPS) for pair in pairs)
    chances = Counter(
        _bin(pair["probability"], CHANCES)
        for row in seen
        if row["split"] == "train"
        for pair in row["preferences"]
    )
    return [
        Shown(
            plots.bars("Answers per group", _ordered(sizes, SIZES), x="answers", y="groups"),
            "After filters and --max-responses.",
        ),
        Shown(
            plots.bars("Strength of pairs", _ordered(gaps, GAPS), x="gap of votes", y="pairs"),
            "A gap of one is mostly chance.",
        ),
        Shown(
            plots.bars(
                "How sure training pairs are",
                _ordered(chances, CHANCES),
                x="probability",
                y="pairs",
            ),
            "That the chosen answer is truly the better one, chance and head start taken out.",
        ),
        Shown(
            plots.bars(
                "Votes by length", _votes_by_length(seen), x="characters, fifths", y="mean votes"
            ),
            "Do long answers get more?",
        ),
    ]


def _votes_by_length(seen: Sequence[Json]) -> dict[str, float]:
    answers = [
        (len(r["content"]), r["votes"])
        for row in seen
        for r in row["responses"]
        if r["votes"] is not None
    ]
    if not answers:
        return {}
    lengths, votes = np.array(answers, dtype=np.float64).T
    edges = np.unique(np.quantile(lengths, [0.2, 0.4, 0.6, 0.8]))
    place = np.searchsorted(edges, lengths, side="right")
    names = [f"<{edges[0]:.0f}", *(f"<{edge:.0f}" for edge in edges[1:]), f">={edges[-1]:.0f}"]
    return {
        name: float(votes[place == i].mean()) for i, name in enumerate(names) if (place == i).any()
    }


def _habits(seen: Sequence[Json], counts: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """By site, how often the longer and the earlier answer of a pair wins, and what was learned of
    the head start."""
    wins: dict[str, list[tuple[float, float]]] = {}
    for row in seen:
        for pair in row["preferences"]:
            chosen, rejected = (row["responses"][pair[side]] for side in ("chosen", "rejected"))
            longer = float(np.sign(len(chosen["content"]) - len(rejected["content"])) + 1) / 2
            known = chosen["created"] is not None and rejected["created"] is not None
            earlier = float(chosen["created"] < rejected["created"]) if known else float("nan")
            wins.setdefault(row["site"], []).append((longer, earlier))
    rows = []
    for site, found in wins.items():
        learned = [
            counts.get(site, {}).get(f"vote noise: {name}") for name in ("delay_power", "spread")
        ]
        shares = [f"{share:.3f}" for share in np.array(found).mean(axis=0)]
        rows.append(
            [site, *shares, *("-" if value is None else f"{value:.2f}" for value in learned)]
        )
    return rows


def _overlaps(path: Path) -> list[Grid]:
    file = path / "contamination.jsonl"
    if not file.is_file():
        return []
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [
        [
            row["group_id"],
            row["benchmark"],
            row["item"],
            str(row["words"]),
            "dropped" if row["dropped"] else "kept",
        ]
        for row in found[:20]
    ]
    title = (
        f"Overlap with benchmarks: {len(found):,} places in"
        f" {len({row['group_id'] for row in found}):,} groups"
    )
    return [Grid(title, ("group", "benchmark", "item", "words in a row", ""), rows)]


def _kept(seen: Sequence[Json]) -> Fold:
    examples = []
    for row in seen[:EXAMPLES]:
        pair = max(row["preferences"], key=lambda pair: pair["strength"])
        chosen, rejected = (
            row["responses"][pair[side]]["content"][:TEXT] for side in ("chosen", "rejected")
        )
        title = (
            f"{row['group_id']} ({row['split']}): a gap of {pair['strength']:.0f}, true with"
            f" probability {pair['probability']:.2f}"
        )
        examples.append(Example(title, row["prompt"][-1]["content"][:TEXT], chosen, rejected))
    return Fold(
        title="Examples of groups",
        examples=examples,
        sides=("chosen", "rejected"),
        heading="The clearest pair of the first groups",
    )


def _rejected(path: Path) -> list[Fold]:
    """One example for each reason, where rejects were written."""
    file = path / "rejects.jsonl"
    if not file.is_file():
        return []
    first: dict[str, Json] = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            first.setdefault(row["reason"], row)
    rows = [
        [reason, row["name"], " ".join(row["text"].split())[:200]]
        for reason, row in sorted(first.items())
    ]
    return [
        Fold(
            title="Examples of what was dropped",
            tables=[Grid("", ("reason", "name", "text"), rows)],
        )
    ]


def _first(path: Path, columns: Any) -> Iterator[Json]:
    for table in parquet.paths_of(path):
        yield from islice(parquet.read_rows(table, columns), ROWS_SHOWN)


def _sampled(path: Path) -> str:
    large = any(parquet.count_rows(table) > ROWS_SHOWN for table in parquet.paths_of(path))
    return f" Figures look at the first {ROWS_SHOWN:,} rows of each table." if large else ""


def _bin(value: float, bins: Sequence[tuple[float, str]]) -> str:
    """The name of the last bin that begins at the value or below."""
    return next((name for start, name in reversed(bins) if value >= start), bins[0][1])


def _ordered(counts: Mapping[str, int], bins: Sequence[tuple[float, str]]) -> dict[str, float]:
    return {name: counts.get(name, 0) for _, name in bins}
