"""Intervals of the authors' aggregates, which can be any function of items and rewards."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy.special import stdtrit

from worldpm.benchmarks.items import Judged
from worldpm.storage.json_files import Plain

MOST_GROUPS = 32
"""Largest number of groups of prompts; each is left out once."""
LEAST_GROUPS = 8
"""With fewer prompts, aggregates have no intervals."""


def intervals(native: Callable[[Judged], Plain], judged: Judged) -> Plain:
    """95 % intervals over prompts, [low, high], of the numbers in a benchmark's aggregates, in the
    same nested form; None where an interval is not known. Lists are left out.

    Prompts are dealt into groups, and the aggregates are computed without each group in turn.

    Source: Kott 2001, "The delete-a-group jackknife".
    """
    whole = dict(_numbers(native(judged)))
    groups = _groups(judged)
    if len(groups) < LEAST_GROUPS:
        return _nested(dict.fromkeys(whole))

    try:
        without = [dict(_numbers(native(judged.at(rest)))) for rest in groups]
    # without a group, a small subset may be empty, whose mean is not defined
    except (ArithmeticError, LookupError, ValueError):
        return _nested(dict.fromkeys(whole))
    return _nested({name: _interval(name, value, without) for name, value in whole.items()})


def _groups(judged: Judged) -> list[list[int]]:
    """For each group of prompts, the items of all other groups."""
    by_prompt: dict[str, list[int]] = {}
    for index, item in enumerate(judged.items):
        by_prompt.setdefault(item.prompt_id, []).append(index)

    # by subset, so that all groups have prompts of all subsets; by hash within, so that the order
    # of the files does not matter
    def place(prompt: str) -> tuple[str, bytes]:
        subset = judged.items[by_prompt[prompt][0]].subset
        return subset, hashlib.sha256(prompt.encode()).digest()

    prompts = sorted(by_prompt, key=place)
    count = min(MOST_GROUPS, len(prompts))
    group_of = {
        index: number % count
        for number, prompt in enumerate(prompts)
        for index in by_prompt[prompt]
    }
    indices = range(len(judged.items))
    return [[index for index in indices if group_of[index] != group] for group in range(count)]


Path = tuple[str, ...]


def _numbers(values: Plain, path: Path = ()) -> Iterator[tuple[Path, float]]:
    """The fractions of nested aggregates, by their keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, (*path, key))
        elif isinstance(value, float) and math.isfinite(value):
            yield (*path, key), value


def _interval(name: Path, value: float, without: list[dict[Path, float]]) -> list[float] | None:
    left = [replicate[name] for replicate in without if name in replicate]
    if len(left) < len(without):
        return None
    count = len(left)
    deviations = np.array(left) - np.mean(left)
    error = math.sqrt((count - 1) / count * float(deviations @ deviations))
    # equal aggregates without each group show no variance, which is not certainty
    if error == 0.0:
        return None
    reach = float(stdtrit(count - 1, 0.975)) * error
    if not (0 < value < 1 and min(left) >= 0 and max(left) <= 1):
        return [value - reach, value + reach]

    # shares have an interval of their log odds, so that no end is outside 0 to 1
    odds, reach = math.log(value / (1 - value)), reach / (value * (1 - value))
    return [1 / (1 + math.exp(-(odds + end))) for end in (-reach, reach)]


def _nested(flat: Mapping[Path, list[float] | None]) -> Plain:
    """The nested form of values by their keys."""
    nested: dict[str, object] = {}
    parts: dict[str, dict[Path, list[float] | None]] = {}
    for (first, *rest), value in flat.items():
        if rest:
            parts.setdefault(first, {})[tuple(rest)] = value
        else:
            nested[first] = value
    nested |= {key: _nested(part) for key, part in parts.items()}
    return nested
