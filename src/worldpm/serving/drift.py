"""Has what a server is asked, or what it answers, changed since a reference window was saved?

Four series, one value a request each, so that values are independent: the first response's reward
and length, the length of the prompt, and one of the prompt's words, hashed. Each window of the
newest values is tested against the reference.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray
from river.drift import ADWIN
from scipy import stats

from worldpm.errors import DataError
from worldpm.stats.uncertainty import holm
from worldpm.storage import folders

Json = dict[str, Any]
Array = NDArray[np.float64]
SERIES = ("reward", "response characters", "prompt characters", "word")
WORDS = 24
"""Buckets of hashed words."""
WINDOW = 500
LEAST = 500
"""Values that a reference must have."""
LEVEL = 0.01
"""Of the corrected tests of one window, all series together."""
NOTICEABLE = 0.1
"""The least population stability index that is told as drift; below it a change is too small to
matter, however certain."""
ADWIN_DELTA = 1e-4


class Change(NamedTuple):
    """One series of one window against the reference."""

    stability_index: float
    """PSI over tenths of the reference, at least 0; more than 0.25 is usually called a large
    change."""
    distance: float
    """Kolmogorov-Smirnov's, 0 to 1; for words the total variation."""
    p_value: float
    """Corrected for the number of series."""

    @property
    def drifted(self) -> bool:
        """Certain and large enough."""
        return self.p_value < LEVEL and self.stability_index >= NOTICEABLE


def values_of(reward: float, prompt: str, response: str) -> tuple[float, ...]:
    """A request's value in each series."""
    words = prompt.split()
    word = words[xxhash.xxh64_intdigest(prompt.encode()) % len(words)] if words else ""
    return (
        reward,
        float(len(response)),
        float(len(prompt)),
        float(xxhash.xxh64_intdigest(word.lower().encode()) % WORDS),
    )


class Drift:
    """The newest window, and what was found in the one before."""

    def __init__(self, reference: Mapping[str, ArrayLike]) -> None:
        self.reference = {name: np.array(reference[name], dtype=np.float64) for name in SERIES}
        self.changes: dict[str, Change] = {}
        self.shifts = 0
        """Times that ADWIN saw the mean of the rewards shift."""
        self._window: list[tuple[float, ...]] = []
        self._adwin = ADWIN(delta=ADWIN_DELTA)  # type: ignore[no-untyped-call]

    def observe(self, values: tuple[float, ...]) -> bool:
        """Take a request's values; True where they filled a window, so that `changes` are new."""
        self._window.append(values)
        self._adwin.update(values[0])  # type: ignore[no-untyped-call]
        self.shifts += int(self._adwin.drift_detected)
        if len(self._window) < WINDOW:
            return False
        self.changes = compare(self.reference, np.array(self._window, dtype=np.float64))
        self._window.clear()
        return True


def compare(reference: Mapping[str, Array], window: Array) -> dict[str, Change]:
    """Every series of a window, shape `(values, 4)`, against the reference.

    Source: Kolmogorov-Smirnov and chi-square tests of two samples, Holm's correction; PSI as in
    Siddiqi 2006, with half a count in every tenth so that an empty one does not make it infinite.
    """
    found: dict[str, tuple[float, float, float]] = {}
    for name, new in zip(SERIES, window.T, strict=True):
        old = reference[name]
        if name == "word":
            counts = np.stack(
                [np.bincount(column.astype(int), minlength=WORDS) for column in (old, new)]
            )
            p_value = (
                float(stats.chi2_contingency(counts[:, counts.sum(axis=0) > 0])[1])
                if (counts.sum(axis=0) > 0).sum() > 1
                else 1.0
            )
            shares = counts / counts.sum(axis=1, keepdims=True)
            found[name] = (
                _stability_index(*counts),
                float(np.abs(shares[0] - shares[1]).sum() / 2),
                p_value,
            )
            continue
        test = stats.ks_2samp(old, new, method="asymp")
        tenths = np.quantile(old, np.linspace(0, 1, 11)[1:-1])
        edges = np.unique(
            [*tenths, np.nextafter(old.max(), np.inf)]
        )  # the last bin is for what is larger than all of the reference
        counts = np.stack(
            [
                np.bincount(np.searchsorted(edges, column, side="right"), minlength=len(edges) + 1)
                for column in (old, new)
            ]
        )
        found[name] = (_stability_index(*counts), float(test.statistic), float(test.pvalue))
    corrected = holm([one[2] for one in found.values()])
    return {
        name: Change(one[0], one[1], p)
        for (name, one), p in zip(found.items(), corrected, strict=True)
    }


def _stability_index(old: NDArray[np.int64], new: NDArray[np.int64]) -> float:
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (old, new))
    return float(((p - q) * np.log(p / q)).sum())


def reference_of(decisions: Iterator[Json]) -> dict[str, list[float]]:
    """The series of logged decisions that hold their inputs; those without a prompt of their own
    are left out."""
    found: dict[str, list[float]] = {name: [] for name in SERIES}
    for row in decisions:
        inputs, rewards = json.loads(row["inputs"]), json.loads(row["rewards"])
        if rewards and "responses" in inputs:
            values = values_of(rewards[0], prompt_text(inputs), inputs["responses"][0])
            for name, value in zip(SERIES, values, strict=True):
                found[name].append(value)
    return found


def prompt_text(inputs: Json) -> str:
    """The prompt's own words."""
    return "\n".join(turn["content"] for turn in inputs["prompt"])


def read(path: Path) -> dict[str, list[float]]:
    """A reference that `worldpm log reference` wrote.

    Raises:
        DataError: If it is not one, or too small to test against.
    """
    if not path.is_file():
        raise DataError(path, "no such file; `worldpm log reference` writes one")
    content = folders.read_json(path)
    if not isinstance(content, dict) or any(
        not isinstance(content.get(name), list) for name in SERIES
    ):
        raise DataError(
            path, f"expected lists of {', '.join(SERIES)}; `worldpm log reference` writes them"
        )
    if not all(
        isinstance(value, int | float) and math.isfinite(value)
        for name in SERIES
        for value in content[name]
    ):
        raise DataError(
            path, "holds something else than numbers; `worldpm log reference` writes them"
        )
    if min(len(content[name]) for name in SERIES) < LEAST:
        raise DataError(path, f"holds fewer than {LEAST} requests; take a longer log")
    return content
