"""Every benchmark by its name, which is also the name of its folder."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from worldpm.benchmarks import (
    auto_j,
    best_of_n,
    evalbiasbench,
    finegrained_rlhf,
    groups,
    helpsteer2,
    helpsteer3,
    hh_rlhf,
    hhh_alignment,
    judgebench,
    llmbar,
    offsetbias,
    pandalm,
    paper_views,
    ppe,
    preference_set,
    rewardbench1,
    rewardbench2,
    rewardmath,
    rm_bench,
    rmb,
    shp,
)
from worldpm.benchmarks.items import Item
from worldpm.datasets import hub, preference_sets
from worldpm.errors import ConfigError
from worldpm.storage import folders, rows

Json = dict[str, Any]

BENCHMARKS: dict[str, ModuleType] = {
    "rm-bench": rm_bench,
    "rewardbench1": rewardbench1,
    "rewardbench2": rewardbench2,
    "rmb": rmb,
    "ppe": ppe,
    "judgebench": judgebench,
    "llmbar": llmbar,
    "offsetbias": offsetbias,
    "evalbiasbench": evalbiasbench,
    "helpsteer2": helpsteer2,
    "helpsteer3": helpsteer3,
    "hh-rlhf": hh_rlhf,
    "hhh-alignment": hhh_alignment,
    "pandalm": pandalm,
    "finegrained-rlhf": finegrained_rlhf,
    "rewardmath": rewardmath,
    "auto-j": auto_j,
    "shp": shp,
    "best-of-n": best_of_n,
}
PRESETS = {"worldpm": paper_views}
"""Presets are modules with `NEEDS`, the benchmarks that they are views of, and `judge`."""


class Named(NamedTuple):
    """A benchmark, and where its files are; `place` is None where only raw rewards of it are at
    hand."""

    name: str
    module: ModuleType
    place: Path | None

    def items(self) -> list[Item]:
        """Its items.

        Raises:
            ConfigError: If its files are absent.
            DataError: If a file is damaged.
        """
        assert self.place is not None
        found: list[Item] = self.module.read(self.place)
        if not any(item.preferences for item in found):
            raise ConfigError(
                f"{self.place}: holds no item of {self.name} with a better and a worse response"
            )
        return found


def find(words: Sequence[str], root: Path) -> list[Named]:
    """What `--on` names: benchmarks and presets by name, `NAME=PLACE` with a folder or a hub id,
    groups, or plain preference sets.

    Raises:
        ConfigError: If a word names none of these, or two have one name.
    """
    expanded = [
        name for word in words for name in (PRESETS[word].NEEDS if word in PRESETS else (word,))
    ]
    placed = {
        word.partition("=")[0] for word in words if "=" in word
    }  # a place of one's own goes before a preset's
    found = [_named(word, root) for word in dict.fromkeys(expanded) if word not in placed]
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"--on: two have the same name, {twice[0]}, by which the results call them; rename one"
        )
    return found


def _named(word: str, root: Path) -> Named:
    name, _, place = word.partition("=")
    if name in BENCHMARKS:
        if place:
            return Named(
                name,
                BENCHMARKS[name],
                Path(place) if Path(place).exists() else hub.dataset(place, rows.SUFFIXES),
            )
        return Named(name, BENCHMARKS[name], root / name)
    path = Path(word)
    if path.is_dir():
        if not folders.is_ours(path) and all(
            map(preference_sets.is_plain, preference_sets.files_in(path))
        ):
            return Named(path.resolve().name, preference_set, path)
        folders.manifest(path, made_by="group")
        folders.verified_files(path)
    elif not path.is_file():
        if hub.ID.fullmatch(word):
            return Named(path.name, preference_set, hub.dataset(word, preference_sets.SUFFIXES))
        raise ConfigError(
            f"{word}: neither a benchmark ({', '.join((*BENCHMARKS, *PRESETS))}), nor a folder, nor"
            " a file"
        )
    elif preference_sets.is_plain(path):
        return Named(path.name.split(".")[0], preference_set, path)
    return Named(path.resolve().name.removesuffix(".parquet"), groups, path)


def describe(name: str, items: Sequence[Item]) -> Json:
    """A benchmark as an input of a manifest: its items, and size and hash of everything that was
    read, whatever files it came from."""
    read = repr([*items]).encode()
    return {
        "name": name,
        "items": len(items),
        "bytes": len(read),
        "sha256": hashlib.sha256(read).hexdigest(),
    }
