"""Drift: whether requests or rewards have changed since a reference window was saved.

Each request adds one value to each of four series, so that the values of a series are independent:
the reward and length of the first response, the length of the prompt, and one hashed word of the
prompt. Each window of new values is tested against the reference, a JSON file with a list for each
series:

    {"reward": [0.5, ...], "response characters": [41.0, ...], "prompt characters": [30.0, ...],
     "word": [17.0, ...]}
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray
from river.drift import ADWIN
from scipy import stats

from worldpm.errors import DataError
from worldpm.serving.decisions import ConversationInputs, DecisionRow
from worldpm.stats.uncertainty import holm
from worldpm.storage.json_files import read_json

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
SERIES = ("reward", "response characters", "prompt characters", "word")
WORDS = 24
"""Number of buckets for hashed words."""
WINDOW = 500
"""Number of requests that are tested together."""
LEAST_REQUESTS = 500
"""Least number of requests in a reference."""
LEVEL = 0.01
"""Significance level of the corrected tests of one window, all series together."""
LEAST_STABILITY_INDEX = 0.1
"""Least population stability index of a drift. A smaller change does not matter, even if it is
certain."""
ADWIN_DELTA = 1e-4
"""ADWIN's probability of a false alarm."""
PSEUDO_COUNT = 0.5
"""Added to every bin, so that an empty bin does not make the stability index infinite."""


class Comparison(NamedTuple):
    """The test of one series of a window against the reference, before correction."""

    stability_index: float
    """Population stability index (PSI), at least 0."""
    distance: float
    """0 to 1."""
    p_value: float


class Change(NamedTuple):
    """The test of one series of a window against the reference."""

    stability_index: float
    """PSI over tenths of the reference, at least 0; more than 0.25 is usually called a large
    change."""
    distance: float
    """Kolmogorov-Smirnov distance, 0 to 1; for words, the total variation."""
    p_value: float
    """p-value, corrected for the number of series."""

    @property
    def drifted(self) -> bool:
        """Whether the change is certain and large enough."""
        return self.p_value < LEVEL and self.stability_index >= LEAST_STABILITY_INDEX


def values_of(reward: float, prompt: str, response: str) -> tuple[float, ...]:
    """A request's value in each series, in the order of `SERIES`."""
    prompt_words = prompt.split()
    # The hash of the prompt selects the word, so a prompt always gives the same word
    index = xxhash.xxh64_intdigest(prompt.encode()) % max(1, len(prompt_words))
    word = prompt_words[index] if prompt_words else ""
    bucket = xxhash.xxh64_intdigest(word.lower().encode()) % WORDS

    return (reward, float(len(response)), float(len(prompt)), float(bucket))


class Drift:
    """The current window, and the changes of the last full window."""

    def __init__(self, reference: Mapping[str, ArrayLike]) -> None:
        self.reference = {name: np.array(reference[name], dtype=np.float64) for name in SERIES}
        self.changes: dict[str, Change] = {}
        """Changes by series; empty until the first window is full."""
        self.shifts = 0
        """Number of times that ADWIN detected a shift of the mean reward."""
        self._window: list[tuple[float, ...]] = []
        self._adwin = ADWIN(delta=ADWIN_DELTA)  # type: ignore[no-untyped-call]

    def observe(self, values: tuple[float, ...]) -> bool:
        """Add a request's values. Return True if they filled a window, and `changes` are new."""
        self._window.append(values)
        # ADWIN has its own window of rewards, with an adaptive length
        self._adwin.update(values[0])  # type: ignore[no-untyped-call]
        self.shifts += int(self._adwin.drift_detected)
        if len(self._window) < WINDOW:
            return False

        self.changes = compare(self.reference, np.array(self._window, dtype=np.float64))
        # Clear the window, so that windows do not overlap and tests are independent
        self._window.clear()
        return True


def compare(reference: Mapping[str, Array], window: Array) -> dict[str, Change]:
    """Test every series of a window, shape `(values, 4)`, against the reference.

    Source: two-sample Kolmogorov-Smirnov and chi-square tests, with Holm's correction; PSI as in
    Siddiqi 2006, with half a count added to every bin, so that empty bins do not make it infinite.
    """
    comparisons: dict[str, Comparison] = {}
    for name, new in zip(SERIES, window.T, strict=True):
        compare_series = _compare_words if name == "word" else _compare_numbers
        comparisons[name] = compare_series(reference[name], new)

    corrected = holm([comparison.p_value for comparison in comparisons.values()])
    return {
        name: Change(comparison.stability_index, comparison.distance, p_value)
        for (name, comparison), p_value in zip(comparisons.items(), corrected, strict=True)
    }


def _compare_words(old: Array, new: Array) -> Comparison:
    """Compare hashed words: chi-square test and total variation."""
    counts = np.stack([np.bincount(buckets.astype(int), minlength=WORDS) for buckets in (old, new)])
    # The test is undefined for buckets that are empty in both samples, and for a single bucket
    filled = counts.sum(axis=0) > 0
    p_value = 1.0
    if filled.sum() > 1:
        p_value = float(stats.chi2_contingency(counts[:, filled])[1])

    shares = counts / counts.sum(axis=1, keepdims=True)
    distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
    return Comparison(_stability_index(*counts), distance, p_value)


def _compare_numbers(old: Array, new: Array) -> Comparison:
    """Compare numbers: Kolmogorov-Smirnov test, and PSI over tenths of the reference."""
    # The exact p-value takes too long for thousands of values
    test = stats.ks_2samp(old, new, method="asymp")

    tenths = np.quantile(old, np.linspace(0, 1, 11)[1:-1])
    # The last bin holds values above the whole reference; equal tenths merge into one bin
    edges = np.unique([*tenths, np.nextafter(old.max(), np.inf)])
    counts = [
        np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        for values in (old, new)
    ]
    return Comparison(_stability_index(*counts), float(test.statistic), float(test.pvalue))


def _stability_index(old: Counts, new: Counts) -> float:
    p, q = (
        (counts + PSEUDO_COUNT) / (counts.sum() + PSEUDO_COUNT * len(counts))
        for counts in (old, new)
    )
    return float(((p - q) * np.log(p / q)).sum())


def reference_of(decisions: Iterable[DecisionRow]) -> dict[str, list[float]]:
    """The series of logged decisions. Decisions without a prompt or responses are left out."""
    series: dict[str, list[float]] = {name: [] for name in SERIES}
    for row in decisions:
        if not row.rewards or not isinstance(row.inputs, ConversationInputs):
            continue
        values = values_of(row.rewards[0], row.inputs.prompt_text, row.inputs.responses[0])
        for name, value in zip(SERIES, values, strict=True):
            series[name].append(value)
    return series


def read(path: Path) -> dict[str, list[float]]:
    """Read a reference that `worldpm log reference` wrote.

    Raises:
        DataError: If the file has another form, or too few requests.
    """
    if not path.is_file():
        raise DataError(path, "no such file. Write one with `worldpm log reference`.")

    content = read_json(path)
    lists = isinstance(content, dict) and all(
        isinstance(content.get(name), list) for name in SERIES
    )
    if not lists:
        raise DataError(
            path,
            f"lacks a list of {', '.join(SERIES)}. Write the file with `worldpm log reference`.",
        )
    if not all(_are_numbers(content[name]) for name in SERIES):
        raise DataError(
            path,
            "contains values that are not numbers. Write the file with `worldpm log reference`.",
        )
    if min(len(content[name]) for name in SERIES) < LEAST_REQUESTS:
        raise DataError(path, f"has fewer than {LEAST_REQUESTS} requests. Use a longer log.")
    return content


def _are_numbers(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
