"""Imports of packages that belong to extras; a missing package is reported with its extra."""

import importlib
from typing import Any

from worldpm.errors import ConfigError


def load(module: str, *, extra: str, needed_by: str = "") -> Any:
    """Import a module whose packages come with an extra, such as `data` or `data,eval`.

    `needed_by` is the option that needs it; a verb leaves it empty, because its name starts every
    message.

    Raises:
        ConfigError: If one of the packages is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not extra or package in ("", "worldpm"):
            raise
        start = f"{needed_by}: " if needed_by else ""
        raise ConfigError(f"{start}{package} is not installed. {advice(extra)}") from error


def advice(extra: str) -> str:
    """The sentence that names the extra to install."""
    noun = "extras" if "," in extra else "extra"
    names = extra.replace(",", ", ")
    return f"Install the {noun} {names}; in a clone of WorldPM: pip install '.[{extra}]'"
