"""Groups as pairs, in the form that TRL and Hugging Face `datasets` read, with credits to
authors."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from worldpm.preferences import dataset_card
from worldpm.preferences.dataset_card import CREDITS
from worldpm.records import PreferenceGroup, Response
from worldpm.storage import parquet, schema
from worldpm.storage.folders import Output
from worldpm.storage.json_files import Plain

SPLITS = ("train", "validation", "test")


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
    files = {split: f"data/{split}.parquet" for split, count in counts.items() if count.pairs}
    card = dataset_card.pairs_card(dataset_card.facts_of(folders), files=files)
    output.write(dataset_card.FILE, card.encode())
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
            "source": group.source,
            "site": group.site,
            **_origin("chosen", group.responses[preference.chosen]),
            **_origin("rejected", group.responses[preference.rejected]),
        }


def _origin(side: str, response: Response) -> Plain:
    """Votes, date and licence of a response, in columns of its side."""
    return {
        f"{side}_votes": response.votes,
        f"{side}_created": response.created,
        f"{side}_licence": response.meta.get("licence"),
    }


def _write_credits(folders: Sequence[Path], aside: Path) -> int:
    with aside.open("wb") as file:
        for number, folder in enumerate(folders):
            with (folder / CREDITS).open("rb") as source:
                if number:
                    source.readline()  # skip the heading, which the first folder wrote
                shutil.copyfileobj(source, file)
    return aside.stat().st_size
