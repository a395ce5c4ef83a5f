"""HelpSteer3's validation rows: two responses to a conversation, and how strongly people prefer
one, -3 to 3.

A row of `validation.jsonl.gz`. Below 0 the first response is better, above 0 the second:

    {"domain": "code", "context": [{"role": "user", "content": "Sort it."}], "response1": "No.",
     "response2": "x.sort()", "overall_preference": 2}

Source: Wang et al. 2025, arXiv 2505.11475; https://huggingface.co/datasets/nvidia/HelpSteer3,
`preference/`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, Turn, files, messages_of, parse, two
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.records import Preference

HOME = "https://huggingface.co/datasets/nvidia/HelpSteer3 (`preference/validation.jsonl.gz`)"
SUBSETS = ("general", "stem", "code", "multilingual")


class _Row(msgspec.Struct, frozen=True):
    """Two responses to a conversation."""

    domain: str
    context: list[Turn]
    response1: str
    response2: str
    overall_preference: int


def read(folder: Path) -> list[Item]:
    """The pairs without ties, named by their row. The size of the preference is the strength.

    Raises:
        ConfigError: If the file is absent.
        DataError: If the file does not have the data set's format.
    """
    paths = files(folder, "validation*.jsonl", home=HOME)
    # the data set's other folders hold feedback and edits
    preference_paths = [path for path in paths if path.parent.name == "preference"]
    return parse(preference_paths or paths, _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    gap = row.overall_preference
    if gap not in range(-3, 4) or row.domain not in SUBSETS:
        raise ValueError(f"unknown domain {row.domain!r} or preference {gap}")
    if not gap:
        return

    # the sign shows the better response, and the size how much better it is
    better = 0 if gap < 0 else 1
    prompt = messages_of(row.context)
    item = two(row.domain, str(number), prompt, row.response1, row.response2, better)
    yield replace(item, preferences=(Preference(0, 1, float(abs(gap))),))


def native(judged: Judged) -> dict[str, float]:
    """Accuracy by domain of the prompts and over all pairs; a tie is wrong."""
    present = judged.subsets
    by_domain = {name: strict_accuracy(judged.of(name)) for name in SUBSETS if name in present}
    return {**by_domain, "overall": strict_accuracy(judged)}


HELPSTEER3 = Benchmark(
    name="helpsteer3", home=HOME, read=read, native=native, domains={"subjective": ()}
)
