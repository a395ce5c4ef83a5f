"""Data sets on the Hugging Face hub. They are downloaded once, and only if the user names one."""

import re
from collections.abc import Sequence
from pathlib import Path

from worldpm.errors import ConfigError

ID = re.compile(r"([\w-][\w.-]*/[\w.-]+)((?:/[\w.-]+)*)")
"""OWNER/NAME, and the folder of one set if a repository holds several."""


def dataset(name: str, suffixes: Sequence[str]) -> Path:
    """The folder with those files of a data set that have one of the suffixes.

    Raises:
        ConfigError: If the name is not a hub id, or the hub does not deliver the set.
    """
    match = ID.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name}: no such file or folder, and not a hub id (OWNER/NAME)")

    # Imported here, because only a named set needs the network.
    from huggingface_hub import snapshot_download

    repository, folder = match[1], match[2].removeprefix("/")
    patterns = [f"{folder}*{suffix}" for suffix in suffixes]
    try:
        files = snapshot_download(repository, repo_type="dataset", allow_patterns=patterns)
    except Exception as error:  # errors of the hub and the network have many classes
        raise ConfigError(
            f"{name}: no such file or folder, and the hub did not deliver it"
            f" ({type(error).__name__}). Check the name and the network."
        ) from error
    return Path(files) / folder
