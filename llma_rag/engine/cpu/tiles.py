"""Write code in LLVM's terms whose sums stay in registers, as numba cannot be told to keep them.

A tile is some rows by two vectors of columns, one step of the inner dimension at a time, which is
how BLIS and oneDNN arrange their own (Goto and van de Geijn, *Anatomy of High-Performance Matrix
Multiplication*, 2008). Every weight that is read serves all rows of the tile, and weights that are
needed soon are fetched ahead: a narrow pass takes as long as reading them.

A number of an output is added up in one order, whatever the tile: the bits of a row do not depend
on how many rows are computed with it.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from llma_rag.compiled import written
from llma_rag.engine.cpu.vectors import (
    F32,
    HALVES,
    I32,
    I64,
    LANES,
    ROWS,
    SUMS,
    WORDS,
    Builder,
    constant,
    declared,
    fetch,
)

DEPTH = 128
"""Steps of the inner dimension that are summed up before they are added to the outcome: that loses
less than one long sum, and the weights of so many steps stay in the first cache."""

AHEAD = 128
"""Vectors of weights between the one that is read and the one that is fetched: 8 KB at AVX-512."""


@written
def add_bf16_tile(
    typing: Any, rows: Any, states: Any, inner: Any, weights: Any, steps: Any, output: Any,
    stride: Any, first: Any,
) -> Any:  # fmt: skip
    """Add the products of `steps` steps to a tile of the outcome, or set it if `first`.

    `rows` is at most `ROWS`. `inner` and `stride` are the numbers in a row of `states` and of
    `output`. Weights are bfloat16, `LANES` words a step as `half_product.in_blocks` lays them out.
    """

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        rows, states, inner, weights, steps, output, stride, first = given
        blocks = build.inttoptr(weights, WORDS.as_pointer())

        def columns(step: Any) -> tuple[Any, Any]:
            fetch(build, build.gep(blocks, [build.add(step, constant(AHEAD))]))
            return _widened(build, build.load(build.gep(blocks, [step]), align=4))

        _write_tiles(build, rows, states, inner, columns, steps, output, stride, first)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@written
def add_fp16_tile(
    typing: Any, rows: Any, states: Any, inner: Any, weights: Any, steps: Any, output: Any,
    stride: Any, first: Any,
) -> Any:  # fmt: skip
    """Add to a tile as `add_bf16_tile` does, with weights of float16."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        rows, states, inner, weights, steps, output, stride, first = given
        blocks = build.inttoptr(weights, HALVES.as_pointer())

        def columns(step: Any) -> tuple[Any, Any]:
            place = build.gep(blocks, [build.mul(step, constant(2))])
            fetch(build, build.gep(place, [constant(2 * AHEAD)]))
            one, other = (
                build.load(build.gep(place, [constant(half)]), align=4) for half in range(2)
            )
            return build.fpext(one, SUMS), build.fpext(other, SUMS)

        _write_tiles(build, rows, states, inner, columns, steps, output, stride, first)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), generate


@written
def add_wide_tile(
    typing: Any, rows: Any, states: Any, inner: Any, weights: Any, width: Any, steps: Any,
    output: Any, stride: Any, first: Any,
) -> Any:  # fmt: skip
    """Add to a tile as `add_bf16_tile` does, with weights of float32.

    They are `2 * LANES` numbers a step, `width` numbers from one step to the next.
    """

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        rows, states, inner, weights, width, steps, output, stride, first = given
        size = build.mul(width, constant(4))

        def columns(step: Any) -> tuple[Any, Any]:
            place = build.add(weights, build.mul(step, size))
            pointer = build.inttoptr(place, SUMS.as_pointer())
            one, other = (
                build.load(build.gep(pointer, [constant(half)]), align=4) for half in range(2)
            )
            return one, other

        _write_tiles(build, rows, states, inner, columns, steps, output, stride, first)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


def _write_tiles(
    build: Builder, rows: Any, states: Any, inner: Any, columns: Callable[[Any], tuple[Any, Any]],
    steps: Any, output: Any, stride: Any, first: Any,
) -> None:  # fmt: skip
    """Write the code of a tile for each number of rows; `columns` writes what loads a step's."""
    done = build.append_basic_block("done")
    choose = build.switch(rows, done)
    for count in range(1, ROWS + 1):
        block = build.append_basic_block("rows")
        choose.add_case(constant(count), block)
        build.position_at_end(block)
        _write_tile(build, count, states, inner, columns, steps, output, stride, first)
        build.branch(done)
    build.position_at_end(done)


def _write_tile(
    build: Builder, rows: int, states: Any, inner: Any, columns: Callable[[Any], tuple[Any, Any]],
    steps: Any, output: Any, stride: Any, first: Any,
) -> None:  # fmt: skip
    inputs = _rows_at(build, states, inner, rows, F32)
    outputs = _rows_at(build, output, stride, rows, SUMS)
    before, loop, after = build.block, *map(build.append_basic_block, ("steps", "end"))
    build.branch(loop)
    build.position_at_end(loop)
    step = build.phi(I64)
    step.add_incoming(constant(0), before)
    sums = [[build.phi(SUMS) for _ in range(2)] for _ in range(rows)]
    halves = columns(step)
    for row in range(rows):
        state = _spread(build, build.load(build.gep(inputs[row], [step])))
        for half in range(2):
            total = _multiply_add(build, halves[half], state, sums[row][half])
            sums[row][half].add_incoming(ir.Constant(SUMS, [0.0] * LANES), before)
            sums[row][half].add_incoming(total, loop)
            sums[row][half] = total
    following = build.add(step, constant(1))
    step.add_incoming(following, loop)
    build.cbranch(build.icmp_signed("<", following, steps), loop, after)
    build.position_at_end(after)
    places = [build.gep(outputs[row], [constant(half)]) for row in range(rows) for half in range(2)]
    totals = [total for row in sums for total in row]
    with build.if_else(build.icmp_signed("!=", first, constant(0))) as (set_, add):
        with set_:
            for place, total in zip(places, totals, strict=True):
                build.store(total, place, align=4)
        with add:
            for place, total in zip(places, totals, strict=True):
                build.store(build.fadd(build.load(place, align=4), total), place, align=4)


def _rows_at(build: Builder, address: Any, stride: Any, rows: int, kind: ir.Type) -> list[Any]:
    """Return pointers to the beginnings of rows of float32."""
    size = build.mul(stride, constant(4))
    starts = [build.add(address, build.mul(size, constant(row))) for row in range(rows)]
    return [build.inttoptr(start, kind.as_pointer()) for start in starts]


def _widened(build: Builder, words: Any) -> tuple[Any, Any]:
    """Return the lower and the upper bfloat16 of every word as float32."""
    lower = build.shl(words, ir.Constant(WORDS, [16] * LANES))
    upper = build.and_(words, ir.Constant(WORDS, [-(1 << 16)] * LANES))
    return build.bitcast(lower, SUMS), build.bitcast(upper, SUMS)


def _spread(build: Builder, number: Any) -> Any:
    """Return a vector of one number."""
    nothing = ir.Constant(SUMS, ir.Undefined)
    single = build.insert_element(nothing, number, ir.Constant(I32, 0))
    return build.shuffle_vector(single, nothing, ir.Constant(WORDS, [0] * LANES))


def _multiply_add(build: Builder, one: Any, other: Any, total: Any) -> Any:
    kind = ir.FunctionType(SUMS, [SUMS] * 3)
    return build.call(declared(build, kind, f"llvm.fma.v{LANES}f32"), [one, other, total])
