"""WorldPM: preference models from forum votes. A thread is the unit, not a pair."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldpm.forums.hobbies import simulate
    from worldpm.records import Message
    from worldpm.scoring.scorer import Scorer

    __version__: str

__all__ = ["Message", "Scorer", "__version__", "simulate"]

HOMES = {
    "Message": "worldpm.records",
    "Scorer": "worldpm.scoring.scorer",
    "simulate": "worldpm.forums.hobbies",
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
