"""A plain preference set as a benchmark: its test files, or all of them where none is named so;
subsets by file."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from worldpm.benchmarks.items import Item, Judged, prompt_id, unique
from worldpm.benchmarks.metrics import strict_accuracy
from worldpm.datasets import preference_sets

DOMAIN = "preferences"

Json = dict[str, Any]
logger = logging.getLogger(__name__)


def read(place: Path) -> list[Item]:
    """The items of a file or of a folder of files; rows without a preference are left out, and told
    with their reasons.

    Raises:
        ConfigError: If no file is there.
        DataError: If a row has none of the known forms.
    """
    found = [place] if place.is_file() else preference_sets.files_in(place)
    drops: Counter[str] = Counter()
    items = unique(
        (
            Item(
                path.name.split(".")[0],
                group.group_id,
                prompt_id(group.prompt),
                group.prompt,
                group.responses,
                group.preferences,
            )
            for path in [path for path in found if preference_sets.split_of(path) == "test"]
            or found
            for group in preference_sets.groups_of(path, drops)
        ),
        place,
    )
    if drops:
        logger.info(
            "%s: left out %s",
            place,
            "; ".join(f"{reason}: {number:,}" for reason, number in drops.most_common()),
        )
    return items


def native(judged: Judged) -> Json:
    """Accuracy by file; a tie is wrong."""
    return {
        name: strict_accuracy(judged.of(name))
        for name in dict.fromkeys(item.subset for item in judged.items)
    }
