"""Options of `worldpm push`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from worldpm.options.shared import Groups


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Upload a finished folder to the Hugging Face hub, with its card."""

    EXAMPLE: ClassVar[str] = "worldpm push model OWNER/NAME"
    INPUTS: ClassVar[tuple[str, ...]] = ("folder",)
    GROUPS: ClassVar[Groups] = {"upload": ("public", "message")}

    folder: Positional[Path]
    """Folder of `worldpm export`, `worldpm group` or `worldpm evaluate`."""
    repository: Positional[str]
    """Repository of the hub, OWNER/NAME; made if it does not exist. HF_ENDPOINT names another hub,
    HF_TOKEN a token."""
    public: bool = False
    """Make a new repository public; it is private unless set."""
    message: str | None = None
    """Message of the commit."""
