"""Multiply float32 rows by weights kept in bfloat16; compiled by numba for the processor at hand.

numba cannot be told to keep sums in registers, so the innermost loop is written in LLVM's terms: a
tile of some rows by two vectors of outputs, one step of the inner dimension at a time, which is how
BLIS and oneDNN arrange their own (Goto and van de Geijn, *Anatomy of High-Performance Matrix
Multiplication*, 2008). Every weight that is read serves all rows of the tile, and weights that
are needed soon are fetched ahead: a narrow pass takes as long as reading them.

A number of an output is added up in one order, whatever the tile: the bits of a row do not depend
on how many rows are computed with it.
"""

import platform
from typing import Any, NamedTuple

import llvmlite.binding
from llvmlite import ir
from numba import types

from llma_rag.compiled import CONFIG, callback, compiled, written


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
    if features.get("avx2") and features.get("fma"):
        return Tile(lanes=8, rows=6)  # 12 of 16
    if machine in ("aarch64", "arm64"):
        return Tile(lanes=4, rows=12)  # 24 of 32
    return None


def _features() -> dict[str, bool]:
    """Return what numba compiles for: the processor, or what the user has it take for one."""
    if CONFIG.CPU_FEATURES is not None:
        return {name[1:]: name[0] == "+" for name in CONFIG.CPU_FEATURES.split(",") if name}
    return dict(llvmlite.binding.get_host_cpu_features())


TILE = _tile_for(platform.machine(), _features())

LANES, ROWS = TILE or Tile(4, 4)

DEPTH = 128
"""Steps of the inner dimension that are summed up before they are added to the outcome: that loses
less than one long sum, and the weights of so many steps stay in the first cache."""

AHEAD = 128
"""Vectors of weights between the one that is read and the one that is fetched: 8 KB at AVX-512."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS, _SUMS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)

Builder = Any
"""llvmlite's `IRBuilder`."""


@written
def _load(typing: Any, address: Any, index: Any) -> Any:
    """Return the eight bytes at an index behind an address."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        return build.load(build.gep(build.inttoptr(given[0], _I64.as_pointer()), [given[1]]))

    return types.int64(types.int64, types.int64), generate


@written
def _take(typing: Any, address: Any) -> Any:
    """Return the number at an address and count it up, as one operation among threads."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        pointer = build.inttoptr(given[0], _I64.as_pointer())
        return build.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), generate


@written
def _add_tile(
    typing: Any,
    rows: Any,
    states: Any,
    inner: Any,
    weights: Any,
    steps: Any,
    output: Any,
    stride: Any,
    first: Any,
) -> Any:
    """Add the products of `steps` steps to a tile of the outcome, or set it if `first`.

    `rows` is at most `ROWS`; each number of rows has code of its own. `inner` and `stride` are
    the numbers in a row of `states` and of `output`.
    """

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        done = build.append_basic_block("done")
        choose = build.switch(given[0], done)
        for count in range(1, ROWS + 1):
            block = build.append_basic_block(f"rows{count}")
            choose.add_case(ir.Constant(_I64, count), block)
            build.position_at_end(block)
            _write_tile(build, count, *given[1:])
            build.branch(done)
        build.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


def _write_tile(
    build: Builder,
    rows: int,
    states: Any,
    inner: Any,
    weights: Any,
    steps: Any,
    output: Any,
    stride: Any,
    first: Any,
) -> None:
    """Write the code of one tile of `rows` rows."""
    inputs = _rows_at(build, states, inner, rows, _F32)
    outputs = _rows_at(build, output, stride, rows, _SUMS)
    blocks = build.inttoptr(weights, _WORDS.as_pointer())
    before, loop, after = build.block, *map(build.append_basic_block, ("steps", "end"))
    build.branch(loop)
    build.position_at_end(loop)
    step = build.phi(_I64)
    step.add_incoming(ir.Constant(_I64, 0), before)
    sums = [[build.phi(_SUMS) for _ in range(2)] for _ in range(rows)]
    _fetch(build, build.gep(blocks, [build.add(step, ir.Constant(_I64, AHEAD))]))
    halves = _widened(build, build.load(build.gep(blocks, [step]), align=4))
    for row in range(rows):
        state = _spread(build, build.load(build.gep(inputs[row], [step])))
        for half in range(2):
            total = _multiply_add(build, halves[half], state, sums[row][half])
            sums[row][half].add_incoming(ir.Constant(_SUMS, [0.0] * LANES), before)
            sums[row][half].add_incoming(total, loop)
            sums[row][half] = total
    following = build.add(step, ir.Constant(_I64, 1))
    step.add_incoming(following, loop)
    build.cbranch(build.icmp_signed("<", following, steps), loop, after)
    build.position_at_end(after)
    places = [
        build.gep(outputs[row], [ir.Constant(_I64, half)])
        for row in range(rows)
        for half in range(2)
    ]
    totals = [total for row in sums for total in row]
    with build.if_else(build.icmp_signed("!=", first, ir.Constant(_I64, 0))) as (set_, add):
        with set_:
            for place, total in zip(places, totals, strict=True):
                build.store(total, place, align=4)
        with add:
            for place, total in zip(places, totals, strict=True):
                build.store(build.fadd(build.load(place, align=4), total), place, align=4)


