"""Fine-grained RLHF's development set: four answers to a question about given passages, which
people compared in pairs.

A row of `dev_feedback.json`. The six preferences are those of the pairs (1, 2), (1, 3), ... (3, 4).
Each is 0 for a tie, 1 for the first answer, and 2 for the second:

    {"question": "Who?", "passages": [["Title", "Text."]], "preference": [2, 0, 0, 0, 0, 1],
     "prediction 1": "She.", "prediction 2": "He.", "prediction 3": "It.", "prediction 4": "They."}

Source: Wu et al. 2023, arXiv 2306.01693; https://github.com/allenai/FineGrainedRLHF, commit
a1469d4, `tasks/qa_feedback`.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, files, parse, prompt_id
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.records import Message, Preference, Response

HOME = "https://github.com/allenai/FineGrainedRLHF (`tasks/qa_feedback/data/dev_feedback.json`)"
ANSWERS = 4
PAIRS = tuple(combinations(range(ANSWERS), 2))


class _Row(msgspec.Struct, frozen=True):
    """A question with four answers and the preferences between them."""

    question: str
    passages: list[list[str]]
    preference: list[int]
    prediction_1: str = msgspec.field(name="prediction 1")
    prediction_2: str = msgspec.field(name="prediction 2")
    prediction_3: str = msgspec.field(name="prediction 3")
    prediction_4: str = msgspec.field(name="prediction 4")


def read(folder: Path) -> list[Item]:
    """The 488 of 500 questions whose answers do not all tie, named by their row, with 2,616 pairs.
    Answers that win more pairs come first.

    Raises:
        ConfigError: If the file is absent.
        DataError: If the file does not have the repository's format.
    """
    return parse(files(folder, "dev_feedback.json", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    if len(row.preference) != len(PAIRS) or not set(row.preference) <= {0, 1, 2}:
        raise ValueError(f"preferences {row.preference} are not six numbers from 0 to 2")

    wins = _wins(row.preference)
    if not wins:
        return

    # preferences may not be transitive, so sort by wins minus losses
    order = sorted(range(ANSWERS), key=lambda answer: _losses_less_wins(answer, wins))
    preferences = tuple(
        Preference(order.index(winner), order.index(loser), 1.0, weight=1 / len(wins))
        for winner, loser in wins
    )
    passages = "\n\n".join("\n".join(passage) for passage in row.passages)
    prompt = (Message("user", f"{passages}\n\n{row.question}"),)
    texts = (row.prediction_1, row.prediction_2, row.prediction_3, row.prediction_4)
    yield Item(
        "qa-feedback",
        str(number),
        prompt_id(prompt),
        prompt,
        tuple(Response(texts[answer]) for answer in order),
        preferences,
        order,
    )


def _wins(labels: list[int]) -> list[tuple[int, int]]:
    """The better and the worse answer of each pair that is not a tie."""
    wins: list[tuple[int, int]] = []
    for (first, second), label in zip(PAIRS, labels, strict=True):
        if label:
            wins.append((first, second) if label == 1 else (second, first))
    return wins


def _losses_less_wins(answer: int, wins: list[tuple[int, int]]) -> int:
    lost = sum(loser == answer for _, loser in wins)
    won = sum(winner == answer for winner, _ in wins)
    return lost - won


def native(judged: Judged) -> dict[str, float]:
    """The share of pairs in which the preferred answer has the higher reward; a tie is wrong."""
    return {"accuracy": strict_accuracy(judged)}


FINEGRAINED_RLHF = Benchmark(
    name="finegrained-rlhf",
    home=HOME,
    read=read,
    native=native,
    domains={"subjective": ()},
    sizes={"qa-feedback": 488},
)
