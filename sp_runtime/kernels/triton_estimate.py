"""Launches of the last-block estimate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.estimate import (
    estimate_kernel,
    finish_kernel,
    join_lse_kernel,
    last_lse_kernel,
)
from sp_runtime.kernels.launch import (
    LOG2_E,
    descriptor_or_pointer,
    launch,
    on_device,
    strides,
    tile_constants,
)
from sp_runtime.kernels.tuning import KernelConfig

# Keys or distances that a finish program takes.
_COLS = 256


def last_block_estimate(
    q: Tensor,
    k: Tensor,
    grid: BlockGrid,
    *,
    scale: float,
    lse_config: KernelConfig,
    config: KernelConfig,
) -> LastBlockEstimate:
    """`Kernels.last_block` on checked inputs, with its block sums."""
    batch, heads = q.shape[:2]
    block = grid.block_size
    tiles = -(-grid.kv_len // config.block_n)
    options: dict[str, Any] = {"dtype": torch.float32, "device": q.device}
    vertical = torch.empty(batch, heads, grid.kv_len, **options)
    slash = torch.empty(batch, heads, grid.kv_len, **options)
    sums = torch.empty(2, batch, heads, grid.num_cols, **options)
    assert config.block_m == config.block_n  # square tiles: see estimate.py
    subs = block // config.block_m
    steps = tiles + subs - 1
    columns = torch.empty(subs, batch * heads, grid.kv_len, **options)
    part = torch.empty(batch * heads, 2, steps, config.block_n, **options)
    with on_device(q):
        lse = _last_lse(q, k, grid, lse_config, scale)
        launch(
            estimate_kernel,
            (-(-steps // config.chunk), batch * heads),
            config,
            q_ptr=q,
            k_src=descriptor_or_pointer(k, config),
            lse_ptr=lse,
            columns_ptr=columns,
            part_ptr=part,
            **strides("q", q),
            **strides("k", k),
            n_q=grid.q_len,
            n_kv=grid.kv_len,
            num_heads=heads,
            group=heads // k.shape[1],
            tiles=tiles,
            scale_log2=scale * LOG2_E,
            **tile_constants(q, grid, config),
            CHUNK=config.chunk,
        )
        launch(
            finish_kernel,
            (batch * heads, -(-grid.kv_len // _COLS), 2),
            None,
            columns_ptr=columns,
            part_ptr=part,
            vertical_ptr=vertical,
            slash_ptr=slash,
            sums_ptr=sums,
            n_q=grid.q_len,
            n_kv=grid.kv_len,
            num_cols=grid.num_cols,
            tiles=tiles,
            BLOCK=block,
            T=config.block_n,
            W=_COLS,
        )
    return LastBlockEstimate(vertical=vertical, slash=slash, sums=sums)


def _last_lse(q: Tensor, k: Tensor, grid: BlockGrid, config: KernelConfig, scale: float) -> Tensor:
    """Base-2 log-sum-exp of the last queries over all visible keys: float32 [B*H, block]."""
    slots, block = q.shape[0] * q.shape[1], grid.block_size
    chunks = -(-grid.num_cols // config.chunk)
    part = torch.empty(slots, chunks, block, dtype=torch.float32, device=q.device)
    lse = torch.empty(slots, block, dtype=torch.float32, device=q.device)
    launch(
        last_lse_kernel,
        (block // config.block_m, chunks, slots),
        config,
        q_ptr=q,
        k_src=descriptor_or_pointer(k, config),
        part_ptr=part,
        **strides("q", q),
        **strides("k", k),
        n_q=grid.q_len,
        n_kv=grid.kv_len,
        num_heads=q.shape[1],
        group=q.shape[1] // k.shape[1],
        scale_log2=scale * LOG2_E,
        **tile_constants(q, grid, config),
        CHUNK=config.chunk,
    )
    launch(
        join_lse_kernel,
        (-(-block // 32), slots),
        None,
        part_ptr=part,
        lse_ptr=lse,
        width=block,
        chunks=chunks,
        W=32,
        CHUNKS=64,
    )
    return lse
