"""The memory of this process."""

import sys
from importlib.util import find_spec

import psutil

if find_spec("resource"):
    import resource


def peak_mib() -> int:
    """Largest resident memory of this process so far, in MiB.

    Systems without POSIX's `resource` give psutil's peak (Windows), or else the current size.
    """
    if find_spec("resource"):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # kilobytes on Linux
        return int(peak) // (1024 * 1024 if sys.platform == "darwin" else 1024)
    sizes = psutil.Process().memory_info()
    return int(getattr(sizes, "peak_wset", sizes.rss)) // (1024 * 1024)
