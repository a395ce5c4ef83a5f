"""Groups as pairs: what TRL reads, in a folder that Hugging Face `datasets` loads, with the credits
due."""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from worldpm.storage import folders, parquet, schema

Json = dict[str, Any]

SPLITS = ("train", "validation", "test")
CREDITS = "ATTRIBUTION.csv"
CARD = """---
configs:
- config_name: default
  data_files:
{files}
---
# Preference pairs

{pairs} pairs of {groups} threads, made by WorldPM: `prompt`, `chosen` and `rejected` are lists of
messages, as TRL's `RewardTrainer` and
`DPOTrainer` read them; `strength` is the gap of votes, `probability` that chosen is truly the
better one, `weight` what the
pair counts: the weights of a thread add up to 1.

Texts from Stack Exchange stay under CC BY-SA. Who wrote what, under which licence, stands in
`{credits}`: keep it with the data.
"""


def write(groups: Sequence[Path], output: folders.Output) -> Json:
    """A table of pairs for each split, a card and the credits; the counts by split."""
    counts: Json = {
        split: output.part(f"data/{split}.parquet", partial(_write_split, groups, split))
        for split in SPLITS
    }
    output.part(CREDITS, partial(_write_credits, groups))
    files = "\n".join(
        f"  - split: {split}\n    path: data/{split}.parquet"
        for split, count in counts.items()
        if count["pairs"]
    )
    totals = {
        name: f"{sum(count[name] for count in counts.values()):,}" for name in ("pairs", "groups")
    }
    output.write("README.md", CARD.format(files=files, credits=CREDITS, **totals).encode())
    return counts


def _write_split(folders_: Sequence[Path], split: str, aside: Path) -> Json:
    groups = 0

    def rows() -> Iterator[Json]:
        nonlocal groups
        for path in parquet.paths_of(*folders_):
            for row in parquet.read_rows(path, schema.GROUPS):
                if row["split"] == split:
                    groups += 1
                    yield from _pairs(row)

    pairs = parquet.write_parquet(
        aside, parquet.rows_to_batches(rows(), schema.PAIRS), schema.PAIRS
    )
    return {"pairs": pairs, "groups": groups}


def _pairs(row: Json) -> Iterator[Json]:
    """The pairs of a group, each with the prompt again."""
    for preference in row["preferences"]:
        sides = {
            side: [{"role": "assistant", "content": row["responses"][preference[side]]["content"]}]
            for side in ("chosen", "rejected")
        }
        numbers = {
            "strength": preference["strength"],
            "probability": preference["probability"],
            "weight": preference["weight"],
        }
        yield {"prompt": row["prompt"], **sides, **numbers, "group_id": row["group_id"]}


def _write_credits(folders_: Sequence[Path], aside: Path) -> Json:
    with aside.open("wb") as file:
        for number, folder in enumerate(folders_):
            with (folder / CREDITS).open("rb") as credits_:
                if number:
                    credits_.readline()  # its head stands there already
                shutil.copyfileobj(credits_, file)
    return {"bytes": aside.stat().st_size}
