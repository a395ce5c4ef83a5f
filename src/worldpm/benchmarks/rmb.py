"""RMB: helpfulness and harmlessness over 49 scenarios, as pairs and as one best answer among
several.

Source: Zhou et al. 2025, arXiv 2410.09893; https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark,
commit 2be3180.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.benchmarks.metrics import best_wins
from worldpm.records import Message

HOME = "https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark (`RMB_dataset/`)"
SETS = {"Pairwise_set": "pairwise", "BoN_set": "best of n"}
SUBSETS = (
    "pairwise Helpfulness",
    "pairwise Harmlessness",
    "best of n Helpfulness",
    "best of n Harmlessness",
)
SIZES = {"best of n Helpfulness": 2109, "best of n Harmlessness": 1677}
DOMAINS = {"subjective": (SUBSETS[0], SUBSETS[2]), "safety": (SUBSETS[1], SUBSETS[3])}

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The pairs and the lists, named `pair:UID` and `bon:UID`.

    Raises:
        ConfigError: If the files are absent.
        DataError: If a file is not as the repository has it.
    """
    found = files(folder, "Pairwise_set/*/**/*.json", "BoN_set/*/**/*.json", home=HOME)
    return parse(found, _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    kind, side = row["category_path"].split("/")[:2]
    subset = f"{SETS[kind]} {side}"
    if subset not in SUBSETS:
        raise ValueError(f"no category {row['category_path']!r}")
    prompt = [
        Message(str(message["role"]), message["content"]) for message in row["conversation_input"]
    ]
    if "pair_uid" in row:
        yield better_first(
            subset,
            f"pair:{row['pair_uid']}",
            prompt,
            [row["chosen"]["answer"]],
            [row["reject"]["answer"]],
        )
    else:
        worse = [loser["answer"] for loser in row["loser_list"]]
        yield better_first(
            subset, f"bon:{row['bon_uid']}", prompt, [row["bon_best"]["answer"]], worse
        )


def native(judged: Judged) -> Json:
    """The four sections, a tie being wrong and a list right only if its best beats every other, and
    their plain mean."""
    found = {
        name: best_wins(judged.of(name))
        for name in SUBSETS
        if any(item.subset == name for item in judged.items)
    }
    return {**found, "average": fmean(found.values())}
