"""Best of n: a table of responses with what each is worth, by ground truth or a judge, and what a
checkpoint would pick of n.

Rows of JSON lines or Parquet: `prompt` (text or messages), `responses` (texts), `qualities` (a
number for each).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from worldpm.benchmarks.items import Item, Judged, parse, prompt_id
from worldpm.curves import overoptimization
from worldpm.errors import ConfigError
from worldpm.records import Message, Preference, Response
from worldpm.stats.selection import expected_picks, kl_nats
from worldpm.storage import rows

HOME = "a best-of-n table (prompt, responses, qualities)"
DOMAIN = "best of n"

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The prompts of every table in the folder, or of one file, named by their row; responses of
    higher quality come first.

    Raises:
        ConfigError: If no file is there.
        DataError: If a row lacks a column, or a quality is no finite number.
    """
    return parse([folder] if folder.is_file() else _tables(folder), _items, home=HOME)


def _tables(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*") if path.name.endswith(rows.SUFFIXES))
    if not found:
        raise ConfigError(
            f"{folder}: no table there; name yours with --on best-of-n=FILE, its rows holding"
            " prompt, responses, qualities"
        )
    return found


def _items(number: int, row: Json) -> Iterator[Item]:
    prompt = row["prompt"]
    messages = (
        (Message("user", prompt),)
        if isinstance(prompt, str)
        else tuple(Message(m["role"], m["content"]) for m in prompt)
    )
    worth = [float(quality) for quality in row["qualities"]]
    if (
        len(worth) != len(row["responses"])
        or not all(map(math.isfinite, worth))
        or not all(isinstance(t, str) for t in row["responses"])
    ):
        raise ValueError(
            f"{len(row['responses'])} responses and {len(worth)} qualities; expected a text and a"
            " finite number for each"
        )
    order = sorted(range(len(worth)), key=lambda place: -worth[place])
    worth = [worth[place] for place in order]
    pairs = [
        (i, j, worth[i] - worth[j])
        for i in range(len(worth))
        for j in range(i + 1, len(worth))
        if worth[i] > worth[j]
    ]
    preferences = tuple(Preference(i, j, gap, weight=1 / len(pairs)) for i, j, gap in pairs)
    responses = tuple(Response(row["responses"][place]) for place in order)
    yield Item(
        "all", str(number), prompt_id(messages), messages, responses, preferences, order, worth
    )


def native(judged: Judged) -> Json:
    """The expected quality and reward of the pick for n = 1 .. the least number of responses, with
    the KL of each n, in nats.

    Items of one response leave nothing to pick: `one_response` counts them, and they are left out.
    `over-optimisation` is Gao's form fitted to the gain in quality; its peak says up to which n
    picking pays.
    """
    chosen = judged.only(lambda item: len(item.responses) > 1)
    if not chosen.items:
        return {"n": [], "kl_nats": [], "one_response": len(judged.items)}
    shortest = min(len(rewards) for rewards in chosen.rewards)
    quality = [
        expected_picks(rewards, _worth(item))[:shortest]
        for item, rewards in zip(chosen.items, chosen.rewards, strict=True)
    ]
    reward = [expected_picks(rewards, rewards)[:shortest] for rewards in chosen.rewards]
    oracle = [expected_picks(_worth(item), _worth(item))[:shortest] for item in chosen.items]
    curve = np.mean(quality, axis=0)
    kl = [kl_nats(n) for n in range(1, shortest + 1)]
    return {
        "n": list(range(1, shortest + 1)),
        "kl_nats": kl,
        "quality": curve.tolist(),
        "oracle": np.mean(oracle, axis=0).tolist(),
        "reward": np.mean(reward, axis=0).tolist(),
        "one_response": len(judged.items) - len(chosen.items),
        "over-optimisation": overoptimization.best_of_n(np.sqrt(kl), curve - curve[0]),
    }


def _worth(item: Item) -> list[float]:
    return (
        list(item.qualities)
        if item.qualities is not None
        else [float(preferred) for preferred in item.preferred]
    )
