"""PandaLM's test set: two small models' answers to everyday tasks, judged by three people.

Source: Wang et al. 2023, arXiv 2306.05087; https://github.com/WeOpenML/PandaLM, commit 3871806,
`data/testset-v1.json`.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldpm.benchmarks.items import Item, Judged, files, parse, two
from worldpm.benchmarks.metrics import strict_accuracy

HOME = "https://github.com/WeOpenML/PandaLM (`data/testset-v1.json`)"
SIZES = {"pandalm": 894}
DOMAIN = "subjective"

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 894 pairs that two of three people decide, named by their `idx`; the other 105 of the 999
    rows are ties.

    In six rows the response `True` stands as a truth value of JSON; it is read as that word.

    Raises:
        ConfigError: If the file is absent.
        DataError: If it is not as the repository has it.
    """
    return parse(files(folder, "testset-v1.json", home=HOME), _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    labels = [int(row[f"annotator{i}"]) for i in (1, 2, 3)]
    if not set(labels) <= {0, 1, 2}:
        raise ValueError(f"labels {labels}, not of 0 to 2")
    label, votes = Counter(labels).most_common(1)[0]
    one, other = (
        str(row[name]) if isinstance(row[name], bool) else row[name]
        for name in ("response1", "response2")
    )
    if not all(isinstance(text, str) for text in (one, other)):
        raise TypeError("a response is no text")
    if label and votes > 1:
        prompt = "\n\n".join(text for text in (row["instruction"], row["input"]) if text)
        yield two("pandalm", str(row["idx"]), prompt, one, other, label - 1)


def native(judged: Judged) -> Json:
    """The share of pairs in which the majority's choice has the higher reward; a tie is wrong. Tied
    labels are not judged."""
    return {"accuracy without ties": strict_accuracy(judged)}
