"""Locks between processes. The system releases one when its process ends, even after kill -9."""

import errno
import os
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


def try_lock(path: Path, *, mode: int = 0o644) -> BaseFileLock | None:
    """A lock on a file, which is made where it is absent; None if another process holds it.

    The holder may remove the file before it releases the lock: others then notice that their file
    has no name any more.

    Raises:
        OSError: If the file cannot be made.
    """
    # filelock would make the folder
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    # any thread may release it
    lock = FileLock(path, mode=mode, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock
