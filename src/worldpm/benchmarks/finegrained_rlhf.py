"""Fine-grained RLHF's development set: four answers to a question about given passages, compared
pair by pair by people.

Source: Wu et al. 2023, arXiv 2306.01693; https://github.com/allenai/FineGrainedRLHF, commit
a1469d4, `tasks/qa_feedback`.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from worldpm.benchmarks.items import Item, Judged, files, parse, prompt_id
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.records import Message, Preference, Response

HOME = "https://github.com/allenai/FineGrainedRLHF (`tasks/qa_feedback/data/dev_feedback.json`)"
SIZES = {"qa-feedback": 488}
DOMAIN = "subjective"
PAIRS = tuple(combinations(range(4), 2))

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 488 of 500 questions whose answers do not all tie, named by their row, with 2,616 pairs;
    answers that win more come first.

    Raises:
        ConfigError: If the file is absent.
        DataError: If it is not as the repository has it.
    """
    return parse(files(folder, "dev_feedback.json", home=HOME), _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    texts = [row[f"prediction {i}"] for i in (1, 2, 3, 4)]
    labels = row["preference"]
    if (
        len(labels) != len(PAIRS)
        or not set(labels) <= {0, 1, 2}
        or not all(isinstance(text, str) for text in texts)
    ):
        raise ValueError(f"preferences {labels}, not six of 0 to 2, or an answer that is no text")
    won = [
        (i, j) if label == 1 else (j, i)
        for (i, j), label in zip(PAIRS, labels, strict=True)
        if label
    ]
    order = sorted(
        range(4),
        key=lambda place: sum(j == place for _, j in won) - sum(i == place for i, _ in won),
    )
    preferences = tuple(
        Preference(order.index(i), order.index(j), 1.0, weight=1 / len(won)) for i, j in won
    )
    passages = "\n\n".join("\n".join(passage) for passage in row["passages"])
    prompt = (Message("user", f"{passages}\n\n{row['question']}"),)
    if preferences:
        yield Item(
            "qa-feedback",
            str(number),
            prompt_id(prompt),
            prompt,
            tuple(Response(texts[i]) for i in order),
            preferences,
            order,
        )


def native(judged: Judged) -> Json:
    """The share of pairs in which the preferred answer has the higher reward; a tie is wrong."""
    return {"accuracy": strict_accuracy(judged)}
