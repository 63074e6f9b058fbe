"""Attend from a few rows of one sequence to a slab on a CPU, by a kernel of our own.

It takes as long as torch's and gives a row the same bits at every width.
"""

import struct
import threading
from ctypes import Structure, addressof, c_int64

import torch

from llma_rag.engine.cpu.half_product import ALONE, can_keep
from llma_rag.engine.cpu.threads import run_in_parallel

MOST_ROWS = 256
"""Rows, times the heads that share keys, up to which what is kept of a piece stays small."""

_rooms = threading.local()
"""Memory between the kernel's two passes, of each thread that asks for attention."""


class Arguments(Structure):
    """What `attention_kernel` reads at the address that it is given.

    Attributes:
        task: The next piece to be taken, 0 at first; threads count it up.
        joined: The next row to be joined, likewise.
        queries: Address of [kv_heads, group, rows, dim].
        keys: Address of [kv_heads, tokens, dim].
        values: Address of [kv_heads, tokens, dim].
        mask: Address of which of the new tokens the first row sees, one byte each.
        width: Bytes from there to that of the next row; 0 where rows see what precedes them.
        rows: New tokens.
        group: Heads of queries that share one of keys.
        kv_heads: Heads of keys and values.
        dim: Numbers of a head.
        start: Tokens in the slab before the new ones.
        end: Tokens in it with them, and hidden ones.
        stride: Numbers from one head of keys to the next.
        room: Address of what is kept of pieces until they are joined.
        size: Bytes of it for one piece of one head.
        scale: The bits of the scores' factor, float32.
        output: Address of [rows, kv_heads, group, dim].
        thread: The next number of a thread, likewise.
        scratch: Address of what threads work in.
        scratch_size: Bytes of it for one thread.
    """

    _fields_ = [
        (name, c_int64)
        for name in (
            "task", "joined", "queries", "keys", "values", "mask", "width", "rows", "group",
            "kv_heads", "dim", "start", "end", "stride", "room", "size", "scale", "output",
            "thread", "scratch", "scratch_size",
        )
    ]  # fmt: skip


def can_attend(queries: torch.Tensor, keys: torch.Tensor) -> bool:
    """Return whether the kernel runs here and knows the dtype, heads of this size and the rows.

    In bfloat16 torch's own attention is quicker.
    """
    if queries.dtype is not torch.float32 or not can_keep(torch.bfloat16):
        return False
    from llma_rag.engine.cpu.attention_kernel import COLUMNS

    _, heads, rows, dim = queries.shape
    return dim % COLUMNS == 0 and rows * (heads // keys.shape[1]) <= MOST_ROWS


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: torch.Tensor | None,
    start: int,
    end: int,
    scale: float,
) -> torch.Tensor:
    """Attend to whole slabs; see `can_attend`.

    Args:
        queries: [1, heads, rows, dim], float32, contiguous.
        keys: [1, kv_heads, capacity, dim], float32, contiguous.
        values: As the keys.
        seen: Which of the tokens from `start` to `end` a row sees, bool [rows, end - start], with
            the flags of a row side by side; None lets it see those up to its own.
        start: Tokens before the rows' own; all are seen.
        end: Tokens in the slab with them; further ones are not looked at.
        scale: Factor of the scores.

    Returns:
        [1, rows, heads, dim].
    """
    from llma_rag.engine.cpu.attention_kernel import COLUMNS, PIECE, attend_pieces, join_pieces

    _, heads, rows, dim = queries.shape
    kv_heads = keys.shape[1]
    wide = rows * (heads // kv_heads)
    pieces = -(-end // PIECE)
    size, scratch_size = 4 * wide * (dim + 2), 4 * (wide * PIECE + dim * COLUMNS)
    kept = size * kv_heads * pieces
    room = _room(kept + scratch_size * torch.get_num_threads()).data_ptr()
    output = queries.new_empty((1, rows, heads, dim))
    given = Arguments(
        queries=queries.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        mask=0 if seen is None else seen.data_ptr(),
        width=0 if seen is None else seen.stride(0),
        rows=rows,
        group=heads // kv_heads,
        kv_heads=kv_heads,
        dim=dim,
        start=start,
        end=end,
        stride=keys.stride(1),
        room=room,
        size=size,
        scale=struct.unpack("<i", struct.pack("<f", scale))[0],
        output=output.data_ptr(),
        thread=0,
        scratch=room + kept,
        scratch_size=scratch_size,
    )
    run_in_parallel(attend_pieces.address, addressof(given))
    alone = output.numel() * pieces <= ALONE
    run_in_parallel(join_pieces.address, addressof(given), 1 if alone else None)
    return output


def _room(size: int) -> torch.Tensor:
    """Return at least so many bytes, which the thread's last call has done with."""
    room: torch.Tensor | None = getattr(_rooms, "room", None)
    if room is None or room.nbytes < size:
        room = _rooms.room = torch.empty(size, dtype=torch.uint8, device="cpu")
    return room
