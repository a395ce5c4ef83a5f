"""PPE: human votes of Chatbot Arena, and right and wrong answers of four models, 32 to a prompt.

Source: Frick et al. 2024, arXiv 2410.14872; https://github.com/lmarena/PPE. Its scorers could not
be read: what stands under `native` follows the paper's text, with best-of-k curves counted exactly
instead of drawn.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from worldpm.benchmarks.items import Item, Judged, files, parse, prompt_id, two
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.errors import ConfigError
from worldpm.records import Message, Preference, Response
from worldpm.stats.selection import expected_picks

HOME = "the data sets lmarena-ai/PPE-* of https://huggingface.co/lmarena-ai, a folder each"
CORRECTNESS = ("mmlu_pro", "math", "gpqa", "ifeval", "mbpp_plus")
PLACES = {
    "human": "human-preference",
    "mmlu_pro": "mmlu-pro",
    "math": "math",
    "gpqa": "gpqa",
    "ifeval": "ifeval",
    "mbpp_plus": "mbpp-plus",
}
"""What the name of each subset's folder holds, in lower case."""
DOMAINS = {"objective": CORRECTNESS, "subjective": ("human",)}
SIZES = {"mmlu_pro": 512, "math": 512, "gpqa": 512, "ifeval": 512, "mbpp_plus": 507}
RESPONSES = 32

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """Votes that name a winner, and items of 32 responses whose pairs are the set's sampled ones,
    named `SUBSET/MODEL/QUESTION`.

    A vote that is a tie makes no item.

    Raises:
        ConfigError: If a folder is absent.
        DataError: If a file is not as the data set has it.
    """
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    there = {
        name: [
            path
            for place in inside
            if word in place.name.lower()
            for path in files(place, "*.parquet", home=HOME)
        ]
        for name, word in PLACES.items()
    }
    if absent := [PLACES[name] for name, found in there.items() if not found]:
        raise ConfigError(
            f"{folder}: {', '.join(absent)} is not there; download {HOME}, to that folder"
        )
    found = parse(there["human"], _vote, home=HOME)
    for name in CORRECTNESS:
        found += parse(there[name], partial(_correctness, name), home=HOME)
    return found


def _vote(number: int, row: Json) -> Iterator[Item]:
    if row["winner"] in ("model_a", "model_b"):
        better = 0 if row["winner"] == "model_a" else 1
        yield two(
            "human",
            f"human/{row['question_id']}/{number}",
            _prompt(row),
            row["response_1"],
            row["response_2"],
            better,
        )


def _prompt(row: Json) -> str | list[Message]:
    prompt: str | list[Json] = row["prompt"]
    return (
        prompt
        if isinstance(prompt, str)
        else [Message(str(message["role"]), message["content"]) for message in prompt]
    )


def _correctness(subset: str, number: int, row: Json) -> Iterator[Item]:
    """Right responses first; pairs of one right and one wrong response, each once."""
    qualities = [float(score) for score in row["scores"]]
    order = sorted(range(RESPONSES), key=lambda place: -qualities[place])
    texts = [row[f"response_{place + 1}"] for place in order]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("something else than text")
    place_of = {place: rank for rank, place in enumerate(order)}
    named = {
        (place_of[a], place_of[b]) if qualities[a] > qualities[b] else (place_of[b], place_of[a])
        for a, b in row["sampled_conflict_pairs"]
        if qualities[a] != qualities[b]
    }
    prompt = (Message("user", row["prompt"]),)
    preferences = tuple(
        Preference(chosen, rejected, 1.0, weight=1 / len(named))
        for chosen, rejected in sorted(named)
    )
    name = f"{subset}/{row['model_name']}/{row['question_id']}"
    responses = tuple(map(Response, texts))
    yield Item(
        subset,
        name,
        prompt_id(prompt),
        prompt,
        responses,
        preferences,
        order,
        [qualities[place] for place in order],
    )


def native(judged: Judged) -> Json:
    """Accuracy by subset, a tie being wrong; of the correctness sets also the area under the ROC
    curve and the best-of-k curve.

    The curve is the mean share of right picks for k = 1 .. 32; `loss` is its mean distance from the
    curve of an oracle.
    """
    found: Json = {}
    for name in dict.fromkeys(item.subset for item in judged.items):
        mine = judged.of(name)
        found[name] = {"accuracy": strict_accuracy(mine)}
        if name in CORRECTNESS:
            found[name] |= _curves(mine)
    known = [found[name]["accuracy"] for name in CORRECTNESS if name in found]
    return {**found, **({"correctness average": fmean(known)} if known else {})}


def _curves(judged: Judged) -> Json:
    curves, oracles, areas = [], [], []
    for item, rewards in zip(judged.items, judged.rewards, strict=True):
        qualities = item.qualities or [float(preferred) for preferred in item.preferred]
        curves.append(expected_picks(rewards, qualities))
        oracles.append(expected_picks(qualities, qualities))
        areas.append(_area(rewards, qualities))
    curve, oracle = np.mean(curves, axis=0), np.mean(oracles, axis=0)
    known = [area for area in areas if area is not None]
    return {
        "area under ROC": fmean(known) if known else None,
        "best of k": curve.tolist(),
        "max": float(curve.max()),
        "end": float(curve[-1]),
        "loss": float(np.mean(oracle - curve)),
    }


def _area(rewards: Any, qualities: Any) -> float | None:
    """The share of pairs of a right and a wrong response in which the right one has the higher
    reward, a tie half."""
    right = np.asarray(
        [reward for reward, quality in zip(rewards, qualities, strict=True) if quality > 0.5]
    )
    wrong = np.asarray(
        [reward for reward, quality in zip(rewards, qualities, strict=True) if quality <= 0.5]
    )
    if len(right) == 0 or len(wrong) == 0:
        return None
    return float((np.sign(right[:, None] - wrong[None, :]).mean() + 1) / 2)
