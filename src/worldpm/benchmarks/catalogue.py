"""Every benchmark by its name, which is also the name of its folder."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worldpm.benchmarks import paper_views, preference_set
from worldpm.benchmarks.auto_j import AUTO_J
from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.best_of_n import BEST_OF_N
from worldpm.benchmarks.evalbiasbench import EVALBIASBENCH
from worldpm.benchmarks.finegrained_rlhf import FINEGRAINED_RLHF
from worldpm.benchmarks.groups import GROUPS
from worldpm.benchmarks.helpsteer2 import HELPSTEER2
from worldpm.benchmarks.helpsteer3 import HELPSTEER3
from worldpm.benchmarks.hh_rlhf import HH_RLHF
from worldpm.benchmarks.hhh_alignment import HHH_ALIGNMENT
from worldpm.benchmarks.items import Item, Judged
from worldpm.benchmarks.judgebench import JUDGEBENCH
from worldpm.benchmarks.llmbar import LLMBAR
from worldpm.benchmarks.measures import PresetResult
from worldpm.benchmarks.offsetbias import OFFSETBIAS
from worldpm.benchmarks.pandalm import PANDALM
from worldpm.benchmarks.ppe import PPE
from worldpm.benchmarks.preference_set import PREFERENCE_SET
from worldpm.benchmarks.rewardbench1 import REWARDBENCH1
from worldpm.benchmarks.rewardbench2 import REWARDBENCH2
from worldpm.benchmarks.rewardmath import REWARDMATH
from worldpm.benchmarks.rm_bench import RM_BENCH
from worldpm.benchmarks.rmb import RMB
from worldpm.benchmarks.shp import SHP
from worldpm.datasets import hub, preference_sets
from worldpm.datasets.preference_sets import NO_COLUMNS, Columns
from worldpm.errors import ConfigError
from worldpm.storage import rows
from worldpm.storage.manifest import Input, is_ours, read_manifest, verified_files


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Several benchmarks under one name, with results over all of them."""

    name: str
    """The word of `--on`."""
    needs: Sequence[str]
    """Names of its benchmarks."""
    judge: Callable[[Mapping[str, Judged]], PresetResult]
    """Its results, by the items and rewards of its benchmarks."""


@dataclass(frozen=True)
class PlacedBenchmark:
    """A benchmark with its files."""

    benchmark: Benchmark
    """How it is read and judged."""
    name: str
    """The benchmark's name, or that of the folder or file if it is the user's own set."""
    path: Path | None
    """Folder or file; None if only raw rewards are at hand."""

    def items(self) -> list[Item]:
        """Its items.

        Raises:
            ConfigError: If its files are absent, or no item has a preference.
            DataError: If a file is damaged.
        """
        if self.path is None:
            raise ConfigError(f"--on {self.name}: its files are not known. Use {self.name}=FOLDER.")

        items = self.benchmark.read(self.path)
        if not any(item.preferences for item in items):
            raise ConfigError(
                f"{self.path}: holds no item of {self.name} with a better and a worse response"
            )
        return items


# In the order of messages that list the names.
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        RM_BENCH,
        REWARDBENCH1,
        REWARDBENCH2,
        RMB,
        PPE,
        JUDGEBENCH,
        LLMBAR,
        OFFSETBIAS,
        EVALBIASBENCH,
        HELPSTEER2,
        HELPSTEER3,
        HH_RLHF,
        HHH_ALIGNMENT,
        PANDALM,
        FINEGRAINED_RLHF,
        REWARDMATH,
        AUTO_J,
        SHP,
        BEST_OF_N,
    )
}
WORLDPM = Preset(name="worldpm", needs=paper_views.NEEDS, judge=paper_views.judge)
PRESETS = {WORLDPM.name: WORLDPM}


def find(
    words: Sequence[str], root: Path, *, columns: Columns = NO_COLUMNS
) -> list[PlacedBenchmark]:
    """The benchmarks that `--on` names: benchmarks and presets by name, `NAME=PLACE` with a folder
    or a hub id, groups, or plain preference sets, whose columns may have other names.

    Raises:
        ConfigError: If a word names none of these, or two have one name.
    """
    expanded: list[str] = []
    for word in words:
        expanded += PRESETS[word].needs if word in PRESETS else [word]

    # in `worldpm rmb=FOLDER` the folder replaces the default one of the preset's benchmark
    placed_names = {word.partition("=")[0] for word in words if "=" in word}
    # a benchmark that two presets need, or that is named twice, is evaluated once
    placed = [_placed(word, root) for word in dict.fromkeys(expanded) if word not in placed_names]

    if columns:
        own = preference_set.with_columns(columns)
        placed = [
            replace(entry, benchmark=own) if entry.benchmark is PREFERENCE_SET else entry
            for entry in placed
        ]

    # results and tables have the names as keys
    names = [benchmark.name for benchmark in placed]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"--on: two have the same name, {doubled[0]}, which the results use; rename one"
        )
    return placed


def _placed(word: str, root: Path) -> PlacedBenchmark:
    name, _, location = word.partition("=")
    if name not in BENCHMARKS:
        return _own_set(word)
    if not location:
        path = root / name
    elif Path(location).exists():  # goes before a data set of that name on the hub
        path = Path(location)
    else:
        path = hub.dataset(location, rows.SUFFIXES)
    return PlacedBenchmark(BENCHMARKS[name], name, path)


def _own_set(word: str) -> PlacedBenchmark:
    """Groups or a plain preference set: a folder, a file or a hub id.

    Raises:
        ConfigError: If it is none of these.
    """
    path = Path(word)
    if path.is_dir():
        if _is_plain_folder(path):
            return PlacedBenchmark(PREFERENCE_SET, path.resolve().name, path)
        # the manifest says which step made it, and vouches for its files
        read_manifest(path, made_by="group")
        verified_files(path)
        return _groups(path)

    if path.is_file():
        if preference_sets.is_plain(path):
            return PlacedBenchmark(PREFERENCE_SET, path.name.split(".")[0], path)
        return _groups(path)

    if not hub.ID.fullmatch(word):
        raise ConfigError(
            f"{word}: neither a benchmark ({', '.join((*BENCHMARKS, *PRESETS))}), nor a folder, nor"
            " a file"
        )
    return PlacedBenchmark(PREFERENCE_SET, path.name, hub.dataset(word, preference_sets.SUFFIXES))


def _is_plain_folder(path: Path) -> bool:
    """Whether a folder is a plain preference set: no step wrote it, and no file holds groups."""
    return not is_ours(path) and all(
        preference_sets.is_plain(file) for file in preference_sets.files_in(path)
    )


def _groups(path: Path) -> PlacedBenchmark:
    return PlacedBenchmark(GROUPS, path.resolve().name.removesuffix(".parquet"), path)


def describe(name: str, items: Sequence[Item]) -> Input:
    """A benchmark as an input of a manifest: its items, and size and hash of everything that was
    read, whatever files it came from."""
    # `repr` has every field: changed texts, preferences or qualities change the hash
    content = repr([*items]).encode()
    digest = hashlib.sha256(content).hexdigest()
    return Input(name=name, items=len(items), bytes=len(content), sha256=digest)
