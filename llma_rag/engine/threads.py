"""Let go of OpenMP's idle threads, which slow down the threads that compute for another one."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

_SOFT = 1
"""OpenMP's `omp_pause_soft`: threads go, settings stay."""

_process = os.getpid()


def release_idle_threads() -> None:
    """End the OpenMP threads that compute for the calling thread; the next need starts them anew.

    Every thread that computes has helpers of its own. Where all of them are more than processors,
    GNU's OpenMP no longer lets helpers wait actively between two operations, and small operations
    take longer. Does nothing in a forked process, where the helpers are gone and cannot be waited
    for, nor where OpenMP 5.0's `omp_pause_resource_all` is not found.
    """
    pause = _pause()
    if pause is not None and os.getpid() == _process:
        pause(_SOFT)


@cache
def _pause() -> Callable[[int], int] | None:
    for library in _loaded():
        try:
            pause: Callable[[int], int] = ctypes.CDLL(library).omp_pause_resource_all
        except (OSError, AttributeError):
            continue
        return pause
    return None


def _loaded() -> list[str]:
    """Return the files of the OpenMP libraries that this process has loaded, on Linux."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    files = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line}
    return sorted(file for file in files if "libgomp" in file or "omp5" in file)
