"""Locks between processes. The system releases one when its process ends, even after kill -9."""

import errno
import os
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


def try_lock(path: Path, *, mode: int = 0o644) -> BaseFileLock | None:
    """Lock a file, which is made if it does not exist; None if another process holds the lock.

    The holder may remove the file before it releases the lock. Other processes then notice that the
    file no longer has a name.

    Raises:
        OSError: If the file cannot be made.
    """
    # filelock would make a missing folder
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    # any thread may release it
    lock = FileLock(path, mode=mode, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock
