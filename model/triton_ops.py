"""Tensors in, tensors out: the kernels of `model.triton_kernels` with their grids.

Sizes are those of a decoder whose head size and rank the kernels can tile; `model.fused_llama` asks first.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from model import triton_kernels as kernels
from model.llama import Rotary

ROWS = 16
"""Rows of one tile: the least that the matrix units take."""
COLUMNS = 128
ATTENTION_BLOCK = 64
"""Tokens that one turn of paged attention reads."""
ATTENTION_PROGRAMS = 512
"""Contexts are split until about so many programs share them, four for each processor of a large GPU."""
MAX_SPLITS = 16
GEMV_OUT, GEMV_BLOCK, GEMV_WARPS = 4, 1024, 4


def _ranks(r: int) -> int:
    return max(ROWS, int(triton.next_power_of_2(r)))


def write_qkv(
    y: Tensor,
    b: Tensor,
    scale: Tensor,
    rotary: Rotary,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """y: [N, 3 D + 3 r], x times W and A of q, k and v. b: [3, r, D]. scale: [N, D]. rotary: the whole table,
    [positions, d / 2] each. keys, values: [pages, page size, H, d], written at `slots` [N]. -> q [N, H, d].
    """
    heads, head_dim = keys.shape[-2:]
    r = b.shape[1]
    query = torch.empty((len(y), heads, head_dim), dtype=y.dtype, device=y.device)
    cos, sin = rotary
    grid = (triton.cdiv(len(y), ROWS), 3 * heads)
    kernels.qkv_kernel[grid](
        y, b, scale, cos, sin, positions, slots, query, keys, values,
        len(y), heads, y.stride(0), scale.stride(0),
        HALF=head_dim // 2, R=r, RANKS=_ranks(r), ROWS=ROWS,
    )  # fmt: skip
    return query


def paged_attention(query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, contexts: Tensor) -> Tensor:
    """query: [B, H, d], one token of each of B sequences. keys, values: [pages, page size, H, d].
    tables: [B, P] integers. contexts: [B] integers, at least 1. Gives [B, H, d].
    """
    batch, heads, head_dim = query.shape
    splits = max(1, min(MAX_SPLITS, ATTENTION_PROGRAMS // (batch * heads)))
    out = torch.empty_like(query)
    parts = weights = out
    if splits > 1:
        shape = (batch, heads, splits)
        parts = torch.empty((*shape, head_dim), dtype=torch.float32, device=query.device)
        weights = torch.empty(shape, dtype=torch.float32, device=query.device)
    kernels.attention_kernel[(batch, heads, splits)](
        query, keys, values, tables, contexts, out, parts, weights,
        head_dim**-0.5, tables.stride(0), heads, splits, keys.shape[1],
        D=head_dim, BLOCK=ATTENTION_BLOCK, SPLIT=splits > 1,
    )  # fmt: skip
    if splits > 1:
        kernels.combine_kernel[(batch * heads,)](
            parts, weights, out, splits, D=head_dim, SPLITS=triton.next_power_of_2(splits), num_warps=4
        )
    return out


def add_lora(x: Tensor, y: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """x: [N, D]. y: [N, D + r], an input times W and A. b: [r, D]. scale: [N, D]. -> x + y + low B scale."""
    rows, size = x.shape
    out = torch.empty_like(x)
    grid = (triton.cdiv(rows, ROWS), size // COLUMNS)
    kernels.add_lora_kernel[grid](
        x, y, b, scale, out, rows, size, y.stride(0), scale.stride(0),
        R=b.shape[0], RANKS=_ranks(b.shape[0]), ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    return out


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm of x [N, D]."""
    out = torch.empty_like(x)
    columns = triton.next_power_of_2(x.shape[1])
    warps = min(16, max(1, columns // 256))
    kernels.norm_kernel[(len(x),)](x, weight, out, x.shape[1], epsilon, COLUMNS=columns, num_warps=warps)
    return out


def swiglu(gate_up: Tensor) -> Tensor:
    """[N, 2 I], gate and up side by side -> silu(gate) * up [N, I]."""
    rows, both = gate_up.shape
    width, columns = both // 2, 1024
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    kernels.swiglu_kernel[(rows, triton.cdiv(width, columns))](gate_up, out, width, COLUMNS=columns)
    return out


def gemv(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    residual: Tensor | None = None,
    swiglu: bool = False,
    shape: tuple[int, int, int] = (GEMV_OUT, GEMV_BLOCK, GEMV_WARPS),
) -> Tensor:
    """x: [1, in] times weight [out, in] -> [1, out], after RMSNorm by `norm` [in] if given.

    residual: [1, out], added. swiglu: weight is [2 out, in], gate over up. shape: outputs and inputs of one
    tile, warps of one program.
    """
    rows, size = weight.shape
    num_out = rows // 2 if swiglu else rows
    out = torch.empty((1, num_out), dtype=x.dtype, device=x.device)
    tile, block, warps = shape
    kernels.gemv_kernel[(triton.cdiv(num_out, tile),)](
        x, weight, x if norm is None else norm, x if residual is None else residual, out,
        num_out, size, epsilon,
        NORM=norm is not None, RESIDUAL=residual is not None, SWIGLU=swiglu,
        OUT=tile, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out
