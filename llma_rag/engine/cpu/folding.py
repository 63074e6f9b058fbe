"""Fold rows of numbers into one, in one order whatever their number."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llma_rag.compiled import written
from llma_rag.engine.cpu.vectors import F32, I32, LANES, SUMS, Builder, declared

_utilities: Any = cgutils  # some of them untyped


@written
def largest(typing: Any, numbers: Any, vectors: Any) -> Any:
    """Return the largest of float32 numbers, of so many whole vectors; at least minus infinity."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        def larger(kind: Any, suffix: str, one: Any, other: Any) -> Any:
            chosen = declared(build, ir.FunctionType(kind, [kind] * 2), f"llvm.maxnum.{suffix}")
            return build.call(chosen, [one, other])

        return _fold(build, given, float("-inf"), larger)

    return types.float32(types.int64, types.int64), generate


@written
def total(typing: Any, numbers: Any, vectors: Any) -> Any:
    """Return the sum of float32 numbers, of so many whole vectors; further zeros change no bit."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        def added(kind: Any, suffix: str, one: Any, other: Any) -> Any:
            return build.fadd(one, other)

        return _fold(build, given, 0.0, added)

    return types.float32(types.int64, types.int64), generate


def _fold(build: Builder, given: Any, first: float, combine: Callable[..., Any]) -> Any:
    """Write what combines vectors in their order, and then the lanes in theirs."""
    numbers, vectors = given
    pointer = build.inttoptr(numbers, SUMS.as_pointer())
    start = ir.Constant(SUMS, [ir.Constant(F32, first)] * LANES)
    found = _utilities.alloca_once(build, SUMS)
    build.store(start, found)
    with _utilities.for_range(build, vectors) as loop:
        here = build.load(build.gep(pointer, [loop.index]), align=4)
        build.store(combine(SUMS, f"v{LANES}f32", build.load(found), here), found)
    lanes = build.load(found)
    single = build.extract_element(lanes, ir.Constant(I32, 0))
    for lane in range(1, LANES):
        other = build.extract_element(lanes, ir.Constant(I32, lane))
        single = combine(F32, "f32", single, other)
    return single
