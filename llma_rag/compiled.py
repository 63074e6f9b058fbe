"""Compile functions over arrays with numba: a draft is made between two passes of the model.

In plain Python a draft takes about 70 us as a chain and 200 us as a tree, which a pass of a small
model on a GPU does not hide.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numpy as np
from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def forget_what_may_be_stale(package: Path) -> None:
    """Delete functions that were compiled before a source file of the package changed.

    To tell whether what it kept still holds, numba looks at the file of the function alone, and not
    at those of functions that it calls.
    """
    newest = max(file.stat().st_mtime_ns for file in package.glob("*.py"))
    for file in (package / "__pycache__").glob("*.nb[ic]"):
        try:
            if file.stat().st_mtime_ns < newest:
                file.unlink()
        except OSError:  # another process was quicker, or the folder may not be written
            continue


forget_what_may_be_stale(Path(__file__).parent)


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function at its first call; numba keeps the outcome on disk for later processes.

    Functions become parts of those that call them: numba counts references of every array that is
    passed between functions, which took a third of a draft.
    Where there is no folder to keep it in, every process compiles anew.
    """
    try:
        made = njit(cache=True, error_model="numpy", forceinline=True)(function)
    except RuntimeError:  # numba found no folder that it may write to
        made = njit(error_model="numpy", forceinline=True)(function)
    return cast(Callable[P, R], made)


@compiled
def varying(start: int) -> int:
    """Return `start` as what a variable begins with; numba takes a bare number for a constant.

    It compiles every function that is called with a constant once more for that constant.
    """
    return int(np.int64(start))
