"""The public operator: block-sparse causal attention over a `BlockIndex`, without transformers.

Registered as `torch.ops.sp.block_sparse_attention`, with a fake implementation for tracing. It is
for inference: there is no backward.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.kernels.select import select_kernels

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.library.custom_op("sp::block_sparse_attention", mutates_args=())
def _block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    dense: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    grid = BlockGrid(q_len=q.shape[2], kv_len=k.shape[2], block_size=block_size)
    index = BlockIndex(grid=grid, row_ptr=row_ptr, col_idx=col_idx, dense=dense)
    kernels = select_kernels("auto", q.device).kernels
    return kernels.attention(q, k, v, index, scale=scale)


@_block_sparse_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_ptr: Tensor,
    col_idx: Tensor,
    dense: Tensor,
    block_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, num_heads, q_len, head_dim = q.shape
    out = q.new_empty(batch, q_len, num_heads, head_dim).transpose(1, 2)
    accumulator = torch.float64 if q.dtype == torch.float64 else torch.float32
    return out, q.new_empty(batch, num_heads, q_len, dtype=accumulator)


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: BlockIndex,
    *,
    scale: float | None = ...,
    kernels: str = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: BlockIndex,
    *,
    scale: float | None = ...,
    kernels: str = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: BlockIndex,
    *,
    scale: float | None = None,
    kernels: str = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention over the blocks of `index`, and only those.

    q: [B, Hq, Nq, D]; k, v: [B, Hkv, Nk, D]; the queries are the last Nq of the Nk positions and
    query head h reads KV head h // (Hq // Hkv). fp16, bf16, fp32 (or fp64 on the reference), any
    strides with a contiguous last dimension. scale defaults to 1 / sqrt(D). kernels: "auto",
    "triton", "reference" or "fa4"; an explicit name never falls back.

    Returns the output [B, Hq, Nq, D] in q's dtype and, with `return_lse`, the natural-log row
    log-sum-exp [B, Hq, Nq] in float32 over the computed blocks.

    Raises UsageError for arguments that do not fit each other or the index, UnsupportedError for
    inputs that require grad and for kernels that cannot run on this device.
    """
    _require_no_grad(q, k, v)
    _require_inputs(q, k, v)
    _require_index(q, k, index)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not math.isfinite(scale):
        raise UsageError(f"scale {scale} is not finite")
    choice = select_kernels(kernels, q.device)
    if kernels == "auto":
        out, lse = _block_sparse_attention(
            q, k, v, index.row_ptr, index.col_idx, index.dense, index.grid.block_size, scale
        )
    else:
        out, lse = choice.kernels.attention(q, k, v, index, scale=scale)
    return (out, lse) if return_lse else out


def _require_no_grad(q: Tensor, k: Tensor, v: Tensor) -> None:
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise UnsupportedError(
            "block_sparse_attention has no backward, and an input requires grad",
            hint="call it under torch.no_grad()",
        )


def _require_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise UsageError(f"{name} has shape {tuple(x.shape)}, expected 4 dimensions")
        if 0 in x.shape:
            raise UsageError(f"{name} has shape {tuple(x.shape)}, which is empty")
        if x.dtype != q.dtype or x.device != q.device:
            raise UsageError(
                f"{name} is {x.dtype} on {x.device}, but q is {q.dtype} on {q.device}",
                hint="give q, k and v one dtype and device",
            )
        if x.stride(-1) != 1 and x.shape[-1] != 1:
            raise UsageError(
                f"{name}'s last dimension has stride {x.stride(-1)}", hint="call .contiguous()"
            )
    if q.dtype not in DTYPES:
        raise UsageError(f"dtype {q.dtype} is not supported", hint="use fp16, bf16 or fp32")
    if k.shape != v.shape:
        raise UsageError(f"k has shape {tuple(k.shape)}, but v has {tuple(v.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise UsageError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} differ in batch size or head_dim"
        )
    if q.shape[1] % k.shape[1] != 0:
        raise UsageError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} KV heads")


def _require_index(q: Tensor, k: Tensor, index: BlockIndex) -> None:
    grid, batch, num_heads = index.grid, q.shape[0], q.shape[1]
    if (grid.q_len, grid.kv_len) != (q.shape[2], k.shape[2]):
        raise UsageError(
            f"the index is for {grid.q_len} queries and {grid.kv_len} keys, "
            f"but q has {q.shape[2]} and k has {k.shape[2]}"
        )
    expected = (batch, num_heads, grid.num_rows)
    if tuple(index.dense.shape) != expected or index.dense.dtype != torch.bool:
        raise UsageError(
            f"index.dense is {index.dense.dtype} {tuple(index.dense.shape)}, expected "
            f"bool {expected} for [B, Hq, block rows]"
        )
    rows = batch * num_heads * grid.num_rows
    if tuple(index.row_ptr.shape) != (rows + 1,) or index.row_ptr.dtype != torch.int32:
        raise UsageError(
            f"index.row_ptr is {index.row_ptr.dtype} {tuple(index.row_ptr.shape)}, "
            f"expected int32 ({rows + 1},)"
        )
    if index.col_idx.dim() != 1 or index.col_idx.dtype != torch.int32:
        raise UsageError("index.col_idx must be int32 with one dimension")
    for part in (index.row_ptr, index.col_idx, index.dense):
        if part.device != q.device:
            raise UsageError(f"the index is on {part.device}, but q is on {q.device}")
