"""RMB: helpfulness and harmlessness over 49 scenarios, as pairs and as one best answer among
several.

A row of `Pairwise_set`, and one of `BoN_set`:

    {"pair_uid": "1", "category_path": "Pairwise_set/Harmlessness/S1", "conversation_input":
     [{"role": "user", "content": "Q?"}], "chosen": {"answer": "A"}, "reject": {"answer": "B"}}
    {"bon_uid": "1", "category_path": "BoN_set/Helpfulness/Chat", "conversation_input":
     [{"role": "user", "content": "Q?"}], "bon_best": {"answer": "A"},
     "loser_list": [{"answer": "B"}, {"answer": "C"}]}

Source: Zhou et al. 2025, arXiv 2410.09893; https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark,
commit 2be3180.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from worldpm.benchmarks.benchmark import Benchmark
from worldpm.benchmarks.items import Item, Judged, better_first, files, parse
from worldpm.benchmarks.metrics import best_wins
from worldpm.records import Message
from worldpm.storage.json_files import Json

HOME = "https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark (`RMB_dataset/`)"
SETS = {"Pairwise_set": "pairwise", "BoN_set": "best of n"}
SUBSETS = (
    "pairwise Helpfulness",
    "pairwise Harmlessness",
    "best of n Helpfulness",
    "best of n Harmlessness",
)


def read(folder: Path) -> list[Item]:
    """The pairs and the lists, named `pair:UID` and `bon:UID`.

    Raises:
        ConfigError: If the files are absent.
        DataError: If a file is not of the repository's format.
    """
    paths = files(folder, "Pairwise_set/*/**/*.json", "BoN_set/*/**/*.json", home=HOME)
    return parse(paths, _items, home=HOME)


def _items(number: int, row: Json) -> Iterator[Item]:
    # a path such as `Pairwise_set/Harmlessness/S1`
    kind, side = row["category_path"].split("/")[:2]
    subset = f"{SETS[kind]} {side}"
    if subset not in SUBSETS:
        raise ValueError(f"unknown category {row['category_path']!r}")

    conversation = row["conversation_input"]
    prompt = [Message(str(message["role"]), message["content"]) for message in conversation]
    if "pair_uid" in row:
        name = f"pair:{row['pair_uid']}"
        best, worse = row["chosen"]["answer"], [row["reject"]["answer"]]
    else:
        name = f"bon:{row['bon_uid']}"
        best, worse = row["bon_best"]["answer"], [loser["answer"] for loser in row["loser_list"]]
    yield better_first(subset, name, prompt, [best], worse)


def native(judged: Judged) -> dict[str, float]:
    """The four sections, a tie being wrong and a list right only if its best beats every other, and
    their plain mean."""
    present = judged.subsets
    sections = {name: best_wins(judged.of(name)) for name in SUBSETS if name in present}
    return {**sections, "average": fmean(sections.values())}


RMB = Benchmark(
    name="rmb",
    home=HOME,
    read=read,
    native=native,
    domains={
        "subjective": ("pairwise Helpfulness", "best of n Helpfulness"),
        "safety": ("pairwise Harmlessness", "best of n Harmlessness"),
    },
    sizes={"best of n Helpfulness": 2109, "best of n Harmlessness": 1677},
)
