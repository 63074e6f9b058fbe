# Triton takes no annotations (ANN), and kernels branch on what is known when compiling (C901).
# ruff: noqa: ANN001, ANN201, ANN202, C901
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"
"""A decoder layer of the Llama family in few Triton kernels; importing it needs Triton.

A step reads all weights once and little else, so that its kernels wait for memory. Each begins
while the one before it ends (programmatic dependent launch, CUDA programming guide): it brings its
first weights into the L2 cache, then waits for its inputs. What stands between two products is done
where one of them ends: norms, rotation, the write into the slab, the activation, the residual.

Products are transposed, [weights' rows, step's rows], and a step's rows never mix, so that a row's
bits do not depend on the others.
"""

import triton
import triton.language as tl


@triton.jit
def _prefetch(w_ptr, rows, first, K: tl.constexpr, LINES: tl.constexpr):
    """Bring the first lines of rows of weights, of 128 bytes, into the L2 cache."""
    lines = first + tl.arange(0, LINES) * 64
    at = w_ptr + rows[:, None].to(tl.int64) * K + lines[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _product(
    x_ptr, w_ptr, rows, first, COUNT: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Multiply rows of weights by all rows of the step, over `COUNT` columns from `first` on."""
    inner = tl.arange(0, BLOCK)
    w_at = w_ptr + rows[:, None].to(tl.int64) * K + first + inner[None, :]
    x_at = x_ptr + tl.arange(0, WIDTH)[None, :] * K + first + inner[:, None]
    output = tl.zeros((rows.shape[0], WIDTH), tl.float32)
    for _ in range(0, COUNT, BLOCK):
        w = tl.load(w_at, eviction_policy="evict_first")
        output = tl.dot(w, tl.load(x_at), output, input_precision="ieee")
        w_at += BLOCK
        x_at += BLOCK
    return output


@triton.jit
def _norm(squares_ptr, eps, SIZE: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """Return the factor of the norm for each row of the step, from sums of squares of parts."""
    at = tl.arange(0, PARTS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.rsqrt(tl.sum(tl.load(squares_ptr + at), 0) / SIZE + eps)


@triton.jit
def embed(
    inputs_ptr, weight_ptr, gain_ptr, frequency_ptr, residual_ptr, scaled_ptr, squares_ptr,
    angle_ptr, factor,
    SIZE: tl.constexpr, PADDED: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr,
    PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Look up a row's embedding, and its rotary angles, which all layers share."""
    row = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    column = tl.arange(0, PADDED)
    there = column < SIZE
    token = tl.load(inputs_ptr + row)
    value = tl.load(weight_ptr + token * SIZE + column, mask=there, other=0.0)
    gain = tl.load(gain_ptr + column, mask=there, other=0.0).to(tl.float32)
    exact = value.to(tl.float32)
    tl.store(residual_ptr + row * SIZE + column, value, mask=there)
    tl.store(scaled_ptr + row * SIZE + column, (exact * gain).to(value.dtype), mask=there)
    part = tl.arange(0, PARTS)
    tl.store(squares_ptr + part * WIDTH + row, tl.where(part == 0, tl.sum(exact * exact, 0), 0.0))
    half = tl.arange(0, HALF)
    angle = tl.load(inputs_ptr + WIDTH + row).to(tl.float32) * tl.load(frequency_ptr + half)
    kind = angle_ptr.dtype.element_ty
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    tl.store(angle_ptr + row * HALF + half, (tl.cos(angle) * factor).to(kind))
    tl.store(angle_ptr + (WIDTH + row) * HALF + half, (tl.sin(angle) * factor).to(kind))


@triton.jit
def _gathered(
    output, at, tile, share, part_ptr, count_ptr, PART: tl.constexpr, SPLIT: tl.constexpr
):
    """Return the sum of all shares to the program that ends last, and whether it is this one."""
    last = True
    if SPLIT > 1:
        tl.store(part_ptr + share * PART + at, output)
        tl.debug_barrier()
        last = tl.atomic_add(count_ptr + tile, 1, sem="acq_rel") == SPLIT - 1
        if last:
            output = tl.zeros_like(output)
            for other in range(SPLIT):
                output += tl.load(part_ptr + other * PART + at, cache_modifier=".cg")
            tl.store(count_ptr + tile, 0)
    return output, last


@triton.jit
def queries_keys_values(
    scaled_ptr, squares_ptr, angle_ptr, start_ptr,
    wq_ptr, wk_ptr, wv_ptr, bq_ptr, bk_ptr, bv_ptr, query_ptr, keys_ptr, values_ptr,
    part_ptr, count_ptr, kv_head, kv_token, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Project, rotate, and write queries to their buffer, keys and values behind the kept ones.

    A program has half of `ROWS` in each half of a head, since the rotation pairs them.
    """
    tile = tl.program_id(0)
    share = tl.program_id(1)
    head = tile // (DIM // ROWS)
    half: tl.constexpr = ROWS // 2
    count: tl.constexpr = SIZE // SPLIT
    first = (tile % (DIM // ROWS)) * half
    local = head
    w_ptr, b_ptr = wq_ptr, bq_ptr
    if head >= HEADS:
        local = head - HEADS
        w_ptr, b_ptr = wk_ptr, bk_ptr
    if head >= HEADS + KV_HEADS:
        local = head - HEADS - KV_HEADS
        w_ptr, b_ptr = wv_ptr, bv_ptr
    number = tl.arange(0, ROWS)
    rows = local * DIM + first + number % half + (number // half) * (DIM // 2)
    if PDL:
        _prefetch(w_ptr, rows, share * count, SIZE, LINES)
        tl.extra.cuda.gdc_wait()
    output = _product(scaled_ptr, w_ptr, rows, share * count, count, SIZE, WIDTH, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.arange(0, WIDTH)[None, :]
    at = (tile * ROWS + number)[:, None] * WIDTH + row
    output, last = _gathered(
        output, at, tile, share, part_ptr, count_ptr, (HEADS + 2 * KV_HEADS) * DIM * WIDTH, SPLIT
    )
    if last:
        output = output * _norm(squares_ptr, eps, SIZE, WIDTH, PARTS)[None, :]
        if BIAS:
            output += tl.load(b_ptr + rows)[:, None].to(tl.float32)
        low, high = tl.split(tl.permute(tl.reshape(output, (2, half, WIDTH)), (1, 2, 0)))
        place = (first + tl.arange(0, half))[:, None]
        turns = head < HEADS + KV_HEADS
        angle_at = angle_ptr + row * (DIM // 2) + place
        cos = tl.where(turns, tl.load(angle_at).to(tl.float32), 1.0)
        sin = tl.where(turns, tl.load(angle_at + WIDTH * (DIM // 2)).to(tl.float32), 0.0)
        start = tl.load(start_ptr)
        out_ptr = query_ptr + head * (WIDTH * DIM)
        stride = kv_token * 0 + DIM
        if head >= HEADS:
            out_ptr = keys_ptr + local * kv_head.to(tl.int64) + start * kv_token
            stride = kv_token
        if head >= HEADS + KV_HEADS:
            out_ptr = values_ptr + local * kv_head.to(tl.int64) + start * kv_token
        kind = query_ptr.dtype.element_ty
        out_at = out_ptr + row * stride + place
        tl.store(out_at, (low * cos - high * sin).to(kind))
        tl.store(out_at + DIM // 2, (high * cos + low * sin).to(kind))


@triton.jit
def add_product(
    x_ptr, w_ptr, residual_ptr, gain_ptr, scaled_ptr, squares_ptr, part_ptr, count_ptr,
    SIZE: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Project, add to the residual, and prepare the norm behind it."""
    tile = tl.program_id(0)
    share = tl.program_id(1)
    rows = tile * ROWS + tl.arange(0, ROWS)
    count: tl.constexpr = K // SPLIT
    if PDL:
        _prefetch(w_ptr, rows, share * count, K, LINES)
        tl.extra.cuda.gdc_wait()
    output = _product(x_ptr, w_ptr, rows, share * count, count, K, WIDTH, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.arange(0, WIDTH)
    part_at = rows[:, None] * WIDTH + row[None, :]
    output, last = _gathered(output, part_at, tile, share, part_ptr, count_ptr, SIZE * WIDTH, SPLIT)
    if last:
        at = row[None, :] * SIZE + rows[:, None]
        kind = residual_ptr.dtype.element_ty
        summed = tl.load(residual_ptr + at).to(tl.float32) + output.to(kind).to(tl.float32)
        tl.store(residual_ptr + at, summed.to(kind))
        rounded = summed.to(kind).to(tl.float32)
        gain = tl.load(gain_ptr + rows).to(tl.float32)
        tl.store(scaled_ptr + at, (rounded * gain[:, None]).to(kind))
        tl.store(squares_ptr + tile * WIDTH + row, tl.sum(rounded * rounded, 0))


@triton.jit
def activate(
    scaled_ptr, squares_ptr, gate_ptr, up_ptr, out_ptr, eps,
    SIZE: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Project twice, and multiply the one by the SiLU of the other."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if PDL:
        _prefetch(gate_ptr, rows, 0, SIZE, LINES)
        _prefetch(up_ptr, rows, 0, SIZE, LINES)
        tl.extra.cuda.gdc_wait()
    inner = tl.arange(0, BLOCK)
    row = tl.arange(0, WIDTH)
    w_at = rows[:, None].to(tl.int64) * SIZE + inner[None, :]
    x_at = scaled_ptr + row[None, :] * SIZE + inner[:, None]
    gate = tl.zeros((ROWS, WIDTH), tl.float32)
    up = tl.zeros((ROWS, WIDTH), tl.float32)
    for _ in range(0, SIZE, BLOCK):
        x = tl.load(x_at)
        gate_w = tl.load(gate_ptr + w_at, eviction_policy="evict_first")
        up_w = tl.load(up_ptr + w_at, eviction_policy="evict_first")
        gate = tl.dot(gate_w, x, gate, input_precision="ieee")
        up = tl.dot(up_w, x, up, input_precision="ieee")
        w_at += BLOCK
        x_at += BLOCK
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    factor = _norm(squares_ptr, eps, SIZE, WIDTH, PARTS)[None, :]
    gate, up = gate * factor, up * factor
    output = gate / (1.0 + tl.exp(-gate)) * up
    out_at = out_ptr + row[None, :] * INNER + rows[:, None]
    tl.store(out_at, output.to(out_ptr.dtype.element_ty))


@triton.jit
def predict(
    scaled_ptr, squares_ptr, w_ptr, logits_ptr, best_ptr, token_ptr, eps,
    SIZE: tl.constexpr, VOCABULARY: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Project to logits, and note the largest of each program's tokens."""
    tile = tl.program_id(0)
    token = tile * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(token, VOCABULARY - 1)
    if PDL:
        _prefetch(w_ptr, rows, 0, SIZE, LINES)
        tl.extra.cuda.gdc_wait()
    output = _product(scaled_ptr, w_ptr, rows, 0, SIZE, SIZE, WIDTH, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    output = output * _norm(squares_ptr, eps, SIZE, WIDTH, PARTS)[None, :]
    row = tl.arange(0, WIDTH)
    there = token[:, None] < VOCABULARY
    rounded = output.to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + row[None, :] * VOCABULARY + token[:, None], rounded, mask=there)
    value = rounded.to(tl.float32)
    value = tl.where(value == value, value, float("inf"))  # no number: found by `choose`
    value = tl.where(there, value, float("-inf"))
    best = tl.max(value, 0)
    first = tl.min(tl.where(value == best[None, :], token[:, None], VOCABULARY), 0)
    tl.store(best_ptr + tile * WIDTH + row, best)
    tl.store(token_ptr + tile * WIDTH + row, first)


@triton.jit
def choose(
    best_ptr, token_ptr, out_ptr,
    TILES: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Choose a row's likeliest token, the first of equals; -1 where its logit is no number."""
    row = tl.program_id(0)
    tile = tl.arange(0, PADDED)
    there = tile < TILES
    if PDL:
        tl.extra.cuda.gdc_wait()
    best = tl.load(best_ptr + tile * WIDTH + row, mask=there, other=float("-inf"))
    token = tl.load(token_ptr + tile * WIDTH + row, mask=there, other=2147483647)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    most = tl.max(best, 0)
    found = tl.min(tl.where(best == most, token, 2147483647), 0)
    is_number = (most < float("inf")) & (most > float("-inf"))
    tl.store(out_ptr + row, tl.where(is_number, found, -1).to(tl.int64))
