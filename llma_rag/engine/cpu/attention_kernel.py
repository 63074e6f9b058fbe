"""Attend in float32 to a slab in pieces of fixed places; compiled by numba.

Each piece of keys is read once for all rows and heads that share it, and its shares are joined in
ascending order, as in FlashDecoding (Dao et al., 2023). A piece's shares of a row do not depend on
the other rows, and hidden keys add exact zeros: the bits of a row do not depend on what is
computed with it.
"""

from typing import Any

import numpy as np
from numba import types

from llma_rag.compiled import callback, compiled
from llma_rag.engine.cpu.folding import largest, total
from llma_rag.engine.cpu.layer_kernels import LEAST, exp, flags, float_of, floats
from llma_rag.engine.cpu.tiles import add_wide_tile
from llma_rag.engine.cpu.transposing import transpose_block
from llma_rag.engine.cpu.vectors import LANES, ROWS, load, take

PIECE = 256
"""Keys of a piece; whole tiles."""

COLUMNS = 2 * LANES
"""Keys or numbers of a head that are computed together; heads must be whole multiples."""

NOTHING = np.float32(-np.inf)


@compiled
def _weigh(line: Any, count: int, top: Any, scale: Any) -> None:
    """Turn scores into weights that are to be added up; NaN stays NaN."""
    for index in range(count):
        below = (line[index] - top) * scale
        line[index] = np.float32(0) if below < LEAST else exp(below)


@compiled
def _hide(line: Any, row: int, first: int, count: int, start: int, mask: int, width: int) -> None:
    """Set to minus infinity the scores of new tokens that a row must not see, and what follows."""
    seen = flags(mask + row * width, width)
    for key in range(max(start, first), first + count):
        new = key - start
        hidden = not seen[new] if width else new > row
        if hidden:
            line[key - first] = NOTHING
    for key in range(count, (count + LANES - 1) // LANES * LANES):
        line[key] = NOTHING


@compiled
def _score(
    queries: int, rows: int, dim: int, keys: int, count: int, transposed: int, scores: int
) -> None:
    """Write the scores of all rows, [rows, PIECE], for `count` keys of a piece."""
    for tile in range(0, count, COLUMNS):
        for part in range(0, dim, LANES):
            for side in range(0, COLUMNS, LANES):
                first = min(tile + side, count - 1)
                transpose_block(
                    keys + (first * dim + part) * 4, dim, count - 1 - first,
                    transposed + (part * COLUMNS + side) * 4,
                )  # fmt: skip
        for row in range(0, rows, ROWS):
            add_wide_tile(
                min(ROWS, rows - row), queries + row * dim * 4, dim, transposed, COLUMNS, dim,
                scores + (row * PIECE + tile) * 4, PIECE, 1,
            )  # fmt: skip


@compiled
def _attend_piece(
    queries: int, keys: int, values: int, mask: int, width: int, rows: int, wide: int,
    dim: int, start: int, first: int, count: int, scale: Any, room: int, scores: int,
) -> None:  # fmt: skip
    """Compute the shares of `count` keys from `first` on for the `wide` rows of a head of keys.

    `room` receives shares [wide, dim], largest scores and sums [2, wide]. At `scores` there is room
    for scores [wide, PIECE] and transposed keys [dim, COLUMNS].
    """
    tops = room + wide * dim * 4
    transposed = scores + wide * PIECE * 4
    _score(queries, wide, dim, keys, count, transposed, scores)
    found = floats(tops, 2 * wide)
    for row in range(wide):
        line = floats(scores + row * PIECE * 4, PIECE)
        _hide(line, row % rows, first, count, start, mask, width)
        vectors = (count + LANES - 1) // LANES
        top = largest(scores + row * PIECE * 4, vectors)
        if top == NOTHING:  # every share becomes zero
            line[:] = np.float32(0)
        else:
            _weigh(line, vectors * LANES, top, scale)
        found[row], found[wide + row] = top, total(scores + row * PIECE * 4, vectors)
    for row in range(0, wide, ROWS):
        for part in range(0, dim, COLUMNS):
            add_wide_tile(
                min(ROWS, wide - row), scores + row * PIECE * 4, PIECE, values + part * 4, dim,
                count, room + (row * dim + part) * 4, dim, 1,
            )  # fmt: skip


@compiled
def _join(
    output: int, room: int, size: int, pieces: int, row: int, wide: int, dim: int,
    scale: Any,
) -> None:  # fmt: skip
    """Write what a row read, from the shares of pieces that are `size` bytes apart."""
    tops, top = room + wide * dim * 4, NOTHING
    for piece in range(pieces):
        here = floats(tops + piece * size, 2 * wide)[row]
        top = here if here > top else top
    weight, read = np.float32(0), floats(output, dim)
    shares = floats(room + row * dim * 4, dim)
    for piece in range(pieces):
        found = floats(tops + piece * size, 2 * wide)
        part = floats(room + piece * size + row * dim * 4, dim)
        below = (found[row] - top) * scale
        factor = np.float32(0) if below < LEAST else exp(below)
        weight += factor * found[wide + row]
        for index in range(dim):
            before = shares[index] if piece else np.float32(0)
            shares[index] = before + factor * part[index]
    for index in range(dim):
        read[index] = shares[index] / weight


@callback(types.void(types.int64))
def attend_pieces(address: int) -> None:
    """Compute shares until no piece is left; any number of threads may do so at once.

    Args:
        address: Of `slab_attention.Arguments`.
    """
    queries, keys, values = load(address, 2), load(address, 3), load(address, 4)
    mask, width = load(address, 5), load(address, 6)
    rows, group, kv_heads, dim = (
        load(address, 7), load(address, 8), load(address, 9), load(address, 10)
    )  # fmt: skip
    start, end, stride = load(address, 11), load(address, 12), load(address, 13)
    room, size = load(address, 14), load(address, 15)
    scale = float_of(np.uint32(load(address, 16)))
    pieces, wide = (end + PIECE - 1) // PIECE, rows * group
    scratch = load(address, 19) + take(address + 18 * 8) * load(address, 20)
    task = take(address)
    while task < pieces * kv_heads:
        head, piece = task // pieces, task % pieces
        first = piece * PIECE
        place = (head * stride + first * dim) * 4
        _attend_piece(
            queries + head * wide * dim * 4, keys + place, values + place, mask, width,
            rows, wide, dim, start, first, min(PIECE, end - first), scale,
            room + task * size, scratch,
        )  # fmt: skip
        task = take(address)


@callback(types.void(types.int64))
def join_pieces(address: int) -> None:
    """Join shares until no row is left; any number of threads may do so at once.

    Args:
        address: Of `slab_attention.Arguments`.
    """
    rows, group, kv_heads = load(address, 7), load(address, 8), load(address, 9)
    dim, end, room, size = (
        load(address, 10), load(address, 12), load(address, 14), load(address, 15)
    )  # fmt: skip
    scale, output = float_of(np.uint32(load(address, 16))), load(address, 17)
    pieces, wide = (end + PIECE - 1) // PIECE, rows * group
    task = take(address + 8)
    while task < kv_heads * rows:
        head, row = task // rows, task % rows
        for member in range(group):
            place = ((row * kv_heads + head) * group + member) * dim
            _join(
                output + place * 4, room + head * pieces * size, size, pieces,
                member * rows + row, wide, dim, scale,
            )  # fmt: skip
        task = take(address + 8)
