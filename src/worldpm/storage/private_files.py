"""Files with secrets, which other users of the machine must not read."""

import stat
from pathlib import Path

from worldpm.errors import ConfigError


def read_private(path: Path, option: str) -> bytes:
    """The content of a file that an option names.

    Its group may read it: Kubernetes gives a mounted secret to the group of the pod.

    Raises:
        ConfigError: If the file does not exist, or others can read or write it.
    """
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror})") from error

    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ConfigError(
            f"{option} {path}: other users can read or write it. Run chmod 600 on it."
        )
    return content
