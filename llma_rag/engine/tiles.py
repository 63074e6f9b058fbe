"""Write code in LLVM's terms whose sums stay in registers, as numba cannot be told to keep them.

A tile is some rows by two vectors of columns, one step of the inner dimension at a time, which is
how BLIS and oneDNN arrange their own (Goto and van de Geijn, *Anatomy of High-Performance Matrix
Multiplication*, 2008). Every weight that is read serves all rows of the tile, and weights that are
needed soon are fetched ahead: a narrow pass takes as long as reading them.

A number of an output is added up in one order, whatever the tile: the bits of a row do not depend
on how many rows are computed with it.
"""

import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

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

_utilities: Any = cgutils  # some of them untyped

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS, _SUMS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)

Builder = Any
"""llvmlite's `IRBuilder`."""


@written
def load(typing: Any, address: Any, index: Any) -> Any:
    """Return the eight bytes at an index behind an address."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        return build.load(build.gep(build.inttoptr(given[0], _I64.as_pointer()), [given[1]]))

    return types.int64(types.int64, types.int64), generate


@written
def take(typing: Any, address: Any) -> Any:
    """Return the number at an address and count it up, as one operation among threads."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        pointer = build.inttoptr(given[0], _I64.as_pointer())
        return build.atomic_rmw("add", pointer, _number(1), "monotonic")

    return types.int64(types.int64), generate


@written
def add_tile(
    typing: Any, rows: Any, states: Any, inner: Any, weights: Any, steps: Any, output: Any,
    stride: Any, first: Any,
) -> Any:  # fmt: skip
    """Add the products of `steps` steps to a tile of the outcome, or set it if `first`.

    `rows` is at most `ROWS`. `inner` and `stride` are the numbers in a row of `states` and of
    `output`. Weights are bfloat16, `LANES` words a step as `bf16_product.in_blocks` lays them out.
    """

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        rows, states, inner, weights, steps, output, stride, first = given
        blocks = build.inttoptr(weights, _WORDS.as_pointer())

        def columns(step: Any) -> tuple[Any, Any]:
            _fetch(build, build.gep(blocks, [build.add(step, _number(AHEAD))]))
            return _widened(build, build.load(build.gep(blocks, [step]), align=4))

        _write_tiles(build, rows, states, inner, columns, steps, output, stride, first)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@written
def add_wide_tile(
    typing: Any, rows: Any, states: Any, inner: Any, weights: Any, width: Any, steps: Any,
    output: Any, stride: Any,
) -> Any:  # fmt: skip
    """Set a tile to the products of `steps` steps.

    As `add_tile`, with float32 weights: `2 * LANES` numbers a step, `width` numbers from one step
    to the next.
    """

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        rows, states, inner, weights, width, steps, output, stride = given
        size = build.mul(width, _number(4))

        def columns(step: Any) -> tuple[Any, Any]:
            place = build.add(weights, build.mul(step, size))
            pointer = build.inttoptr(place, _SUMS.as_pointer())
            one, other = (
                build.load(build.gep(pointer, [_number(half)]), align=4) for half in range(2)
            )
            return one, other

        _write_tiles(build, rows, states, inner, columns, steps, output, stride, _number(1))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


def _write_tiles(
    build: Builder, rows: Any, states: Any, inner: Any, columns: Callable[[Any], tuple[Any, Any]],
    steps: Any, output: Any, stride: Any, first: Any,
) -> None:  # fmt: skip
    """Write the code of a tile for each number of rows; `columns` writes what loads a step's."""
    done = build.append_basic_block("done")
    choose = build.switch(rows, done)
    for count in range(1, ROWS + 1):
        block = build.append_basic_block("rows")
        choose.add_case(_number(count), block)
        build.position_at_end(block)
        _write_tile(build, count, states, inner, columns, steps, output, stride, first)
        build.branch(done)
    build.position_at_end(done)


