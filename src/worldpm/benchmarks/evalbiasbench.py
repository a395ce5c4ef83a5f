"""EvalBiasBench: eighty pairs in which a known bias of judges prefers the wrong answer.

Source: Park et al. 2024, arXiv 2407.06551; https://github.com/ncsoft/offsetbias, commit 0bd16e4,
`run_bench.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.benchmarks.metrics import strict_accuracy

HOME = "https://github.com/ncsoft/offsetbias (`data/evalbiasbench/biasbench.json`)"
DOMAIN = "adversarial"
SIZES = {
    "length bias": 17,
    "concreteness": 14,
    "empty reference": 13,
    "content_continuation": 12,
    "nested_instruction": 12,
    "familiar knowledge preference bias": 12,
}

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 80 pairs, named by their row; the first response of each is the right one.

    Raises:
        ConfigError: If the file is absent.
        DataError: If it is not as the repository has it.
    """
    return parse(files(folder, "biasbench.json", home=HOME), _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    if str(row["label"]) not in ("1", "2") or row["bias"] not in SIZES:
        raise ValueError(f"bias {row['bias']!r}, label {row['label']!r}")
    texts = [row["response1"], row["response2"]]
    better = texts.pop(int(row["label"]) - 1)
    yield better_first(row["bias"], str(number), row["instruction"], [better], texts)


def native(judged: Judged) -> Json:
    """Accuracy by bias and their plain mean; both orders must be right, in which a tie is wrong."""
    found = {
        name: strict_accuracy(judged.of(name))
        for name in dict.fromkeys(item.subset for item in judged.items)
    }
    return {**found, "average": fmean(found.values())}
