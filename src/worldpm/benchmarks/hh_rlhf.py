"""hh-rlhf's test splits: two continuations of a dialogue, one of them chosen by people because it
is helpful or harmless.

A row of `SUBSET/test.jsonl.gz`:

    {"chosen": "\\n\\nHuman: Hi!\\n\\nAssistant: Hello!",
     "rejected": "\\n\\nHuman: Hi!\\n\\nAssistant: No."}

Source: Bai et al. 2022, arXiv 2204.05862; https://github.com/anthropics/hh-rlhf, commit 354e5c3.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, better_first, files, parse, unique
from worldpm.benchmarks.metrics import strict_by_subset
from worldpm.storage import dialogues

HOME = "https://github.com/anthropics/hh-rlhf (`SUBSET/test.jsonl.gz`)"
SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")


def read(folder: Path) -> list[Item]:
    """The pairs whose dialogues are equal up to the last turn, named `SUBSET:ROW`. Of the 2,312
    pairs of harmless-base, 2,307 are such pairs.

    Raises:
        ConfigError: If the file is missing.
        DataError: If a file does not have the repository's format.
    """
    subsets_of = {path: _subsets_of(path) for path in files(folder, "*test.jsonl", home=HOME)}
    if not any(subsets_of.values()):
        # this raises, because a file of that name would belong to a subset
        files(folder, f"{SUBSETS[0]}_test.jsonl", home=HOME)

    items: list[Item] = []
    for path, subsets in subsets_of.items():
        for subset in subsets:
            items += parse([path], dict[str, object], partial(_items, subset), home=HOME)
    return unique(items, folder)


def _subsets_of(path: Path) -> list[str]:
    """The subsets of a file, from its folder (`helpful-base/test.jsonl`) or its name
    (`helpful-base_test.jsonl`)."""
    folder = path.parent.name
    return [name for name in SUBSETS if folder == name or path.name.startswith(name)]


def _items(subset: str, number: int, row: dict[str, object]) -> Iterator[Item]:
    pair = dialogues.pair(row)
    # a string is the reason why the row has no preference
    if not isinstance(pair, str):
        better, worse = pair.responses[:1], pair.responses[1:]
        yield better_first(subset, f"{subset}:{number}", pair.prompt, better, worse)


def native(judged: Judged) -> dict[str, float]:
    """Accuracy by subset; a tie is wrong."""
    return strict_by_subset(judged)


HH_RLHF = Benchmark(
    name="hh-rlhf",
    home=HOME,
    read=read,
    native=native,
    domains={"safety": SUBSETS[:1], "subjective": SUBSETS[1:]},
)
