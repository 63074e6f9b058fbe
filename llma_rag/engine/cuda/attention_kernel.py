# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
"""Verify drafts against a slab of keys and values in Triton; importing it needs Triton.

Split over keys in pieces of fixed size that are joined in ascending order, so that a row's result
does not depend on the slab's capacity. Lengths, slots and ancestors stay on the device: a captured
graph reads them anew at every replay.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl

SPLIT = 128
"""Keys of one piece."""

BLOCK = 64
"""Keys that are attended to at a time within a piece."""

ATTENDING = {"num_warps": 4, "num_stages": 2}
"""How a piece is attended to."""

TOGETHER = 8
"""Pieces whose outcomes are loaded together when they are joined."""

NO_PDL: Mapping[str, Any] = MappingProxyType({"PDL": False})
"""Launches kernels one after the other."""

MAX_WIDTH = 32
"""Most rows of a step: the ancestors of a row are the bits of an integer."""


@triton.jit
def _attend_piece(
    q_ptr, k_ptr, v_ptr, start_ptr, slot_ptr, ancestors_ptr, sum_ptr, scale_ptr,
    q_batch, q_head, q_row, kv_slot, kv_head, kv_token, pieces, scaling,
    KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Attend all rows of one sequence and key head to one piece of its keys."""
    sequence = tl.program_id(0) // KV_HEADS
    kv = tl.program_id(0) % KV_HEADS
    piece = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
    start = tl.load(start_ptr + sequence).to(tl.int32)
    slot = tl.load(slot_ptr + sequence).to(tl.int64)
    packed = tl.arange(0, ROWS)
    row = packed % WIDTH
    live = packed < WIDTH * GROUP
    dim = tl.arange(0, DIM)
    head = kv * GROUP + packed // WIDTH
    q_at = sequence * q_batch + head[:, None] * q_head + row[:, None] * q_row + dim[None, :]
    kv_at = slot * kv_slot + kv * kv_head
    first = piece * SPLIT
    if first < start + WIDTH:
        q = tl.load(q_ptr + q_at, mask=live[:, None], other=0.0)
        ancestors = tl.load(ancestors_ptr + sequence * WIDTH + row, mask=live, other=0)
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        output = tl.zeros((ROWS, DIM), tl.float32)
        for offset in range(0, SPLIT, BLOCK):
            key = first + offset + tl.arange(0, BLOCK)
            there = key < start + WIDTH
            at = kv_at + key[:, None].to(tl.int64) * kv_token + dim[None, :]
            k = tl.load(k_ptr + at, mask=there[:, None], other=0.0)
            v = tl.load(v_ptr + at, mask=there[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee").to(tl.float32) * scaling
            node = tl.minimum(tl.maximum(key - start, 0), WIDTH - 1)
            descends = ((ancestors[:, None] >> node[None, :]) & 1) == 1
            seen = (key[None, :] < start) | (descends & there[None, :])
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp(scores - base[:, None])
            kept = tl.exp(best - base)
            added = tl.dot(weights.to(v.dtype), v, input_precision="ieee").to(tl.float32)
            output = output * kept[:, None] + added
            total = total * kept + tl.sum(weights, 1)
            best = higher
        place = (tl.program_id(0) * pieces + piece) * ROWS + packed
        tl.store(sum_ptr + place[:, None] * DIM + dim[None, :], output)
        tl.store(scale_ptr + place * 2, best)
        tl.store(scale_ptr + place * 2 + 1, total)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _join_pieces(
    start_ptr, sum_ptr, scale_ptr, out_ptr, out_batch, out_row, out_head, pieces,
    KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    ROWS: tl.constexpr, SPLIT: tl.constexpr, TOGETHER: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Join the pieces of one packed row in ascending order, as many as there are keys for."""
    packed = tl.program_id(1)
    sequence = tl.program_id(0) // KV_HEADS
    head = (tl.program_id(0) % KV_HEADS) * GROUP + packed // WIDTH
    dim = tl.arange(0, DIM)
    best = float("-inf")
    total = 0.0
    output = tl.zeros((DIM,), tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    live = tl.cdiv(tl.load(start_ptr + sequence).to(tl.int32) + WIDTH, SPLIT)
    for first in range(0, live, TOGETHER):
        for number in tl.static_range(TOGETHER):  # their loads are on the way together
            piece = tl.minimum(first + number, live - 1)
            place = (tl.program_id(0) * pieces + piece) * ROWS + packed
            its_best = tl.load(scale_ptr + place * 2)
            its_best = tl.where(first + number < live, its_best, float("-inf"))
            its_total = tl.load(scale_ptr + place * 2 + 1)
            its_sum = tl.load(sum_ptr + place * DIM + dim)
            higher = tl.maximum(best, its_best)
            base = tl.where(higher == float("-inf"), 0.0, higher)
            mine, its = tl.exp(best - base), tl.exp(its_best - base)
            output = output * mine + its_sum * its
            total = total * mine + its_total * its
            best = higher
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    at = sequence * out_batch + (packed % WIDTH) * out_row + head * out_head + dim
    tl.store(out_ptr + at, output / total)


@torch.library.custom_op("llma_rag::verify", mutates_args=())
def verify(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    slots: torch.Tensor,
    ancestors: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attend each row to its sequence's kept keys and to its own ancestors in the step.

    Args:
        query: [sequences, heads, width, head_dim], head_dim a power of two of at least 16.
        keys: [slots, kv_heads, capacity, head_dim]; the step's own stand behind the kept ones.
        values: As `keys`, with the same strides.
        starts: Kept tokens of each sequence, int32 or int64 [sequences].
        slots: Which row of the slab each sequence has, int32 [sequences].
        ancestors: Bit j of entry i is set where row i sees row j, int64 [sequences, width].
        scaling: Factor of the scores.

    Returns:
        [sequences, width, heads, head_dim] in the query's dtype.

    Raises:
        ValueError: If a step is wider than `MAX_WIDTH` or the slabs' strides differ.
    """
    sequences, heads, width, dim = query.shape
    if width > MAX_WIDTH or keys.stride() != values.stride():
        raise ValueError(
            f"A step must have at most {MAX_WIDTH} rows, got {width}, and keys and values the "
            f"same strides, got {keys.stride()} and {values.stride()}."
        )
    output = torch.empty((sequences, width, heads, dim), dtype=query.dtype, device=query.device)
    room = Pieces(query, keys)
    attend(query, keys, values, starts, slots, ancestors, scaling, room, output)
    return output


class Pieces:
    """Where the pieces' outcomes stand until they are joined.

    Attributes:
        sums: float32 [sequences * kv_heads, pieces, rows, head_dim].
        scales: Largest score and sum of weights, float32 [sequences * kv_heads, pieces, rows, 2].
    """

    def __init__(self, query: torch.Tensor, keys: torch.Tensor) -> None:
        """Take room for attention of `query` to `keys`, shaped as `verify` takes them."""
        sequences, heads, width, dim = query.shape
        kv_heads, capacity = keys.shape[1:3]
        rows = max(16, triton.next_power_of_2(heads // kv_heads * width))
        places = (sequences * kv_heads, triton.cdiv(capacity, SPLIT), rows)
        device = query.device
        self.sums = torch.empty((*places, dim), dtype=torch.float32, device=device)
        self.scales = torch.empty((*places, 2), dtype=torch.float32, device=device)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    slots: torch.Tensor,
    ancestors: torch.Tensor,
    scaling: float,
    room: Pieces,
    output: torch.Tensor,
    launch: Mapping[str, Any] = NO_PDL,
) -> None:
    """Do what `verify` does, in memory that is given.

    Args:
        query: As `verify` takes it.
        keys: Likewise.
        values: Likewise.
        starts: Likewise.
        slots: Likewise.
        ancestors: Likewise.
        scaling: Likewise.
        room: For the pieces, made for these shapes.
        output: What `verify` returns.
        launch: How kernels are launched, "PDL" included: whether they begin before the last ends.
    """
    sequences, heads, width, dim = query.shape
    kv_heads, pieces, rows = keys.shape[1], *room.sums.shape[1:3]
    group = heads // kv_heads
    sizes: dict[str, Any] = {
        "KV_HEADS": kv_heads, "WIDTH": width, "GROUP": group, "DIM": dim,
        "ROWS": rows, "SPLIT": SPLIT, **launch,
    }  # fmt: skip
    _attend_piece[(sequences * kv_heads, pieces)](
        query, keys, values, starts, slots, ancestors, room.sums, room.scales,
        *query.stride()[:3], *keys.stride()[:3], pieces, scaling, **sizes, BLOCK=BLOCK, **ATTENDING,
    )  # fmt: skip
    _join_pieces[(sequences * kv_heads, group * width)](
        starts, room.sums, room.scales, output, *output.stride()[:3], pieces, **sizes,
        TOGETHER=TOGETHER, num_warps=max(1, dim // 64),
    )  # fmt: skip


@verify.register_fake
def _(query, keys, values, starts, slots, ancestors, scaling):
    """Tell `torch.compile` what `verify` returns."""
    sequences, heads, width, dim = query.shape
    return query.new_empty((sequences, width, heads, dim))
