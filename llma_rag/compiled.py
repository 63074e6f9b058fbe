"""Compile functions over arrays with numba: a draft is made between two passes of the model.

In plain Python a draft takes about 70 us as a chain and 200 us as a tree, which a pass of a small
model on a GPU does not hide.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numpy as np
from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function at its first call; numba keeps the outcome on disk for later processes.

    To tell whether what it kept still holds, numba looks at the file of the function alone: after
    changing a function that compiled ones of other files call, delete `llma_rag/__pycache__`.
    """
    return cast(Callable[P, R], njit(cache=True, error_model="numpy")(function))


@compiled
def varying(start: int) -> int:
    """Return `start` as what a variable begins with; numba takes a bare number for a constant.

    It compiles every function that is called with a constant once more for that constant.
    """
    return int(np.int64(start))
