"""Multiply float32 rows by weights kept in bfloat16; compiled by numba."""

from numba import types

from llma_rag.compiled import callback, compiled
from llma_rag.engine.tiles import DEPTH, LANES, ROWS, add_tile, load, take


@compiled
def _multiply(address: int) -> None:
    """Take tasks until none is left: a block of outputs for as many rows as are taken together."""
    states, weights, output = load(address, 1), load(address, 2), load(address, 3)
    rows, blocks, inner = load(address, 4), load(address, 5), load(address, 6)
    together = load(address, 7)
    stride = blocks * 2 * LANES
    tasks = blocks * ((rows + together - 1) // together)
    task = take(address)
    while task < tasks:
        block, start = task % blocks, task // blocks * together
        count = min(together, rows - start)
        tiles = (count + ROWS - 1) // ROWS
        for depth in range(0, inner, DEPTH):
            for tile in range(tiles):
                begin = start + count * tile // tiles
                end = start + count * (tile + 1) // tiles
                add_tile(
                    end - begin,
                    states + (begin * inner + depth) * 4,
                    inner,
                    weights + (block * inner + depth) * LANES * 4,
                    min(DEPTH, inner - depth),
                    output + (begin * stride + block * 2 * LANES) * 4,
                    stride,
                    depth == 0,
                )
        task = take(address)


@callback(types.void(types.int64))
def multiply(address: int) -> None:
    """Compute until no task is left; any number of threads may do so at once.

    Args:
        address: Of `bf16_product.Arguments`.
    """
    _multiply(address)
