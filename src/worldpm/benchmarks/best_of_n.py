"""Best of n: responses with qualities, from ground truth or a judge, and the quality of the
response that a checkpoint would pick from n of them.

A row of JSON lines or Parquet. The prompt is a text or messages:

    {"prompt": "2 + 2?", "responses": ["4", "5", "four"], "qualities": [1, 0, 0.5]}
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, Turn, messages_of, parse, prompt_id
from worldpm.curves import overoptimization
from worldpm.errors import ConfigError
from worldpm.records import Preference, Response
from worldpm.stats.selection import expected_picks, kl_nats
from worldpm.storage import rows
from worldpm.storage.json_files import Plain

HOME = "a best-of-n table (prompt, responses, qualities)"


class _Row(msgspec.Struct, frozen=True):
    """A prompt, its responses and their qualities."""

    prompt: str | list[Turn]
    responses: list[str]
    qualities: list[float | bool | str]
    """Some tables hold numbers as text."""


def read(folder: Path) -> list[Item]:
    """The prompts of every table in the folder, or of a single file, named by their row. Responses
    of higher quality come first.

    Raises:
        ConfigError: If the file is missing.
        DataError: If a row lacks a column, or a quality is not a finite number.
    """
    paths = [folder] if folder.is_file() else _tables(folder)
    return parse(paths, _Row, _items, home=HOME)


def _tables(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.glob("*") if path.name.endswith(rows.SUFFIXES))
    if not paths:
        raise ConfigError(
            f"{folder}: has no table. Name yours with --on best-of-n=FILE. Its rows need the"
            " columns prompt, responses and qualities."
        )
    return paths


def _items(number: int, row: _Row) -> Iterator[Item]:
    qualities = [float(quality) for quality in row.qualities]
    if len(qualities) != len(row.responses) or not all(map(math.isfinite, qualities)):
        raise ValueError(
            f"{len(row.responses)} responses and {len(qualities)} qualities, but each response"
            " needs a finite quality"
        )

    # better responses come first in an item; `sorted` keeps the file's order of equal ones
    order = sorted(range(len(qualities)), key=lambda index: -qualities[index])
    sorted_qualities = [qualities[index] for index in order]
    messages = messages_of(row.prompt)
    yield Item(
        "all",
        str(number),
        prompt_id(messages),
        messages,
        tuple(Response(row.responses[index]) for index in order),
        _preferences(sorted_qualities),
        order,
        sorted_qualities,
    )


def _preferences(qualities: list[float]) -> tuple[Preference, ...]:
    """Every pair of different quality, from qualities in descending order."""
    pairs: list[tuple[int, int]] = []
    for better in range(len(qualities)):
        for worse in range(better + 1, len(qualities)):
            if qualities[better] > qualities[worse]:
                pairs.append((better, worse))

    # a prompt has a total weight of 1, for any number of responses
    return tuple(
        Preference(better, worse, qualities[better] - qualities[worse], weight=1 / len(pairs))
        for better, worse in pairs
    )


def native(judged: Judged) -> Plain:
    """The expected quality and reward of the pick, and the KL in nats, for n from 1 to the smallest
    number of responses of an item.

    Items with a single response are left out, and `one_response` counts them. `over-optimisation`
    is Gao's form, fitted to the gain in quality. Its peak is the n beyond which quality falls.
    """
    several = judged.only(lambda item: len(item.responses) > 1)
    if not several.items:
        return {"n": [], "kl_nats": [], "one_response": len(judged.items)}

    # curves are averaged point by point, so all of them are cut to the shortest
    shortest = min(len(rewards) for rewards in several.rewards)
    quality, oracle, reward = [], [], []
    for item, rewards in zip(several.items, several.rewards, strict=True):
        qualities = _qualities(item)
        quality.append(expected_picks(rewards, qualities)[:shortest])
        oracle.append(expected_picks(qualities, qualities)[:shortest])
        reward.append(expected_picks(rewards, rewards)[:shortest])

    curve = np.mean(quality, axis=0)
    kl = [kl_nats(n) for n in range(1, shortest + 1)]
    return {
        "n": list(range(1, shortest + 1)),
        "kl_nats": kl,
        "quality": curve.tolist(),
        "oracle": np.mean(oracle, axis=0).tolist(),
        "reward": np.mean(reward, axis=0).tolist(),
        "one_response": len(judged.items) - len(several.items),
        # Gao's form is a function of the square root of the KL, with a gain of 0 at n = 1
        "over-optimisation": asdict(overoptimization.fit_best_of_n(np.sqrt(kl), curve - curve[0])),
    }


def _qualities(item: Item) -> list[float]:
    """The qualities of the responses; without them, 1 for better and 0 for worse ones."""
    if item.qualities is not None:
        return list(item.qualities)
    return [float(preferred) for preferred in item.preferred]


BEST_OF_N = Benchmark(
    name="best-of-n", home=HOME, read=read, native=native, domains={"best of n": ()}
)
