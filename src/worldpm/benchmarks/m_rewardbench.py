"""M-RewardBench: the pairs of RewardBench 1 in 23 languages.

A row of the file of a language, for instance `deu_Latn/test-00000-of-00001.parquet`:

    {"id": 30, "language": "deu_Latn", "prompt": "Hallo!", "chosen": "Guten Tag!", "rejected":
     "Nein.", "source": "alpacaeval-easy"}

Source: Gureja et al. 2024, arXiv 2410.15522;
https://huggingface.co/datasets/CohereLabsCommunity/multilingual-reward-bench. The tests have rows
of this form, not the files.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import msgspec

from worldpm.benchmarks import rewardbench1
from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.storage.json_files import Plain

HOME = "https://huggingface.co/datasets/CohereLabsCommunity/multilingual-reward-bench"
AVERAGE = "average"


class _Row(msgspec.Struct, frozen=True):
    """A translated prompt with a better and a worse response."""

    id: int | str
    language: str
    prompt: str
    chosen: str
    rejected: str
    source: str
    """Subset of RewardBench 1."""


def read(folder: Path) -> list[Item]:
    """The pairs of all languages whose files are there; subsets are languages.

    Raises:
        ConfigError: If no file is there.
        DataError: If a file does not have the data set's format.
    """
    return parse(files(folder, "*_*/test*.parquet", home=HOME), _Row, _items, home=HOME)


def _items(number: int, row: _Row) -> Iterator[Item]:
    if row.source not in rewardbench1.SIZES:
        raise ValueError(f"unknown source {row.source!r}")
    name = f"{row.language}:{row.source}:{row.id}"
    item = better_first(row.language, name, row.prompt, [row.chosen], [row.rejected])
    # translations of a prompt are one cluster, because a hard prompt is hard in all languages
    yield replace(item, prompt_id=cluster(row.language, name))


def cluster(subset: str, item: str) -> str:
    """The prompt of an item, in all languages."""
    return item.partition(":")[2]


def native(judged: Judged) -> Plain:
    """RewardBench 1's sections and their mean for each language, and the mean over languages. A tie
    is wrong."""
    languages: dict[str, dict[str, float]] = {}
    for language in judged.subsets:
        of_language = judged.of(language)
        by_source: defaultdict[str, list[int]] = defaultdict(list)
        for index, item in enumerate(of_language.items):
            by_source[item.item.split(":")[1]].append(index)
        accuracies = {
            source: strict_accuracy(of_language.at(indices))
            for source, indices in by_source.items()
        }
        languages[language] = rewardbench1.sections(accuracies)

    means = [sections[AVERAGE] for sections in languages.values() if AVERAGE in sections]
    average = {AVERAGE: fmean(means)} if len(means) == len(languages) else {}
    return {"languages": languages, **average}


M_REWARDBENCH = Benchmark(
    name="m-rewardbench",
    home=HOME,
    read=read,
    native=native,
    domains={"mixed": ()},
    cluster=cluster,
)
