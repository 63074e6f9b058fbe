"""Use the OpenMP threads that torch computes with, and let go of those that are idle."""

import ctypes
import os
from functools import cache
from typing import Any

import torch

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
    pause = _function("omp_pause_resource_all")
    if pause is not None and os.getpid() == _process:
        pause(_SOFT)


def run_in_parallel(function: int, argument: int, threads: int | None = None) -> None:
    """Call a compiled function in several threads at once and wait for all of them.

    They are the helpers that the calling thread's torch operations use, so that no further ones
    compete with those. The interpreter's lock is released meanwhile.

    Args:
        function: Address of a function of one address that returns nothing.
        argument: The address that each call gets.
        threads: How many; None for as many as torch uses.

    Raises:
        RuntimeError: If torch's OpenMP has no `GOMP_parallel`, as Windows' has not.
    """
    parallel = _function("GOMP_parallel")
    if parallel is None:
        raise RuntimeError("torch's OpenMP runs no functions of others")
    parallel(function, argument, torch.get_num_threads() if threads is None else threads, 0)


_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "omp_pause_resource_all": (ctypes.c_int,),
    "GOMP_parallel": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint),
}


@cache
def _function(name: str) -> Any:
    """Return a function of the OpenMP library that torch was linked with; None if it has none."""
    try:
        found = getattr(ctypes.CDLL(torch._C.__file__), name)
    except (OSError, AttributeError):
        return None
    found.argtypes = _ARGUMENTS[name]
    return found
