"""The test split of preference groups as a benchmark: all pairs with different votes. Subsets are
sites."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged
from worldpm.benchmarks.metrics import accuracy
from worldpm.errors import ConfigError
from worldpm.storage import parquet, schema


def read(folder: Path, *, split: str = "test") -> list[Item]:
    """The items of one split of a folder or a Parquet file of groups. Each thread is a prompt.

    Raises:
        ConfigError: If the split has no preferences.
    """
    items = list(_items(folder, split))

    if not any(item.preferences for item in items):
        raise ConfigError(
            f"{folder}: the {split} split has no preferences. Group more threads, or give the split"
            " a larger share."
        )
    return items


def _items(folder: Path, split: str) -> Iterator[Item]:
    for path in parquet.paths_of(folder):
        for group in schema.read_groups(path, split=split):
            # threads do not share prompts, so the group's id is also the prompt's id
            yield Item(
                group.site,
                group.group_id,
                group.group_id,
                group.prompt,
                group.responses,
                group.preferences,
            )


def native(judged: Judged) -> dict[str, float]:
    """The plain mean of the sites' accuracies."""
    return {"mean over sites": fmean(accuracy(judged.of(site)) for site in judged.subsets)}


GROUPS = Benchmark(
    name="groups",
    home="a folder that `worldpm group` made",
    read=read,
    native=native,
    domains={"forum": ()},
)
