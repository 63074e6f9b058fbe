"""Know a processor's vectors, and write what all kernels need of LLVM's instructions."""

import platform
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core.codegen import get_host_cpu_features

from llma_rag.compiled import CONFIG, written


class Tile(NamedTuple):
    """What is kept in registers.

    Attributes:
        lanes: Numbers of a vector; a block of weights holds two vectors of outputs.
        rows: Most rows, which take two vectors of sums each.
    """

    lanes: int
    rows: int


def _tile_for(machine: str, features: dict[str, bool]) -> Tile | None:
    """Return the tile that fills a processor's registers; None where none was tried."""
    if features.get("avx512f"):
        return Tile(lanes=16, rows=12)  # 24 of 32 vectors hold sums
    if all(map(features.get, ("avx2", "fma", "f16c"))):
        return Tile(lanes=8, rows=6)  # 12 of 16
    if machine in ("aarch64", "arm64"):
        return Tile(lanes=4, rows=12)  # 24 of 32
    return None


def _features() -> dict[str, bool]:
    """Return what numba compiles for: the processor, or what the user has it take for one."""
    said = CONFIG.CPU_FEATURES
    if said is None:
        said = str(get_host_cpu_features())  # type: ignore[no-untyped-call]  # untyped there
    return {name[1:]: name[0] == "+" for name in said.split(",") if name}


TILE = _tile_for(platform.machine(), _features())

LANES, ROWS = TILE or Tile(4, 4)

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
WORDS, SUMS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
HALVES = ir.VectorType(ir.HalfType(), LANES)

Builder = Any
"""llvmlite's `IRBuilder`."""


@written
def load(typing: Any, address: Any, index: Any) -> Any:
    """Return the eight bytes at an index behind an address."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        return build.load(build.gep(build.inttoptr(given[0], I64.as_pointer()), [given[1]]))

    return types.int64(types.int64, types.int64), generate


@written
def take(typing: Any, address: Any) -> Any:
    """Return the number at an address and count it up, as one operation among threads."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        pointer = build.inttoptr(given[0], I64.as_pointer())
        return build.atomic_rmw("add", pointer, constant(1), "monotonic")

    return types.int64(types.int64), generate


def constant(value: int) -> Any:
    """Return a number of 64 bits."""
    return ir.Constant(I64, value)


def fetch(build: Builder, pointer: Any) -> None:
    """Have the second cache fetch what stands at a pointer, which may lie behind all weights."""
    where = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [where, I32, I32, I32])
    prefetch = declared(build, kind, "llvm.prefetch.p0")
    read, second, data = (ir.Constant(I32, one) for one in (0, 2, 1))
    build.call(prefetch, [build.bitcast(pointer, where), read, second, data])


def declared(build: Builder, kind: ir.FunctionType, name: str) -> Any:
    """Return a function of LLVM's by its name."""
    known = build.module.globals.get(name)
    return ir.Function(build.module, kind, name) if known is None else known
