"""Transpose blocks of numbers in registers."""

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types

from llma_rag.compiled import written
from llma_rag.engine.cpu.half_product import LINE
from llma_rag.engine.cpu.tiles import DEPTH
from llma_rag.engine.cpu.vectors import I32, I64, LANES, SUMS, WORDS, Builder, constant, fetch


@written
def room(typing: Any) -> Any:
    """Return the address of `LANES * DEPTH` words that last as long as the caller runs."""

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        with build.goto_entry_block():
            place = build.alloca(ir.ArrayType(WORDS, DEPTH))
        place.align = 64
        return build.ptrtoint(place, I64)

    return types.int64(), generate


@written
def transpose_block(typing: Any, states: Any, stride: Any, most: Any, output: Any) -> Any:
    """Write `LANES` numbers of `LANES` rows as columns.

    `stride` is the numbers from one row of `states` to the next; rows from `most` on are read as
    row `most`. Columns are `2 * LANES` numbers apart. All are float32.
    """

    def generate(context: Any, build: Builder, signature: Any, given: Any) -> Any:
        states, stride, most, output = given
        size = build.mul(stride, constant(4))
        starts = _starts(build, states, size, most, LANES)
        columns = _transposed(build, [_vector_at(build, start) for start in starts])
        for number, column in enumerate(columns):
            place = build.add(output, constant(number * 2 * LANES * 4))
            build.store(column, build.inttoptr(place, SUMS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@written
def transpose_bf16(typing: Any, weights: Any, size: Any, most: Any, output: Any, ahead: Any) -> Any:
    """Write `LINE` bfloat16 of each row of a block as `half_product.in_blocks` lays them out.

    `size` is the bytes from one row of `weights` to the next; rows from `most` on are read as row
    `most`. What stands `ahead` bytes behind is fetched.
    """
    return types.void(*[types.int64] * 5), partial(_transpose_halves, lambda build, words: words)


@written
def transpose_fp16(typing: Any, weights: Any, size: Any, most: Any, output: Any, ahead: Any) -> Any:
    """Write float16 as `transpose_bf16` writes bfloat16."""

    def apart(build: Builder, words: Any) -> Any:
        order = (*range(0, 2 * LANES, 2), *range(1, 2 * LANES, 2))
        return _picked(build, words, words, order)

    return types.void(*[types.int64] * 5), partial(_transpose_halves, apart)


def _transpose_halves(
    finish: Callable[[Builder, Any], Any], context: Any, build: Builder, signature: Any, given: Any
) -> Any:
    weights, size, most, output, ahead = given
    full = build.icmp_signed(">=", most, constant(2 * LANES - 1))
    with build.if_else(full) as (whole, part):
        for branch, last in ((whole, None), (part, most)):
            with branch:
                starts = _starts(build, weights, size, last, 2 * LANES)
                for start in starts:
                    fetch(build, build.inttoptr(build.add(start, ahead), SUMS.as_pointer()))
                for step in range(0, LINE, 2 * LANES):
                    _transpose_words(build, starts, step, output, finish)
    return context.get_dummy_value()


def _transpose_words(
    build: Builder, starts: list[Any], step: int, output: Any, finish: Callable[[Builder, Any], Any]
) -> None:
    """Turn `2 * LANES` numbers of each row, as words of one from each half of a block."""
    rows = [_vector_at(build, build.add(start, constant(step * 2))) for start in starts]
    for side in range(2):  # x86 unpacks the lower or the upper four of every eight
        lanes = [first + side * 4 + lane for first in range(0, 2 * LANES, 8) for lane in range(4)]
        order = tuple(place for lane in lanes for place in (lane, 2 * LANES + lane))
        words = [_picked(build, rows[one], rows[one + LANES], order) for one in range(LANES)]
        for lane, column in zip(lanes, _transposed(build, words), strict=True):
            place = build.add(output, constant((step + lane) * LANES * 4))
            build.store(finish(build, column), build.inttoptr(place, SUMS.as_pointer()), align=4)


def _picked(build: Builder, one: Any, other: Any, order: tuple[int, ...]) -> Any:
    """Return a vector of 16-bit numbers of two others, which `order` counts throughout."""
    halves = ir.VectorType(ir.IntType(16), 2 * LANES)
    picks = ir.Constant(ir.VectorType(I32, 2 * LANES), order)
    both = build.bitcast(one, halves), build.bitcast(other, halves)
    return build.bitcast(build.shuffle_vector(*both, picks), SUMS)


def _starts(build: Builder, address: Any, size: Any, most: Any, count: int) -> list[Any]:
    """Return the addresses of rows, those from `most` on as that of row `most`; None for all."""
    rows = []
    for number in range(count):
        row: Any = constant(number)
        if most is not None:
            row = build.select(build.icmp_signed(">", row, most), most, row)
        rows.append(build.add(address, build.mul(row, size)))
    return rows


def _vector_at(build: Builder, address: Any) -> Any:
    return build.load(build.inttoptr(address, SUMS.as_pointer()), align=4)


def _transposed(build: Builder, rows: list[Any]) -> list[Any]:
    """Return as many vectors of `LANES` numbers as columns."""
    rows = [
        one
        for first in range(0, LANES, 4)
        for one in _transposed_four(build, *rows[first : first + 4])
    ]
    step = 4
    while step < LANES:  # then lane and row have exchanged the bit `step` of their numbers
        low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
        high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
        for number in range(LANES):
            if not number & step:
                pair = rows[number], rows[number + step]
                rows[number] = build.shuffle_vector(*pair, ir.Constant(WORDS, low))
                rows[number + step] = build.shuffle_vector(*pair, ir.Constant(WORDS, high))
        step *= 2
    return rows


def _transposed_four(build: Builder, one: Any, two: Any, three: Any, four: Any) -> list[Any]:
    """Turn each four lanes of four rows, by shuffles for which x86 has instructions."""
    pairs = [
        (_shuffled(build, one, two, order), _shuffled(build, three, four, order))
        for order in ((0, 4, 1, 5), (2, 6, 3, 7))
    ]
    return [
        _shuffled(build, *pair, order) for pair in pairs for order in ((0, 1, 4, 5), (2, 3, 6, 7))
    ]


def _shuffled(build: Builder, one: Any, other: Any, order: tuple[int, ...]) -> Any:
    """Return a vector of four lanes each of two others, which `order` counts from 0 and from 4."""
    lanes = [
        first + lane if lane < 4 else LANES + first + lane - 4
        for first in range(0, LANES, 4)
        for lane in order
    ]
    return build.shuffle_vector(one, other, ir.Constant(WORDS, lanes))
