"""PPE: human votes of Chatbot Arena, and right and wrong answers of four models, 32 to a prompt.

A row of human votes, and one of right and wrong answers; the winner may also be a tie:

    {"question_id": "q", "prompt": "Hi!", "response_1": "No.", "response_2": "Hello!",
     "winner": "model_b"}
    {"question_id": "q", "prompt": "2 + 2?", "model_name": "claude-3-haiku", "response_1": "5", ...,
     "response_32": "4", "scores": [false, ..., true], "sampled_conflict_pairs": [[0, 31], ...]}

Source: Frick et al. 2024, arXiv 2410.14872; https://github.com/lmarena/PPE. Its scorers could not
be read: the aggregates follow the paper's text, with best-of-k curves counted exactly instead of
drawn.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, files, parse, prompt_id, two
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.errors import ConfigError
from worldpm.records import Message, Preference, Response
from worldpm.stats.selection import expected_picks
from worldpm.storage.json_files import Json

HOME = "the data sets lmarena-ai/PPE-* of https://huggingface.co/lmarena-ai, a folder each"
CORRECTNESS = ("mmlu_pro", "math", "gpqa", "ifeval", "mbpp_plus")
FOLDER_WORDS = {
    "human": "human-preference",
    "mmlu_pro": "mmlu-pro",
    "math": "math",
    "gpqa": "gpqa",
    "ifeval": "ifeval",
    "mbpp_plus": "mbpp-plus",
}
"""Part of the name of each subset's folder, in lower case."""
RESPONSES = 32
"""Responses to each prompt of the correctness sets."""


def read(folder: Path) -> list[Item]:
    """Votes that name a winner, and items of 32 responses whose pairs are the set's sampled ones,
    named `SUBSET/MODEL/QUESTION`.

    Votes for a tie are left out.

    Raises:
        ConfigError: If a folder is absent.
        DataError: If a file is not of the data set's format.
    """
    paths = {subset: _paths(folder, word) for subset, word in FOLDER_WORDS.items()}
    if absent := [FOLDER_WORDS[subset] for subset in FOLDER_WORDS if not paths[subset]]:
        raise ConfigError(
            f"{folder}: {', '.join(absent)} is not there; download {HOME}, to that folder"
        )

    items = parse(paths["human"], _vote, home=HOME)
    for subset in CORRECTNESS:
        items += parse(paths[subset], partial(_correctness, subset), home=HOME)
    return items


def _paths(folder: Path, word: str) -> list[Path]:
    """The files of the subset whose folder has a word in its name."""
    paths: list[Path] = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        if word in entry.name.lower():
            paths += files(entry, "*.parquet", home=HOME)
    return paths


def _vote(number: int, row: Json) -> Iterator[Item]:
    if row["winner"] not in ("model_a", "model_b"):
        return

    # a question may have several votes, so the row is part of the name
    name = f"human/{row['question_id']}/{number}"
    better = 0 if row["winner"] == "model_a" else 1
    yield two("human", name, _prompt(row), row["response_1"], row["response_2"], better)


def _prompt(row: Json) -> str | list[Message]:
    prompt: str | list[Json] = row["prompt"]
    if isinstance(prompt, str):
        return prompt
    return [Message(str(message["role"]), message["content"]) for message in prompt]


def _correctness(subset: str, number: int, row: Json) -> Iterator[Item]:
    """Right responses first; pairs of one right and one wrong response, each once."""
    qualities = [float(score) for score in row["scores"]]
    # `sorted` keeps the file's order among right and among wrong responses
    order = sorted(range(RESPONSES), key=lambda index: -qualities[index])
    texts = [row[f"response_{index + 1}"] for index in order]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a response is not a string")

    prompt = (Message("user", row["prompt"]),)
    yield Item(
        subset,
        f"{subset}/{row['model_name']}/{row['question_id']}",
        prompt_id(prompt),
        prompt,
        tuple(map(Response, texts)),
        _sampled_preferences(row["sampled_conflict_pairs"], qualities, order),
        order,
        [qualities[index] for index in order],
    )


def _sampled_preferences(
    pairs: Sequence[Sequence[int]], qualities: Sequence[float], order: Sequence[int]
) -> tuple[Preference, ...]:
    """The set's sampled pairs, given by indices of the file, by indices of the sorted responses."""
    # a set, since the sample may hold a pair twice
    rank_of = {index: rank for rank, index in enumerate(order)}
    preferences: set[tuple[int, int]] = set()
    for first, second in pairs:
        if qualities[first] > qualities[second]:
            preferences.add((rank_of[first], rank_of[second]))
        elif qualities[first] < qualities[second]:
            preferences.add((rank_of[second], rank_of[first]))

    return tuple(
        Preference(chosen, rejected, 1.0, weight=1 / len(preferences))
        for chosen, rejected in sorted(preferences)
    )


def native(judged: Judged) -> Json:
    """Accuracy by subset, a tie being wrong. The correctness sets also have the area under the ROC
    curve and the best-of-k curve.

    The curve is the mean share of right picks for k = 1 .. 32; `loss` is its mean distance from the
    curve of an oracle.
    """
    by_subset: Json = {}
    for name in judged.subsets:
        of_subset = judged.of(name)
        by_subset[name] = {"accuracy": strict_accuracy(of_subset)}
        if name in CORRECTNESS:
            by_subset[name] |= _curves(of_subset)

    accuracies = [by_subset[name]["accuracy"] for name in CORRECTNESS if name in by_subset]
    if not accuracies:
        return by_subset
    return {**by_subset, "correctness average": fmean(accuracies)}


def _curves(judged: Judged) -> Json:
    curves, oracles, areas = [], [], []
    for item, rewards in zip(judged.items, judged.rewards, strict=True):
        qualities = item.qualities or [float(preferred) for preferred in item.preferred]
        curves.append(expected_picks(rewards, qualities))
        oracles.append(expected_picks(qualities, qualities))
        area = _area(rewards, qualities)
        if area is not None:
            areas.append(area)

    # an item whose responses are all right, or all wrong, has curves but no area
    curve, oracle = np.mean(curves, axis=0), np.mean(oracles, axis=0)
    return {
        "area under ROC": fmean(areas) if areas else None,
        "best of k": curve.tolist(),
        "max": float(curve.max()),
        "end": float(curve[-1]),
        "loss": float(np.mean(oracle - curve)),
    }


def _area(rewards: Sequence[float], qualities: Sequence[float]) -> float | None:
    """The share of pairs of a right and a wrong response in which the right one has the higher
    reward, a tie half; None without such a pair."""
    values, is_right = np.asarray(rewards), np.asarray(qualities) > 0.5
    right, wrong = values[is_right], values[~is_right]
    if len(right) == 0 or len(wrong) == 0:
        return None

    # the mean sign over all pairs is the share won minus the share lost
    return float((np.sign(right[:, None] - wrong[None, :]).mean() + 1) / 2)


PPE = Benchmark(
    name="ppe",
    home=HOME,
    read=read,
    native=native,
    domains={"objective": CORRECTNESS, "subjective": ("human",)},
    sizes={"mmlu_pro": 512, "math": 512, "gpqa": 512, "ifeval": 512, "mbpp_plus": 507},
)
