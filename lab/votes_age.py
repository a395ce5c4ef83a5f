"""Do pairs need the age of their votes beyond what their probability knows?

Reads threads that `worldpm ingest --update` merged from dumps of several dates. The noise of the
votes is fitted on each earlier date alone, and its probabilities are compared with the votes that
came later: of pairs whose answers gained differently, did the chosen one gain more? A second model
scales the logit by a power of the younger answer's age; it is fitted on four fifths of the threads
and judged on the fifth.

    python lab/votes_age.py THREADS
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from worldpm.preferences import vote_noise
from worldpm.records import Answer, Thread
from worldpm.storage import parquet, schema

DAY_SECONDS = 86_400.0
CLIP = 1e-4
FOLDS, RESAMPLES = 5, 2000
Array = NDArray[np.float64]


class Pair(NamedTuple):
    """A pair of different votes at an earlier date, whose answers gained differently since."""

    thread: str
    probability: float
    """That the chosen answer is better, from the earlier votes alone."""
    age_days: float
    """Age of the younger answer at the earlier date."""
    gained_more: bool
    """Whether the chosen answer gained more votes than the rejected one."""


def earlier(thread: Thread, date: datetime) -> list[tuple[Answer, int]]:
    """The answers with their votes at a date, each with its later gain."""
    answers = []
    for answer in thread.responses:
        votes = [dated.votes for dated in answer.earlier_votes if dated.date == date]
        if votes:
            answers.append((replace(answer, votes=votes[0]), answer.votes - votes[0]))
    return answers


def pairs_of(threads: list[Thread], date: datetime) -> Iterator[Pair]:
    """The pairs at an earlier date of a site."""
    dated = {thread.thread_id: earlier(thread, date) for thread in threads}
    posts = [[answer for answer, _ in answers] for answers in dated.values()]
    noise = vote_noise.fit(vote_noise.Dated.of(answers) for answers in posts if len(answers) > 1)

    for name, answers in dated.items():
        votes = [answer.votes for answer, _ in answers]
        indices = [
            (i, j) for i, more in enumerate(votes) for j, fewer in enumerate(votes) if more > fewer
        ]
        given = [answer for answer, _ in answers]
        for (i, j), probability in zip(indices, noise.probabilities(given, indices), strict=True):
            gains = answers[i][1], answers[j][1]
            if gains[0] != gains[1]:
                created = max(given[i].created, given[j].created)
                age = max(1.0, (date - created).total_seconds() / DAY_SECONDS)
                yield Pair(name, probability, age, gains[0] > gains[1])


def losses(probabilities: Array, right: Array) -> Array:
    clipped = np.clip(probabilities, CLIP, 1 - CLIP)
    return -np.log(np.where(right, clipped, 1 - clipped))


def scaled(pairs: list[Pair], powers: Array) -> Array:
    """Probabilities whose logit is scaled by `exp(a + b log(age in years))`."""
    logits = logit(np.clip([pair.probability for pair in pairs], CLIP, 1 - CLIP))
    years = np.array([pair.age_days for pair in pairs]) / 365
    factors: Array = expit(logits * np.exp(powers[0] + powers[1] * np.log(years)))
    return factors


def crossed(pairs: list[Pair], right: Array, fold: NDArray[np.int64]) -> Array:
    """Out-of-fold losses of the model with age."""
    crossed = np.zeros(len(pairs))
    for number in range(FOLDS):
        train = [pair for pair, of in zip(pairs, fold, strict=True) if of != number]
        truth = np.array([pair.gained_more for pair in train])
        fitted = minimize(lambda x: losses(scaled(train, x), truth).mean(), np.zeros(2))  # noqa: B023
        test = fold == number
        chosen = [pair for pair, keep in zip(pairs, test, strict=True) if keep]
        crossed[test] = losses(scaled(chosen, fitted.x), right[test])
    return crossed


def interval(values: Array, clusters: NDArray[np.int64]) -> str:
    """The mean with its 95 % interval from resamples of threads."""
    sums = np.bincount(clusters, values)
    sizes = np.bincount(clusters)
    generator = np.random.default_rng(0)
    draws = generator.integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.quantile(sums[draws].sum(axis=1) / sizes[draws].sum(axis=1), [0.025, 0.975])
    return f"{values.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    pairs: list[Pair] = []
    for path in parquet.paths_of(Path(sys.argv[1])):
        batches = parquet.read_batches(path)
        threads = [thread for batch in batches for thread in schema.threads_of(batch)]
        dates = {v.date for t in threads for a in t.responses for v in a.earlier_votes}
        for date in sorted(dates):
            of_date = list(pairs_of(threads, date))
            pairs += of_date
            print(f"{path.stem} {date:%Y-%m-%d}: {len(of_date)} pairs that gained differently")

    right = np.array([pair.gained_more for pair in pairs])
    stated = np.array([pair.probability for pair in pairs])
    names = sorted({pair.thread for pair in pairs})
    numbers = {name: number for number, name in enumerate(names)}
    clusters = np.array([numbers[pair.thread] for pair in pairs])

    today = losses(stated, right)
    shares = np.full(len(pairs), right.mean())
    print(f"loss {interval(today, clusters)}, of a constant {losses(shares, right).mean():.4f}")
    with_age = crossed(pairs, right, clusters % FOLDS)
    without = losses(stated, right)
    print(f"with the age of the votes, minus without: {interval(with_age - without, clusters)}")

    bins: dict[int, list[int]] = defaultdict(list)
    for index, probability in enumerate(stated):
        bins[min(9, int((probability - 0.5) * 20))].append(index)
    for number, members in sorted(bins.items()):
        mean, share = stated[members].mean(), right[members].mean()
        print(f"  stated {mean:.3f}: right {share:.3f} of {len(members)} pairs, bin {number}")


main()
