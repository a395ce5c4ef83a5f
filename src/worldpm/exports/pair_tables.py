"""Groups as pairs, in the form that TRL and Hugging Face `datasets` read, with credits to
authors."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from worldpm.records import PreferenceGroup
from worldpm.storage import parquet, schema
from worldpm.storage.folders import Output
from worldpm.storage.json_files import Plain

SPLITS = ("train", "validation", "test")
CREDITS = "ATTRIBUTION.csv"
CARD = """---
configs:
- config_name: default
  data_files:
{files}
---
# Preference pairs

{pairs} pairs of {groups} threads, made by WorldPM. `prompt`, `chosen` and `rejected` are lists of
messages, in the form of TRL's `RewardTrainer` and `DPOTrainer`. `strength` is the gap of votes,
`probability` the probability that the chosen response is truly better, and `weight` the weight of
the pair. The weights of a thread add up to 1.

Texts from Stack Exchange stay under CC BY-SA. `{credits}` lists the author and licence of each
text. Keep it with the data.
"""


@dataclass
class SplitCounts:
    """Counts of a split's table."""

    pairs: int = 0
    groups: int = 0


def write(folders: Sequence[Path], output: Output) -> dict[str, SplitCounts]:
    """Write a table of pairs for each split, a card and the credits. Return the counts by split."""
    counts = {}
    for split in SPLITS:
        result = output.part(f"data/{split}.parquet", partial(_write_split, folders, split))
        counts[split] = SplitCounts(**result)
    output.part(CREDITS, partial(_write_credits, folders))

    # list only splits with pairs, because `datasets` cannot load an empty table
    filled = [split for split, count in counts.items() if count.pairs]
    files = "\n".join(f"  - split: {split}\n    path: data/{split}.parquet" for split in filled)
    card = CARD.format(
        files=files,
        credits=CREDITS,
        pairs=f"{sum(count.pairs for count in counts.values()):,}",
        groups=f"{sum(count.groups for count in counts.values()):,}",
    )
    output.write("README.md", card.encode())
    return counts


def _write_split(folders: Sequence[Path], split: str, aside: Path) -> dict[str, int]:
    counts = SplitCounts()
    rows = _split_pairs(folders, split, counts)
    counts.pairs = parquet.write_rows(aside, rows, schema.PAIRS)
    return asdict(counts)


def _split_pairs(folders: Sequence[Path], split: str, counts: SplitCounts) -> Iterator[Plain]:
    """The pairs of a split. `counts` counts its groups."""
    for path in parquet.paths_of(*folders):
        for group in schema.read_groups(path, split=split):
            counts.groups += 1
            yield from _pairs(group)


def _pairs(group: PreferenceGroup) -> Iterator[Plain]:
    """The pairs of a group, each with the prompt."""
    prompt = [message.turn() for message in group.prompt]
    turns = [[{"role": "assistant", "content": response.content}] for response in group.responses]
    for preference in group.preferences:
        yield {
            "prompt": prompt,
            "chosen": turns[preference.chosen],
            "rejected": turns[preference.rejected],
            "strength": preference.strength,
            "probability": preference.probability,
            "weight": preference.weight,
            "group_id": group.group_id,
        }


def _write_credits(folders: Sequence[Path], aside: Path) -> int:
    with aside.open("wb") as file:
        for number, folder in enumerate(folders):
            with (folder / CREDITS).open("rb") as source:
                if number:
                    source.readline()  # skip the heading, which the first folder wrote
                shutil.copyfileobj(source, file)
    return aside.stat().st_size
