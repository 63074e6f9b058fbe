"""Compile functions over arrays with numba: a draft is made between two passes of the model.

In plain Python a draft takes longer than a pass of a small model on a GPU hides.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numba import cfunc, njit
from numba.core import caching
from numba.extending import intrinsic
from numpy.typing import NDArray

from llma_rag.folders import cache_folder

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

P = ParamSpec("P")
R = TypeVar("R")

CONFIG: Any = numba.config
_FunctionCache: Any = caching.FunctionCache

KEPT = 4
"""Versions of the package of which compiled functions are kept."""

_log = logging.getLogger("numba")
if _log.level == logging.NOTSET:
    _log.setLevel(logging.WARNING)  # with DEBUG it tells of every instruction that it compiles


def folder_for(package: Path, base: Path | None = None) -> Path | None:
    """Return where functions that were compiled from these very sources are kept.

    numba tells whether what it kept still holds by the file of a function alone, and functions here
    contain those of other files. The folder is therefore named after all sources of such functions.

    Args:
        package: Folder of the sources.
        base: Where such folders stand, and nothing else; None for one in `NUMBA_CACHE_DIR`, else
            in the user's cache folder.

    Returns:
        The folder; None where there are no sources or it cannot be written.
    """
    try:
        texts = [file.read_bytes() for file in sorted(package.rglob("*.py"))]
        sources = [text for text in texts if b"@compiled" in text or b"@written" in text]
        if not sources:
            return None
        digest = hashlib.sha256(b"".join(sources)).hexdigest()[:16]
        if base is None:
            chosen = CONFIG.CACHE_DIR
            base = Path(chosen) / "llma-rag" if chosen else cache_folder("compiled")
        if base is None:
            return None
        if not (base / digest).exists():
            (base / digest).mkdir(parents=True, exist_ok=True)
            for other in sorted(base.iterdir(), key=lambda one: -one.stat().st_mtime)[KEPT:]:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:  # not to be written
        return None
    return base / digest if os.access(base / digest, os.W_OK) else None


FOLDER = folder_for(Path(__file__).parent)


class _Kept(_FunctionCache):  # type: ignore[misc]  # untyped in numba
    """What is kept of a function; where it cannot be read or written, the function is compiled."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever unpickling a damaged file raises
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):  # a full disk, or an index that could not be flushed
            super().save_overload(sig, data)


def compiled(
    function: Callable[P, R], *, fastmath: Collection[str] = frozenset()
) -> Callable[P, R]:
    """Compile a function at its first call; the outcome is kept on disk for later processes.

    Functions become parts of those that call them: numba counts references of every array that is
    passed between functions, which takes longer than most of them.

    Args:
        function: Over numbers and arrays.
        fastmath: LLVM's names of what may be taken less exactly than written.
    """
    with _in_folder():
        made: Any = njit(error_model="numpy", forceinline=True, fastmath=set(fastmath))(function)
        if FOLDER is not None:
            made._cache = _Kept(function)  # as `cache=True` does
    return cast(Callable[P, R], made)


def written(function: Callable[..., Any]) -> Any:
    """Have numba call, in place of a function, what the function writes in LLVM's terms.

    The function gets numba's typing context, then the arguments' types.
    """
    return intrinsic(function)


def callback(signature: Any) -> Callable[[Callable[P, R]], Any]:
    """Compile a function at once into one that other languages call by its `address`.

    Args:
        signature: numba's type of the function.
    """

    def decorate(function: Callable[P, R]) -> Any:
        with _in_folder():
            if FOLDER is not None:
                try:
                    return cfunc(signature, cache=True, error_model="numpy")(function)
                except Exception:  # what is kept may be damaged: later processes keep it anew
                    for index in FOLDER.rglob("*.nbi"):
                        index.unlink(missing_ok=True)
            return cfunc(signature, error_model="numpy")(function)

    return decorate


@contextmanager
def _in_folder() -> Iterator[None]:
    """Have numba keep what is declared meanwhile in our folder."""
    before, CONFIG.CACHE_DIR = CONFIG.CACHE_DIR, str(FOLDER or "")
    try:
        yield
    finally:
        CONFIG.CACHE_DIR = before


@compiled
def varying(start: int) -> int:
    """Return `start` as what a variable begins with; numba takes a bare number for a constant.

    It compiles every function that is called with a constant once more for that constant.
    """
    return int(np.int64(start))
