"""WorldPM: preference models from forum votes. A thread is the unit, not a pair."""

import logging
from typing import TYPE_CHECKING

# Warnings about optional kernels, as soon as transformers finds these packages
for _name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
    logging.getLogger(_name).setLevel(logging.ERROR)

if TYPE_CHECKING:
    from worldpm.api import evaluate, fit_laws, read_groups, read_threads, train
    from worldpm.evaluation.results import read_results
    from worldpm.forums.hobbies import simulate
    from worldpm.records import Message
    from worldpm.scoring.scorer import Scorer

    __version__: str

__all__ = [
    "Message",
    "Scorer",
    "__version__",
    "evaluate",
    "fit_laws",
    "read_groups",
    "read_results",
    "read_threads",
    "simulate",
    "train",
]

HOMES = {
    "Message": "worldpm.records",
    "Scorer": "worldpm.scoring.scorer",
    "evaluate": "worldpm.api",
    "fit_laws": "worldpm.api",
    "read_groups": "worldpm.api",
    "read_results": "worldpm.evaluation.results",
    "read_threads": "worldpm.api",
    "simulate": "worldpm.forums.hobbies",
    "train": "worldpm.api",
}


def __getattr__(name: str) -> object:
    """Load a public name on its first use, so that `import worldpm` stays fast."""
    import importlib
    import importlib.metadata

    if name == "__version__":
        return importlib.metadata.version("worldpm")
    if name not in HOMES:
        raise AttributeError(f"worldpm has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(HOMES[name]), name)
