"""Do what stands between the products of a layer in one pass over the numbers; compiled by numba.

torch does the same in many operations, each of which takes longer to start than to compute a
few rows. Every number is rounded as often as there, so that outcomes differ by the order of the
sum in a norm, and by the last bit of the exponential function.

Addresses are those of contiguous numbers: float32 where `kind` is one, bfloat16 where `kind` is a
uint16.
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


def numbers_at(kind: Any, address: int, count: int) -> Any:
    """Return the numbers at an address: float32, or bfloat16 as their bits."""
    raise NotImplementedError


@overload(numbers_at, strict=False)
def _numbers_at(kind: Any, address: Any, count: Any) -> Any:
    if kind == types.uint16:
        return lambda kind, address, count: _carray(_pointer(address), count, np.uint16)
    return lambda kind, address, count: floats(address, count)


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
def normalise(
    kind: Any, states_at: int, delta_at: int, total_at: int, gain_at: int, output_at: int,
    rows: int, size: int, eps: float,
) -> None:  # fmt: skip
    """Add two addends and normalise the sum, as `LlamaRMSNorm` does.

    Args:
        kind: Says what numbers are.
        states_at: Address of [rows, size].
        delta_at: Of what is added to them, [rows, size]; 0 adds nothing.
        total_at: Of what receives the sum, [rows, size]; where nothing is added, `states_at`.
        gain_at: Of [size].
        output_at: Of what receives the normalised sum, [rows, size].
        rows: Rows.
        size: Numbers of a row.
        eps: Added to the mean square.
    """
    count = rows * size
    states, total = numbers_at(kind, states_at, count), numbers_at(kind, total_at, count)
    delta = numbers_at(kind, delta_at, count if delta_at else 0)
    gain, output = numbers_at(kind, gain_at, size), numbers_at(kind, output_at, count)
    for row in range(rows):
        start = row * size
        if len(delta):
            for index in range(start, start + size):
                write(total, index, read(states, index) + read(delta, index))
        scale = ONE / np.sqrt(_mean_square(total, start, size) + np.float32(eps))
        for index in range(size):
            number = rounded(output, read(total, start + index) * scale)
            write(output, start + index, number * read(gain, index))


@compiled
def gate(
    kind: Any, gates_at: int, ups_at: int, output_at: int, rows: int, stride: int, size: int
) -> None:
    """Multiply by `silu` of other numbers, as `LlamaMLP` does.

    Args:
        kind: Says what numbers are.
        gates_at: Address of [rows, size], what `silu` is taken of.
        ups_at: Of [rows, size].
        output_at: Of what receives the products, [rows, size].
        rows: Rows.
        stride: Numbers from one row of the first two to the next.
        size: Numbers of a row.
    """
    count = rows * stride - stride + size
    gates, ups = numbers_at(kind, gates_at, count), numbers_at(kind, ups_at, count)
    output = numbers_at(kind, output_at, rows * size)
    for row in range(rows):
        for index in range(size):
            number = read(gates, row * stride + index)
            divisor = np.float32(np.inf) if -number > MOST else ONE + exp(max(-number, LEAST))
            chosen = rounded(output, number / divisor)
            write(output, row * size + index, chosen * read(ups, row * stride + index))


@compiled
def _rotate(
    states: Any, begin: int, cos: Any, sin: Any, angles: int, output: Any, place: int, dim: int
) -> None:
    """Rotate one head of a row at `begin` by the angles at `angles`."""
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
def rotate_and_store(
    kind: Any, queries_at: int, keys_at: int, values_at: int, cos_at: int, sin_at: int,
    rotated_at: int, key_slab_at: int, value_slab_at: int, rows: int, stride: int, key_stride: int,
    heads: int, kv_heads: int, dim: int, start: int, room: int,
) -> None:  # fmt: skip
    """Rotate queries and keys to their positions, and store keys and values in a slab.

    As `apply_rotary_pos_emb` of transformers' Llama and `SlabLayer.update` do.

    Args:
        kind: Says what numbers are.
        queries_at: Address of [rows, heads, dim].
        keys_at: Of [rows, kv_heads, dim].
        values_at: Of [rows, kv_heads, dim].
        cos_at: Of the angles' cosines, [rows, dim].
        sin_at: Of their sines, [rows, dim].
        rotated_at: Of what receives the queries, [heads, rows, dim].
        key_slab_at: Of [kv_heads, room, dim].
        value_slab_at: Of [kv_heads, room, dim].
        rows: Rows.
        stride: Numbers from one row of queries to the next.
        key_stride: Numbers from one row of keys or values to the next.
        heads: Heads of queries.
        kv_heads: Heads of keys and values.
        dim: Numbers of a head.
        start: Tokens in the slab before the first row.
        room: Tokens that the slab has room for.
    """
    kept = rows * key_stride - key_stride + kv_heads * dim
    queries = numbers_at(kind, queries_at, rows * stride - stride + heads * dim)
    keys, values = numbers_at(kind, keys_at, kept), numbers_at(kind, values_at, kept)
    cos, sin = numbers_at(kind, cos_at, rows * dim), numbers_at(kind, sin_at, rows * dim)
    rotated = numbers_at(kind, rotated_at, rows * heads * dim)
    key_slab = numbers_at(kind, key_slab_at, kv_heads * room * dim)
    value_slab = numbers_at(kind, value_slab_at, kv_heads * room * dim)
    for row in range(rows):
        angles = row * dim
        for head in range(heads):
            place = (head * rows + row) * dim
            _rotate(queries, row * stride + head * dim, cos, sin, angles, rotated, place, dim)
        for head in range(kv_heads):
            place, begin = (head * room + start + row) * dim, row * key_stride + head * dim
            _rotate(keys, begin, cos, sin, angles, key_slab, place, dim)
            for index in range(dim):
                value_slab[place + index] = values[begin + index]


@compiled
def floats(address: int, count: int) -> Any:
    """Return the float32 numbers at an address."""
    return _carray(_pointer(address), count, np.float32)


@compiled
def flags(address: int, count: int) -> Any:
    """Return the booleans at an address."""
    return _carray(_pointer(address), count, np.uint8)