def _write_tile(
    build: Builder, rows: int, states: Any, inner: Any, columns: Callable[[Any], tuple[Any, Any]],
    steps: Any, output: Any, stride: Any, first: Any,
) -> None:  # fmt: skip
    inputs = _rows_at(build, states, inner, rows, _F32)
    outputs = _rows_at(build, output, stride, rows, _SUMS)
    before, loop, after = build.block, *map(build.append_basic_block, ("steps", "end"))
    build.branch(loop)
    build.position_at_end(loop)
    step = build.phi(_I64)
    step.add_incoming(_number(0), before)
    sums = [[build.phi(_SUMS) for _ in range(2)] for _ in range(rows)]
    halves = columns(step)
    for row in range(rows):
        state = _spread(build, build.load(build.gep(inputs[row], [step])))
        for half in range(2):
            total = _multiply_add(build, halves[half], state, sums[row][half])
            sums[row][half].add_incoming(ir.Constant(_SUMS, [0.0] * LANES), before)
            sums[row][half].add_incoming(total, loop)
            sums[row][half] = total
    following = build.add(step, _number(1))
    step.add_incoming(following, loop)
    build.cbranch(build.icmp_signed("<", following, steps), loop, after)
    build.position_at_end(after)
    places = [build.gep(outputs[row], [_number(half)]) for row in range(rows) for half in range(2)]
    totals = [total for row in sums for total in row]
    with build.if_else(build.icmp_signed("!=", first, _number(0))) as (set_, add):
        with set_:
            for place, total in zip(places, totals, strict=True):
                build.store(total, place, align=4)
        with add:
            for place, total in zip(places, totals, strict=True):
                build.store(build.fadd(build.load(place, align=4), total), place, align=4)


def _number(value: int) -> Any:
    return ir.Constant(_I64, value)


def _rows_at(build: Builder, address: Any, stride: Any, rows: int, kind: ir.Type) -> list[Any]:
    """Return pointers to the beginnings of rows of float32."""
    size = build.mul(stride, _number(4))
    starts = [build.add(address, build.mul(size, _number(row))) for row in range(rows)]
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


@written
def turn_block(typing: Any, states: Any, stride: Any, most: Any, output: Any) -> Any:
    """Write `LANES` numbers of `LANES` rows as columns.

    `stride` is the numbers from one row of `states` to the next; rows from `most` on are read as
    row `most`. Columns are `2 * LANES` numbers apart. All are float32.
    """

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        states, stride, most, output = given
        size = build.mul(stride, _number(4))
        rows = []
        for number in range(LANES):
            beyond = build.icmp_signed(">", _number(number), most)
            row = build.select(beyond, most, _number(number))
            start = build.inttoptr(build.add(states, build.mul(row, size)), _SUMS.as_pointer())
            rows.append(build.load(start, align=4))
        step = 1
        while step < LANES:  # then lane and row have exchanged the bit `step` of their numbers
            low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
            high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
            for number in range(LANES):
                if not number & step:
                    pair = rows[number], rows[number + step]
                    rows[number] = build.shuffle_vector(*pair, ir.Constant(_WORDS, low))
                    rows[number + step] = build.shuffle_vector(*pair, ir.Constant(_WORDS, high))
            step *= 2
        for number, row in enumerate(rows):
            place = build.add(output, _number(number * 2 * LANES * 4))
            build.store(row, build.inttoptr(place, _SUMS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@written
def largest(typing: Any, numbers: Any, vectors: Any) -> Any:
    """Return the largest of float32 numbers, of so many whole vectors; at least minus infinity."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        def larger(kind: Any, suffix: str, one: Any, other: Any) -> Any:
            chosen = _declared(build, ir.FunctionType(kind, [kind] * 2), f"llvm.maxnum.{suffix}")
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
    pointer = build.inttoptr(numbers, _SUMS.as_pointer())
    start = ir.Constant(_SUMS, [ir.Constant(_F32, first)] * LANES)
    found = _utilities.alloca_once(build, _SUMS)
    build.store(start, found)
    with _utilities.for_range(build, vectors) as loop:
        here = build.load(build.gep(pointer, [loop.index]), align=4)
        build.store(combine(_SUMS, f"v{LANES}f32", build.load(found), here), found)
    lanes = build.load(found)
    single = build.extract_element(lanes, ir.Constant(_I32, 0))
    for lane in range(1, LANES):
        other = build.extract_element(lanes, ir.Constant(_I32, lane))
        single = combine(_F32, "f32", single, other)
    return single
