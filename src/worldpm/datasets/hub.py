"""Data sets on the Hugging Face hub: downloaded once, and only where the user named one."""

import re
from collections.abc import Sequence
from pathlib import Path

from worldpm.errors import ConfigError

ID = re.compile(r"([\w-][\w.-]*/[\w.-]+)((?:/[\w.-]+)*)")
"""OWNER/NAME, and where a repository holds several sets, the folder of one."""


def dataset(name: str, suffixes: Sequence[str]) -> Path:
    """The folder with the files of a data set, of a file's suffixes each.

    Raises:
        ConfigError: If it is no hub id, or the hub does not give it.
    """
    if not (match := ID.fullmatch(name)):
        raise ConfigError(f"{name}: no such file or folder, and no hub id (OWNER/NAME)")
    from huggingface_hub import snapshot_download

    try:
        patterns = [f"{match[2][1:]}*{end}" for end in suffixes]
        return (
            Path(snapshot_download(match[1], repo_type="dataset", allow_patterns=patterns))
            / match[2][1:]
        )
    except Exception as error:  # the hub's errors have many classes; none of them is ours
        raise ConfigError(
            f"{name}: no such file or folder, and the hub did not give it ({type(error).__name__})"
        ) from error
