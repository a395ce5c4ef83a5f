"""PPE: human votes of Chatbot Arena, and right and wrong answers of four models, 32 per prompt.

A row of human votes, and a row of right and wrong answers. The winner can also be a tie, and the
prompt of a vote can be a list of messages:

    {"question_id": "q", "prompt": "Hi!", "response_1": "No.", "response_2": "Hello!",
     "winner": "model_b"}
    {"question_id": "q", "prompt": "2 + 2?", "model_name": "claude-3-haiku", "response_1": "5", ...,
     "response_32": "4", "scores": [false, ..., true], "sampled_conflict_pairs": [[0, 31], ...]}

Source: Frick et al. 2024, arXiv 2410.14872; https://github.com/lmarena/PPE. Its scoring code was
not available, so the aggregates follow the paper's text. Best-of-k curves are computed exactly
instead of sampled.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import msgspec
import numpy as np

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, Turn, files, messages_of, parse, prompt_id, two
from worldpm.benchmarks.metrics import strict_by_subset
from worldpm.errors import ConfigError
from worldpm.records import Message, Preference, Response
from worldpm.stats.selection import expected_picks
from worldpm.storage.json_files import Plain

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
"""Number of responses to each prompt of the correctness sets."""


class _Vote(msgspec.Struct, frozen=True):
    """A person's vote on two responses."""

    question_id: int | str
    prompt: str | list[Turn]
    response_1: str
    response_2: str
    winner: str


class _Question(msgspec.Struct, frozen=True):
    """A row of right and wrong answers, without the columns of the answers."""

    question_id: int | str
    prompt: str
    model_name: str
    scores: list[float | bool]
    sampled_conflict_pairs: list[tuple[int, int]]


def read(folder: Path) -> list[Item]:
    """Votes with a winner, and items of 32 responses, named `SUBSET/MODEL/QUESTION`, with the pairs
    that the set sampled.

    Votes for a tie are left out.

    Raises:
        ConfigError: If a folder is absent.
        DataError: If a file does not have the data set's format.
    """
    paths = {subset: _paths(folder, word) for subset, word in FOLDER_WORDS.items()}
    if absent := [FOLDER_WORDS[subset] for subset in FOLDER_WORDS if not paths[subset]]:
        raise ConfigError(
            f"{folder}: {', '.join(absent)} does not exist. Download {HOME}, to that folder."
        )

    items = parse(paths["human"], _Vote, _vote, home=HOME)
    for subset in CORRECTNESS:
        of_subset = partial(_correctness, subset)
        items += parse(paths[subset], dict[str, object], of_subset, home=HOME)
    return items


def _paths(folder: Path, word: str) -> list[Path]:
    """The files of the subset whose folder's name contains a word."""
    paths: list[Path] = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        if word in entry.name.lower():
            paths += files(entry, "*.parquet", home=HOME)
    return paths


def _vote(number: int, row: _Vote) -> Iterator[Item]:
    if row.winner not in ("model_a", "model_b"):
        return

    # a question can have several votes, so the row is part of the name
    name = f"human/{row.question_id}/{number}"
    better = 0 if row.winner == "model_a" else 1
    prompt = messages_of(row.prompt)
    yield two("human", name, prompt, row.response_1, row.response_2, better)


def _correctness(subset: str, number: int, row: dict[str, object]) -> Iterator[Item]:
    """The item of a question: right responses come first, and each sampled pair occurs once."""
    question = msgspec.convert(row, _Question)
    # the columns `response_1` to `response_32`
    answers = msgspec.convert([row[f"response_{i + 1}"] for i in range(RESPONSES)], list[str])

    qualities = [float(score) for score in question.scores]
    # `sorted` keeps the file's order within right and within wrong responses
    order = sorted(range(RESPONSES), key=lambda index: -qualities[index])

    prompt = (Message("user", question.prompt),)
    yield Item(
        subset,
        f"{subset}/{question.model_name}/{question.question_id}",
        prompt_id(prompt),
        prompt,
        tuple(Response(answers[index]) for index in order),
        _sampled_preferences(question.sampled_conflict_pairs, qualities, order),
        order,
        [qualities[index] for index in order],
    )


def _sampled_preferences(
    pairs: Sequence[tuple[int, int]], qualities: Sequence[float], order: Sequence[int]
) -> tuple[Preference, ...]:
    """The set's sampled pairs, converted from indices in the file to indices of the sorted
    responses."""
    # a set, because the sample can contain a pair twice
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


def native(judged: Judged) -> Plain:
    """Accuracy by subset; a tie is wrong. The correctness sets also have the area under the ROC
    curve and the best-of-k curve.

    The best-of-k curve is the mean share of right picks for k = 1 .. 32. `loss` is its mean
    distance from the curve of an oracle.
    """
    accuracies = strict_by_subset(judged)
    by_subset: dict[str, Plain] = {}
    for name, accuracy in accuracies.items():
        curves = _curves(judged.of(name)) if name in CORRECTNESS else {}
        by_subset[name] = {"accuracy": accuracy, **curves}

    correctness = [accuracies[name] for name in CORRECTNESS if name in accuracies]
    if not correctness:
        return by_subset
    return {**by_subset, "correctness average": fmean(correctness)}


def _curves(judged: Judged) -> Plain:
    curves, oracles, areas = [], [], []
    for item, rewards in zip(judged.items, judged.rewards, strict=True):
        qualities = item.qualities or [float(preferred) for preferred in item.preferred]
        curves.append(expected_picks(rewards, qualities))
        oracles.append(expected_picks(qualities, qualities))
        area = _area(rewards, qualities)
        if area is not None:
            areas.append(area)

    # an item with only right or only wrong responses has curves, but no area
    curve, oracle = np.mean(curves, axis=0), np.mean(oracles, axis=0)
    return {
        "area under ROC": fmean(areas) if areas else None,
        "best of k": curve.tolist(),
        "max": float(curve.max()),
        "end": float(curve[-1]),
        "loss": float(np.mean(oracle - curve)),
    }


def _area(rewards: Sequence[float], qualities: Sequence[float]) -> float | None:
    """The share of pairs of a right and a wrong response in which the right response has the higher
    reward; a tie counts half. None without such pairs."""
    values, is_right = np.asarray(rewards), np.asarray(qualities) > 0.5
    right, wrong = values[is_right], values[~is_right]
    if len(right) == 0 or len(wrong) == 0:
        return None

    # the mean sign over all pairs is the share of wins minus the share of losses
    return float((np.sign(right[:, None] - wrong[None, :]).mean() + 1) / 2)


PPE = Benchmark(
    name="ppe",
    home=HOME,
    read=read,
    native=native,
    domains={"objective": CORRECTNESS, "subjective": ("human",)},
    sizes={"mmlu_pro": 512, "math": 512, "gpqa": 512, "ifeval": 512, "mbpp_plus": 507},
)
