"""LLMBar: does a judge see which output follows the instruction? Natural and four adversarial subsets.

Source: Zeng et al. 2024, arXiv 2310.07641; https://github.com/princeton-nlp/LLMBar, commit 900616b.
"""

import json
from pathlib import Path
from typing import Any

from worldpm.field.errors import ConfigError, DataError
from worldpm.field.records import Message, Preference, Response
from worldpm.parts.benchmarks.items import Item, prompt_id

SUBSETS = {
    "Natural": "Natural",
    "Neighbor": "Adversarial/Neighbor",
    "GPTInst": "Adversarial/GPTInst",
    "GPTOut": "Adversarial/GPTOut",
    "Manual": "Adversarial/Manual",
}
ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")
DOMAINS = {"adversarial": ADVERSARIAL, "subjective": ("Natural",)}
"""The natural subset's labels are human judgement of which output is better overall."""
HOME = "https://github.com/princeton-nlp/LLMBar"

Json = dict[str, Any]


def read(folder: Path) -> list[Item]:
    """The 419 main items, from the repository's `Dataset` folder; the better output comes first in each.

    Raises:
        ConfigError: If the folder is absent; the message says what to download and where it goes.
        DataError: If a file is not as the repository has it.
    """
    roots = [root for root in (folder / "LLMBar", folder / "Dataset" / "LLMBar") if root.is_dir()]
    if not roots:
        raise ConfigError(f"{folder}: LLMBar is not there; copy `Dataset/LLMBar` of {HOME} to {folder / 'LLMBar'}")
    return [item for subset, place in SUBSETS.items() for item in _read_subset(roots[0] / place / "dataset.json", subset)]


def _read_subset(path: Path, subset: str) -> list[Item]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [_item(row, subset, number) for number, row in enumerate(rows)]
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; copy it from {HOME}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(path, f"not LLMBar's format ({type(error).__name__}: {error}); copy it anew from {HOME}") from error


def _item(row: Json, subset: str, number: int) -> Item:
    if row["label"] not in (1, 2):
        raise ValueError(f"item {number} has the label {row['label']!r}, not 1 or 2")
    better, worse = (row["output_1"], row["output_2"]) if row["label"] == 1 else (row["output_2"], row["output_1"])
    if not all(isinstance(text, str) for text in (row["input"], better, worse)):
        raise ValueError(f"item {number} holds something else than text")
    prompt = (Message("user", row["input"]),)
    return Item(subset, f"{subset}:{number}", prompt_id(prompt), prompt, (Response(better), Response(worse)), (Preference(0, 1, 1.0),))


def native(subsets: Json) -> Json:
    """LLMBar's own aggregates: each subset's accuracy, and the plain mean of the adversarial four.

    Its accuracy is the mean over both orders of the outputs, so a tie counts half.
    """
    adversarial = [subsets[name]["accuracy"] for name in ADVERSARIAL]
    return {**{name: subsets[name]["accuracy"] for name in SUBSETS}, "Adversarial average": sum(adversarial) / len(adversarial)}
