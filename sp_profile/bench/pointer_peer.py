"""A plain Triton kernel with FlexPrefill's schedule, as a yardstick; no part of the product.

Rebuilt, not copied, from what FlexPrefill (arXiv 2502.20766) publishes of its block-sparse kernel,
from which SharePrefill's is derived, so that it does the same work in the same order:

- one program a block row of a head, heads first, rows in their order, 128 x 128 tiles;
- K and V through pointers, checked against length and head_dim, which is a run-time number;
- key blocks as int64 numbers of the whole grid, read one by one inside the loop;
- in every listed block a mask of positions under 0 and the causal mask, both added to the scores,
  which are scaled after the product;
- the log-sum-exp carried through a logarithm and an exponential a block;
- 8 warps where head_dim and block pass 64, else 4, and 3 stages: what it takes on an H100.

Importing this module imports Triton.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sp_profile.bench.check import Inputs

_STAGES = 3


@triton.jit
def pointer_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, count_ptr, list_ptr,
    stride_qh, stride_qn, stride_kh, stride_kn, stride_vh, stride_vn, stride_oh, stride_on,
    length, head_dim, num_rows, num_cols, group, scale_log2,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block row of one head: out [BLOCK, DIM] over the key blocks of its list."""
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_pos = row * BLOCK + tl.arange(0, BLOCK)
    step = tl.arange(0, BLOCK)
    dims = tl.arange(0, DIM)
    q_inside = (q_pos[:, None] < length) & (dims[None, :] < head_dim)
    q_place = head * stride_qh + q_pos[:, None] * stride_qn + dims[None, :]
    q = tl.load(q_ptr + q_place, mask=q_inside, other=0.0)
    k_head = k_ptr + (head // group) * stride_kh
    v_head = v_ptr + (head // group) * stride_vh
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    lse = tl.full((BLOCK,), float("-inf"), tl.float32)
    acc = tl.zeros((BLOCK, DIM), tl.float32)
    count = tl.load(count_ptr + head * num_rows + row)
    listed = list_ptr + (head * num_rows + row) * num_cols
    for _ in range(count):
        first = (tl.load(listed).to(tl.int32) % num_cols) * BLOCK
        listed += 1
        k_pos = first + step
        k_inside = (dims[:, None] < head_dim) & (k_pos[None, :] < length) & (k_pos[None, :] >= 0)
        k = tl.load(k_head + dims[:, None] + k_pos[None, :] * stride_kn, mask=k_inside, other=0.0)
        s = tl.where(k_pos[None, :] >= 0, 0.0, float("-inf"))
        s += tl.where(q_pos[:, None] >= k_pos[None, :], 0.0, float("-inf"))
        s += tl.dot(q, k) * scale_log2
        peak = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - peak[:, None])
        acc = acc * tl.exp2(top - peak)[:, None]
        v_inside = (k_pos[:, None] < length) & (k_pos[:, None] >= 0) & (dims[None, :] < head_dim)
        v = tl.load(v_head + k_pos[:, None] * stride_vn + dims[None, :], mask=v_inside, other=0.0)
        acc += tl.dot(p.to(v.dtype), v)
        lse = peak + tl.log2(tl.exp2(lse - peak) + tl.sum(p, 1))
        top = peak
    out = (acc * tl.exp2(top - lse)[:, None]).to(out_ptr.dtype.element_ty)
    out_place = head * stride_oh + q_pos[:, None] * stride_on + dims[None, :]
    tl.store(out_ptr + out_place, out, mask=q_inside)


def grid_numbers(blocks: Tensor) -> Tensor:
    """Key blocks int32 [1, H, R, C] as numbers of the whole grid, int64: row * C + block."""
    rows, cols = blocks.shape[-2:]
    offsets = torch.arange(rows, device=blocks.device, dtype=torch.int64) * cols
    return blocks + offsets[:, None]


def pointer_attention(inputs: Inputs, counts: Tensor, numbers: Tensor) -> Tensor:
    """Block-sparse attention, [1, H, N, D].

    counts: int32 [1, H, R]; numbers: int64 [1, H, R, C], the `grid_numbers` of ascending lists; the
    first counts entries are read, and block 0 is one of them, so that every query has a key in the
    first one.
    """
    q, k, v, grid = inputs.q, inputs.k, inputs.v, inputs.grid
    out = torch.empty_like(q)
    assert q.stride(3) == k.stride(3) == v.stride(3) == 1
    dim = q.shape[3]
    pointer_kernel[(q.shape[1], grid.num_rows)](
        q, k, v, out, counts, numbers,
        q.stride(1), q.stride(2), k.stride(1), k.stride(2), v.stride(1), v.stride(2),
        out.stride(1), out.stride(2),
        grid.kv_len, dim, grid.num_rows, grid.num_cols, inputs.group,
        inputs.scale * math.log2(math.e),
        DIM=dim, BLOCK=grid.block_size,
        num_warps=8 if dim > 64 and grid.block_size > 64 else 4, num_stages=_STAGES,
    )  # fmt: skip
    return out
