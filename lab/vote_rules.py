"""Which rule predicts the votes that answers gain after a dump? Two dumps of one site, an older and
a newer one.

    python lab/vote_rules.py older.7z newer.7z

Pairs come from the older dump. A rule is right if the answer it prefers *gained* more votes until
the newer dump. Totals of the newer dump prove nothing, because they contain the earlier votes. The
default rule learns its probabilities from the older dump alone. A rule without probabilities gets
the best possible constant: its own accuracy, which it could not have known.
"""

import sys
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np

from worldpm.cli import main as worldpm
from worldpm.options.group import Rule
from worldpm.preferences import vote_noise, votes
from worldpm.records import Answer, Preference, Thread
from worldpm.stats.uncertainty import clustered_interval
from worldpm.storage import parquet, schema

RULES: tuple[Rule, ...] = ("worldpm", "askell", "shp", "default")


def main(older: str, newer: str) -> None:
    with tempfile.TemporaryDirectory() as work:
        before, after = (
            threads_of(dump, Path(work) / str(i)) for i, dump in enumerate((older, newer))
        )
    votes_after = {
        (thread.thread_id, answer.response_id): answer.votes
        for thread in after
        for answer in thread.responses
    }
    noise = vote_noise.fit(
        vote_noise.Dated.of(thread.responses) for thread in before if len(thread.responses) > 1
    )
    print(
        f"{len(before)} threads; exposure^{noise.age_power:.3f} delay^{noise.delay_power:.3f},"
        f" spread {noise.spread:.3f}"
    )
    print(
        f"{'rule':26}{'pairs, threads':>14}{'accuracy':>10}"
        f"{'95 % interval':>18}{'log loss':>10}{'weighted':>10}"
    )
    rows = {rule: list(judged(before, votes_after, rule, noise)) for rule in RULES}
    flat = noise._replace(age_power=0.0, delay_power=0.0)
    rows["default, chance alone"] = list(judged(before, votes_after, "default", flat))
    for rule, judgements in rows.items():
        show(rule, judgements)
    show("all, later has more votes", [row for row in rows["default"] if row[3]])
    show("all, earlier has more votes", [row for row in rows["default"] if not row[3]])
    probability = np.array([row[1] for row in rows["default"]])
    right = np.array([row[0] for row in rows["default"]])
    for low, high in ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.01)):
        inside = (probability >= low) & (probability < high)
        if inside.any():
            print(
                f"probability {low:.1f} to {min(high, 1):.1f}: right in {right[inside].mean():.3f}"
                f" of {inside.sum()}"
            )


def threads_of(dump: str, out: Path) -> list[Thread]:
    if worldpm(["ingest", dump, "--out", str(out)]):
        sys.exit(1)
    return [
        thread
        for path in parquet.paths_of(out)
        for batch in parquet.read_batches(path)
        for thread in schema.threads_of(batch)
    ]


def judged(
    before: list[Thread], after: dict[tuple[str, str], int], rule: Rule, noise: vote_noise.VoteNoise
):
    """For each pair of a rule whose answers gained different votes: whether the rule is right, its
    probability, the thread, and whether the chosen answer is the later one."""
    for thread in before:
        gains = [
            after.get((thread.thread_id, answer.response_id), answer.votes) - answer.votes
            for answer in thread.responses
        ]
        for pair in pairs(thread.responses, rule, noise):
            if gains[pair.chosen] != gains[pair.rejected]:
                yield (
                    gains[pair.chosen] > gains[pair.rejected],
                    pair.probability,
                    thread.thread_id,
                    pair.chosen > pair.rejected,
                )


def pairs(answers: tuple[Answer, ...], rule: Rule, noise: vote_noise.VoteNoise) -> list[Preference]:
    """Pairs of a rule; for the paper's rule, all pairs that it could draw."""
    if rule != "worldpm":
        return list(votes.preferences(answers, rule=rule, seed=[0], noise=noise))
    net = [answer.votes + answer.accepted for answer in answers]
    return [
        Preference(i, j, 1.0) if net[i] > net[j] else Preference(j, i, 1.0)
        for i, j in combinations(range(len(answers)), 2)
        if net[i] != net[j]
    ]


def show(rule: str, rows: list) -> None:
    right, given = (np.array([row[i] for row in rows], dtype=float) for i in (0, 1))
    low, high = clustered_interval(right, np.ones(len(right)), [row[2] for row in rows])
    chance = np.clip(given, 0.5, 0.999) if (given < 1).any() else np.full(len(right), right.mean())
    loss = -np.log(np.where(right > 0, chance, 1 - chance)).mean()
    weighted = np.average(right, weights=np.maximum(2 * given - 1, 1e-9))
    threads = len({row[2] for row in rows})
    numbers = f"{right.mean():10.3f}{low:10.3f} to {high:.3f}{loss:10.4f}{weighted:10.3f}"
    print(f"{rule:26}{len(right):7} of {threads:3}{numbers}")


if __name__ == "__main__":
    main(*sys.argv[1:])
