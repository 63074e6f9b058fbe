"""Multiply float32 rows by weights of 16 bits; compiled by numba."""

from numba import types

from llma_rag.compiled import callback, compiled
from llma_rag.engine.cpu.half_product import LINE
from llma_rag.engine.cpu.tiles import DEPTH, add_bf16_tile, add_fp16_tile
from llma_rag.engine.cpu.transposing import room, transpose_bf16, transpose_fp16
from llma_rag.engine.cpu.vectors import LANES, ROWS, load, take


@compiled
def _add_piece(
    half: bool, weights: int, rows: int, states: int, inner: int, steps: int, output: int,
    stride: int, first: bool,
) -> None:  # fmt: skip
    """Add what some steps of a block of weights, laid out by `in_blocks`, make of some rows."""
    tiles = (rows + ROWS - 1) // ROWS
    for tile in range(tiles):
        begin, end = rows * tile // tiles, rows * (tile + 1) // tiles
        given, target = states + begin * inner * 4, output + begin * stride * 4
        if half:
            add_fp16_tile(end - begin, given, inner, weights, steps, target, stride, int(first))
        else:
            add_bf16_tile(end - begin, given, inner, weights, steps, target, stride, int(first))


@compiled
def _transpose(
    half: bool, weights: int, inner: int, most: int, steps: int, transposed: int, ahead: int
) -> None:
    """Lay out some steps of a block of weights as `in_blocks` does; `most` is its last row."""
    for step in range(0, steps, LINE):
        here, target = weights + step * 2, transposed + step * LANES * 4
        if half:
            transpose_fp16(here, inner * 2, most, target, ahead)
        else:
            transpose_bf16(here, inner * 2, most, target, ahead)


@callback(types.void(types.int64))
def multiply(address: int) -> None:
    """Take tasks until none is left: a block of outputs for as many rows as are taken together.

    Any number of threads may do so at once.

    Args:
        address: Of `half_product.Arguments`.
    """
    states, weights, output = load(address, 1), load(address, 2), load(address, 3)
    rows, outputs, inner = load(address, 4), load(address, 5), load(address, 6)
    together, half, blocked = load(address, 7), load(address, 8) != 0, load(address, 9) != 0
    blocks = (outputs + 2 * LANES - 1) // (2 * LANES)
    stride, transposed = blocks * 2 * LANES, room()
    tasks = blocks * ((rows + together - 1) // together)
    task = take(address)
    while task < tasks:
        block, start = task % blocks, task // blocks * together
        count, begin = min(together, rows - start), block * 2 * LANES
        here, given = weights + begin * inner * 2, states + start * inner * 4
        target = output + (start * stride + begin) * 4
        for depth in range(0, inner, DEPTH):
            steps = min(DEPTH, inner - depth)
            piece = here + depth * LANES * 4
            if not blocked:
                piece, row = transposed, here + depth * 2
                following = depth + DEPTH < inner
                ahead = DEPTH * 2 if following else (2 * LANES * inner - depth) * 2
                _transpose(half, row, inner, outputs - 1 - begin, steps, piece, ahead)
            _add_piece(
                half, piece, count, given + depth * 4, inner, steps, target, stride, depth == 0
            )
        task = take(address)
