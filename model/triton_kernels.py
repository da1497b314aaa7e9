"""The decoder's small operations as Triton kernels: what eager torch makes dozens of launches of.

Every kernel reads and writes in the model's dtype and computes in float32. Importable only where Triton is:
`model.fused_llama` imports it when it has found it. R is the LoRA's rank; where it is 0 there is no LoRA.
"""

import triton
import triton.language as tl


@triton.jit
def _low_rank(low, stride, b, rows, ranks, columns, keep, R: tl.constexpr, out_features):
    """Rows [ROWS] of `low` times columns [COLUMNS] of B [R, out] -> [ROWS, COLUMNS] float32."""
    inside = ranks < R
    left = tl.load(low + rows[:, None] * stride + ranks, mask=keep[:, None] & inside[None, :], other=0.0)
    right = tl.load(b + ranks[:, None] * out_features + columns, mask=inside[:, None], other=0.0)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit(do_not_specialize=["num_rows"])
def qkv_kernel(
    y, b, scale, cos, sin, positions, slots, query, keys, values,
    num_rows, heads, y_stride, scale_stride,
    HALF: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One head of q, k or v of ROWS rows: LoRA added, rotated (q, k), and written, k and v to their slots."""
    group, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    size = heads * HALF * 2
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keep = rows < num_rows
    mask = keep[:, None]
    channels = head * HALF * 2 + tl.arange(0, HALF * 2)
    projected = tl.load(y + rows[:, None] * y_stride + group * size + channels, mask=mask, other=0.0)
    projected = projected.to(tl.float32)
    if R > 0:
        low, own = y + 3 * size + group * R, b + group * R * size
        up = _low_rank(low, y_stride, own, rows, tl.arange(0, RANKS), channels, keep, R, size)
        strength = tl.load(scale + rows[:, None] * scale_stride + channels, mask=mask, other=0.0)
        projected += up * strength.to(tl.float32)
    slot = tl.load(slots + rows, mask=keep, other=0).to(tl.int64)
    if group < 2:
        even, odd = tl.split(tl.reshape(projected, [ROWS, HALF, 2]))
        position = tl.load(positions + rows, mask=keep, other=0)
        angle = position[:, None] * HALF + tl.arange(0, HALF)
        c = tl.load(cos + angle, mask=mask, other=0.0)
        s = tl.load(sin + angle, mask=mask, other=0.0)
        turned = tl.interleave(even * c - odd * s, even * s + odd * c)
        if group == 0:
            tl.store(query + rows[:, None] * size + channels, turned.to(query.dtype.element_ty), mask=mask)
        else:
            tl.store(keys + slot[:, None] * size + channels, turned.to(keys.dtype.element_ty), mask=mask)
    else:
        tl.store(values + slot[:, None] * size + channels, projected.to(values.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["splits", "table_stride"])
def attention_kernel(
    query, keys, values, tables, contexts, out, parts, weights,
    softmax_scale, table_stride, heads, splits, page_size,
    D: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One query's head over its share of the context, pages read where they lie.

    SPLIT: write the share's own softmax to parts [B, H, splits, D] and its weight's logarithm to weights.
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    size = heads * D
    channels = tl.arange(0, D)
    q = tl.load(query + row * size + head * D + channels).to(tl.float32) * softmax_scale
    context = tl.load(contexts + row).to(tl.int32)
    share = tl.cdiv(tl.cdiv(context, splits), BLOCK) * BLOCK
    begin = split * share
    end = tl.minimum(begin + share, context)
    best, total = -float("inf"), 0.0
    mixed = tl.zeros([D], tl.float32)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        seen = token < end
        page = tl.load(tables + row * table_stride + token // page_size, mask=seen, other=0).to(tl.int64)
        at = ((page * page_size + token % page_size) * size + head * D)[:, None] + channels
        k = tl.load(keys + at, mask=seen[:, None], other=0.0).to(tl.float32)
        v = tl.load(values + at, mask=seen[:, None], other=0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(k * q[None, :], axis=1), -float("inf"))
        new_best = tl.maximum(best, tl.max(score, axis=0))
        share_of = tl.exp(score - new_best)
        shrink = tl.exp(best - new_best)
        total = total * shrink + tl.sum(share_of, axis=0)
        mixed = mixed * shrink + tl.sum(share_of[:, None] * v, axis=0)
        best = new_best
    if SPLIT:
        part = (row * heads + head) * splits + split
        tl.store(parts + part * D + channels, mixed / tl.maximum(total, 1e-30))
        weight = best + tl.log(tl.maximum(total, 1e-30))
        tl.store(weights + part, tl.where(total > 0.0, weight, -float("inf")))
    else:
        tl.store(out + row * size + head * D + channels, (mixed / total).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(parts, weights, out, splits, D: tl.constexpr, SPLITS: tl.constexpr):
    """The shares of one query's head joined. One program a head of a row."""
    head = tl.program_id(0)
    channels, split = tl.arange(0, D), tl.arange(0, SPLITS)
    keep = split < splits
    weight = tl.load(weights + head * splits + split, mask=keep, other=-float("inf"))
    weight = tl.exp(weight - tl.max(weight, axis=0))
    part = tl.load(parts + (head * splits + split)[:, None] * D + channels, mask=keep[:, None], other=0.0)
    mixed = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out + head * D + channels, mixed.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["num_rows"])
