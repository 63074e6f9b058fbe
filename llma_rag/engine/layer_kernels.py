"""Do what stands between the products of a layer in one pass over the numbers; compiled by numba.

torch does the same in many operations, each of which takes longer to start than to compute a
few rows. Every number is rounded as often as there, so that outcomes differ by the order of the
sum in a norm, and by the last bit of the exponential function.

Addresses are those of contiguous float32 numbers, or of bfloat16 ones where `half` is set.
"""

from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from llma_rag.compiled import compiled, written

reordered = partial(compiled, fastmath={"reassoc"})
"""Compile a function whose sums may be added up in another order: in vectors."""

LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST, MOST = np.float32(-87), np.float32(88)
POLYNOMIAL = tuple(
    np.float32(factor)
    for factor in (
        1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5
    )
)  # fmt: skip
"""Of the exponential function around 0, from Cephes' `expf` (Moshier, 1984 to 1989)."""

ONE = np.float32(1)

_carray: Any = numba.carray  # type: ignore[attr-defined]  # missing in its types


@written
def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, build: Any, signature: Any, given: Any) -> Any:
        return build.inttoptr(given[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@written
def float_of(typing: Any, bits: Any) -> Any:
    """Return the float32 of 32 bits."""

    def generate(context: Any, build: Any, signature: Any, given: Any) -> Any:
        return build.bitcast(given[0], ir.FloatType())

    return types.float32(types.uint32), generate


@written
def _bits_of(typing: Any, number: Any) -> Any:
    """Return the bits of a float32."""

    def generate(context: Any, build: Any, signature: Any, given: Any) -> Any:
        return build.bitcast(given[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@compiled
def _narrowed(number: Any) -> Any:
    """Return the bits of the bfloat16 that is next to a float32, of two the even one."""
    bits = _bits_of(number)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    upper = (bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
    return np.uint16(upper if number == number else np.uint32(0x7FC0))


def read(numbers: Any, index: int) -> Any:
    """Return a number of an array of float32, or of bfloat16 in uint16, as float32."""
    raise NotImplementedError


def write(numbers: Any, index: int, number: Any) -> None:
    """Set a number of such an array."""
    raise NotImplementedError


def rounded(numbers: Any, number: Any) -> Any:
    """Return a float32 as such an array would hold it."""
    raise NotImplementedError


@overload(read, strict=False)
def _read(numbers: Any, index: Any) -> Any:
    if numbers.dtype == types.uint16:
        return lambda numbers, index: float_of(np.uint32(numbers[index]) << np.uint32(16))
    return lambda numbers, index: numbers[index]


@overload(write, strict=False)
def _write(numbers: Any, index: Any, number: Any) -> Any:
    def narrow(numbers: Any, index: Any, number: Any) -> None:
        numbers[index] = _narrowed(number)

    def wide(numbers: Any, index: Any, number: Any) -> None:
        numbers[index] = number

    return narrow if numbers.dtype == types.uint16 else wide


@overload(rounded, strict=False)
def _rounded(numbers: Any, number: Any) -> Any:
    if numbers.dtype == types.uint16:
        return lambda numbers, number: float_of(np.uint32(_narrowed(number)) << np.uint32(16))
    return lambda numbers, number: number


@reordered
def _mean_square(numbers: Any, start: int, size: int) -> Any:
    total = np.float32(0)
    for index in range(start, start + size):
        number = read(numbers, index)
        total += number * number
    return total / np.float32(size)


@compiled
def exp(number: Any) -> Any:
    """Return the exponential function of a float32 between `LEAST` and `MOST`."""
    turns = np.floor(number * LOG2_E + np.float32(0.5))
    rest = number - turns * LN2_HIGH - turns * LN2_LOW
    total = POLYNOMIAL[0]
    for factor in POLYNOMIAL[1:]:
        total = total * rest + factor
    power = float_of(np.uint32(np.int32(turns) + np.int32(127)) << np.uint32(23))
    return (total * rest * rest + rest + ONE) * power


@compiled
def _normalise(
    states: Any, delta: Any, total: Any, gain: Any, output: Any, rows: int, size: int, eps: Any
) -> None:
    for row in range(rows):
        start = row * size
        if len(delta):
            for index in range(start, start + size):
                write(total, index, read(states, index) + read(delta, index))
        scale = ONE / np.sqrt(_mean_square(total, start, size) + eps)
        for index in range(size):
            number = rounded(output, read(total, start + index) * scale)
            write(output, start + index, number * read(gain, index))


@compiled
def normalise(
    half: bool, states: int, delta: int, total: int, gain: int, output: int,
    rows: int, size: int, eps: float,
) -> None:  # fmt: skip
    """Add two addends and normalise the sum, as `LlamaRMSNorm` does.

    Args:
        half: Whether numbers are bfloat16.
        states: [rows, size].
        delta: What is added to them, [rows, size]; 0 adds nothing.
        total: Receives the sum, [rows, size]; where nothing is added, `states` itself.
        gain: [size].
        output: Receives the normalised sum, [rows, size].
        rows: Rows.
        size: Numbers of a row.
        eps: Added to the mean square.
    """
    count, added = rows * size, rows * size if delta else 0
    if half:
        _normalise(
            halves(states, count), halves(delta, added), halves(total, count),
            halves(gain, size), halves(output, count), rows, size, np.float32(eps),
        )  # fmt: skip
    else:
        _normalise(
            floats(states, count), floats(delta, added), floats(total, count),
            floats(gain, size), floats(output, count), rows, size, np.float32(eps),
        )  # fmt: skip


@compiled
def _gate(gates: Any, ups: Any, output: Any, rows: int, stride: int, size: int) -> None:
    for row in range(rows):
        for index in range(size):
            gate = read(gates, row * stride + index)
            divisor = np.float32(np.inf) if -gate > MOST else ONE + exp(max(-gate, LEAST))
            chosen = rounded(output, gate / divisor)
            write(output, row * size + index, chosen * read(ups, row * stride + index))


@compiled
def gate(half: bool, gates: int, ups: int, output: int, rows: int, stride: int, size: int) -> None:
    """Multiply by `silu` of other numbers, as `LlamaMLP` does.

    Args:
        half: Whether numbers are bfloat16.
        gates: [rows, size], what `silu` is taken of.
        ups: [rows, size].
        output: Receives the products, [rows, size].
        rows: Rows.
        stride: Numbers from one row of `gates` and `ups` to the next.
        size: Numbers of a row.
    """
    count = rows * stride - stride + size
    if half:
        _gate(
            halves(gates, count), halves(ups, count), halves(output, rows * size),
            rows, stride, size,
        )  # fmt: skip
    else:
        _gate(
            floats(gates, count), floats(ups, count), floats(output, rows * size),
            rows, stride, size,
        )  # fmt: skip


@compiled
def _turn(
    states: Any, begin: int, cos: Any, sin: Any, angles: int, output: Any, place: int, dim: int
) -> None:
    """Turn one head of a row at `begin` by angles at `angles`."""
    middle = dim // 2
    for index in range(middle):
        one, other = read(states, begin + index), read(states, begin + middle + index)
        first = rounded(output, one * read(cos, angles + index))
        second = rounded(output, other * read(sin, angles + index))
        write(output, place + index, first - second)
        first = rounded(output, other * read(cos, angles + middle + index))
        second = rounded(output, one * read(sin, angles + middle + index))
        write(output, place + middle + index, first + second)


@compiled
def _turn_and_keep(
    queries: Any, keys: Any, values: Any, cos: Any, sin: Any, turned: Any, key_slab: Any,
    value_slab: Any, rows: int, stride: int, key_stride: int, heads: int, kv_heads: int, dim: int,
    start: int, room: int,
) -> None:  # fmt: skip
    for row in range(rows):
        angles = row * dim
        for head in range(heads):
            place = (head * rows + row) * dim
            _turn(queries, row * stride + head * dim, cos, sin, angles, turned, place, dim)
        for head in range(kv_heads):
            place, begin = (head * room + start + row) * dim, row * key_stride + head * dim
            _turn(keys, begin, cos, sin, angles, key_slab, place, dim)
            for index in range(dim):
                value_slab[place + index] = values[begin + index]


@compiled
def turn_and_keep(
    half: bool, queries: int, keys: int, values: int, cos: int, sin: int, turned: int,
    key_slab: int, value_slab: int, rows: int, stride: int, key_stride: int, heads: int,
    kv_heads: int, dim: int, start: int, room: int,
) -> None:  # fmt: skip
    """Give queries and keys their positions, and put keys and values into a slab.

    As `apply_rotary_pos_emb` of transformers' Llama and `SlabLayer.update` do.

    Args:
        half: Whether numbers are bfloat16.
        queries: [rows, heads, dim].
        keys: [rows, kv_heads, dim].
        values: [rows, kv_heads, dim].
        cos: Of the angles, [rows, dim].
        sin: Of the angles, [rows, dim].
        turned: Receives the queries, [heads, rows, dim].
        key_slab: [kv_heads, room, dim].
        value_slab: [kv_heads, room, dim].
        rows: Rows.
        stride: Numbers from one row of `queries` to the next.
        key_stride: Numbers from one row of `keys` or `values` to the next.
        heads: Heads of queries.
        kv_heads: Heads of keys and values.
        dim: Numbers of a head.
        start: Tokens in the slab before the first row.
        room: Tokens that the slab has room for.
    """
    asked = rows * stride - stride + heads * dim
    kept = rows * key_stride - key_stride + kv_heads * dim
    slab = kv_heads * room * dim
    if half:
        _turn_and_keep(
            halves(queries, asked), halves(keys, kept), halves(values, kept),
            halves(cos, rows * dim), halves(sin, rows * dim),
            halves(turned, rows * heads * dim), halves(key_slab, slab),
            halves(value_slab, slab), rows, stride, key_stride, heads, kv_heads, dim, start, room,
        )  # fmt: skip
    else:
        _turn_and_keep(
            floats(queries, asked), floats(keys, kept), floats(values, kept),
            floats(cos, rows * dim), floats(sin, rows * dim),
            floats(turned, rows * heads * dim), floats(key_slab, slab),
            floats(value_slab, slab), rows, stride, key_stride, heads, kv_heads, dim, start, room,
        )  # fmt: skip


@compiled
def floats(address: int, count: int) -> Any:
    """Return the float32 numbers at an address."""
    return _carray(_pointer(address), count, np.float32)


@compiled
def halves(address: int, count: int) -> Any:
    """Return the bfloat16 numbers at an address, as their bits."""
    return _carray(_pointer(address), count, np.uint16)


@compiled
def flags(address: int, count: int) -> Any:
    """Return the booleans at an address."""
    return _carray(_pointer(address), count, np.uint8)