def _rows_at(build: Builder, address: Any, stride: Any, rows: int, kind: ir.Type) -> list[Any]:
    """Return pointers to the beginnings of rows of float32."""
    size = build.mul(stride, ir.Constant(_I64, 4))
    starts = [build.add(address, build.mul(size, ir.Constant(_I64, row))) for row in range(rows)]
    return [build.inttoptr(start, kind.as_pointer()) for start in starts]


def _fetch(build: Builder, pointer: Any) -> None:
    """Have the second cache fetch what stands at a pointer, which may lie behind all weights."""
    where = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [where, _I32, _I32, _I32])
    fetch = _declared(build, kind, "llvm.prefetch.p0")
    read, second, data = (ir.Constant(_I32, number) for number in (0, 2, 1))
    build.call(fetch, [build.bitcast(pointer, where), read, second, data])


def _widened(build: Builder, words: Any) -> tuple[Any, Any]:
    """Return the lower and the upper bfloat16 of every word as float32."""
    lower = build.shl(words, ir.Constant(_WORDS, [16] * LANES))
    upper = build.and_(words, ir.Constant(_WORDS, [-(1 << 16)] * LANES))
    return build.bitcast(lower, _SUMS), build.bitcast(upper, _SUMS)


def _spread(build: Builder, number: Any) -> Any:
    """Return a vector of one number."""
    nothing = ir.Constant(_SUMS, ir.Undefined)
    single = build.insert_element(nothing, number, ir.Constant(_I32, 0))
    return build.shuffle_vector(single, nothing, ir.Constant(_WORDS, [0] * LANES))


def _multiply_add(build: Builder, one: Any, other: Any, total: Any) -> Any:
    kind = ir.FunctionType(_SUMS, [_SUMS] * 3)
    return build.call(_declared(build, kind, f"llvm.fma.v{LANES}f32"), [one, other, total])


def _declared(build: Builder, kind: ir.FunctionType, name: str) -> Any:
    known = build.module.globals.get(name)
    return ir.Function(build.module, kind, name) if known is None else known


@compiled
def _multiply(address: int) -> None:
    """Take tasks until none is left: a block of outputs for as many rows as are taken together."""
    states, weights, output = _load(address, 1), _load(address, 2), _load(address, 3)
    rows, blocks, inner = _load(address, 4), _load(address, 5), _load(address, 6)
    together = _load(address, 7)
    stride = blocks * 2 * LANES
    tasks = blocks * ((rows + together - 1) // together)
    task = _take(address)
    while task < tasks:
        block, start = task % blocks, task // blocks * together
        count = min(together, rows - start)
        tiles = (count + ROWS - 1) // ROWS
        for depth in range(0, inner, DEPTH):
            for tile in range(tiles):
                begin = start + count * tile // tiles
                end = start + count * (tile + 1) // tiles
                _add_tile(
                    end - begin,
                    states + (begin * inner + depth) * 4,
                    inner,
                    weights + (block * inner + depth) * LANES * 4,
                    min(DEPTH, inner - depth),
                    output + (begin * stride + block * 2 * LANES) * 4,
                    stride,
                    depth == 0,
                )
        task = _take(address)


@callback(types.void(types.int64))
def multiply(address: int) -> None:
    """Compute until no task is left; any number of threads may do so at once.

    Args:
        address: Of `bf16_product.Arguments`.
    """
    _multiply(address)