def add_lora_kernel(
    x, y, b, scale, out, num_rows, size, y_stride, scale_stride,
    R: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = x + y[:, :size] + (y[:, size:] @ B) * scale, on a tile."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    keep = rows < num_rows
    mask = keep[:, None]
    added = tl.load(y + rows[:, None] * y_stride + columns, mask=mask, other=0.0).to(tl.float32)
    if R > 0:
        up = _low_rank(y + size, y_stride, b, rows, tl.arange(0, RANKS), columns, keep, R, size)
        strength = tl.load(scale + rows[:, None] * scale_stride + columns, mask=mask, other=0.0)
        added += up * strength.to(tl.float32)
    at = rows[:, None] * size + columns
    total = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + added
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def norm_kernel(x, weight, out, size, epsilon, COLUMNS: tl.constexpr):
    """RMSNorm(x) * weight. One program a row."""
    columns = tl.arange(0, COLUMNS)
    keep = columns < size
    at = tl.program_id(0).to(tl.int64) * size + columns
    row = tl.load(x + at, mask=keep, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(row * row, axis=0) / size + epsilon)
    strength = tl.load(weight + columns, mask=keep, other=0.0).to(tl.float32)
    tl.store(out + at, (row * inverse * strength).to(out.dtype.element_ty), mask=keep)


@triton.jit
def swiglu_kernel(gate_up, out, width, COLUMNS: tl.constexpr):
    """silu(gate) * up, gate and up side by side. One program a block of a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    keep = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=keep, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=keep)


@triton.jit
def gemv_kernel(
    x, w, norm, residual, out, num_out, size, epsilon,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr,
    OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """OUT entries of W @ x for one row x, its RMSNorm before and SwiGLU or the residual after it.

    SWIGLU: W [2 * num_out, size], gate rows before up rows. The norm's factor is taken out of the product:
    it is known only once all of x has been read.
    """
    rows = tl.program_id(0) * OUT + tl.arange(0, OUT)
    keep = (rows < num_out)[:, None]
    gathered = tl.zeros([OUT, BLOCK], tl.float32)
    others = tl.zeros([OUT, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < size
        value = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += value * value
            value *= tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)
        at = w + rows[:, None].to(tl.int64) * size + columns
        mask = keep & inside[None, :]
        tile = tl.load(at, mask=mask, other=0.0, eviction_policy="evict_first")
        gathered += tile.to(tl.float32) * value[None, :]
        if SWIGLU:
            at = w + (rows + num_out)[:, None].to(tl.int64) * size + columns
            up = tl.load(at, mask=mask, other=0.0, eviction_policy="evict_first")
            others += up.to(tl.float32) * value[None, :]
    result = tl.sum(gathered, axis=1)
    inverse = 1.0
    if NORM:
        inverse = tl.rsqrt(tl.sum(squares, axis=0) / size + epsilon)
    result *= inverse
    if SWIGLU:
        result = result * tl.sigmoid(result) * (tl.sum(others, axis=1) * inverse)
    if RESIDUAL:
        result += tl.load(residual + rows, mask=rows < num_out, other=0.0).to(tl.float32)
    tl.store(out + rows, result.to(out.dtype.element_ty), mask=rows < num_out)
