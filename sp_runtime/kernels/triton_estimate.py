"""Launches of the last-block estimate."""

from __future__ import annotations

from dataclasses import dataclass
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
from sp_runtime.kernels.launch import LOG2_E, Layout, key_sources, strides, tile_constants
from sp_runtime.kernels.program import Program, kept
from sp_runtime.kernels.tuning import KernelConfig

# Keys or distances that a finish program takes.
_COLS = 256


def last_block_estimate(
    q: Tensor, k: Tensor, grid: BlockGrid, programs: EstimatePrograms
) -> LastBlockEstimate:
    """`Kernels.last_block` on checked inputs, with its block sums."""
    batch, heads = q.shape[:2]
    options: dict[str, Any] = {"dtype": torch.float32, "device": q.device}
    vertical = torch.empty(batch, heads, grid.kv_len, **options)
    slash = torch.empty(batch, heads, grid.kv_len, **options)
    sums = torch.empty(2, batch, heads, grid.num_cols, **options)
    lse_part = torch.empty(batch * heads, *programs.lse_part, **options)
    lse = torch.empty(batch * heads, grid.block_size, **options)
    columns = torch.empty(programs.subs, batch * heads, grid.kv_len, **options)
    part = torch.empty(batch * heads, *programs.part, **options)
    programs.last_lse(q_ptr=q, k_src=k, part_ptr=lse_part)
    programs.join_lse(part_ptr=lse_part, lse_ptr=lse)
    programs.estimate(q_ptr=q, k_src=k, lse_ptr=lse, columns_ptr=columns, part_ptr=part)
    programs.finish(
        columns_ptr=columns, part_ptr=part, vertical_ptr=vertical, slash_ptr=slash, sums_ptr=sums
    )
    return LastBlockEstimate(vertical=vertical, slash=slash, sums=sums)


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimatePrograms:
    """The four launches of an estimate.

    The base-2 log-sum-exp of the last queries over all visible keys in chunks, float32
    [B*H, *lse_part], joined to [B*H, block]; then the estimate in tiles, float32 [B*H, *part], with
    [subs, B*H, N] of columns, put together.
    """

    last_lse: Program
    join_lse: Program
    estimate: Program
    finish: Program
    lse_part: tuple[int, int]
    part: tuple[int, int, int]
    subs: int


@kept
def estimate_programs(
    q: Layout,
    k: Layout,
    grid: BlockGrid,
    scale: float,
    lse_config: KernelConfig,
    config: KernelConfig,
) -> EstimatePrograms:
    block, heads = grid.block_size, q.shape[1]
    slots = q.shape[0] * heads
    chunks = -(-grid.num_cols // lse_config.chunk)
    tiles = -(-grid.kv_len // config.block_n)
    assert config.block_m == config.block_n  # square tiles: see estimate.py
    subs = block // config.block_m
    steps = tiles + subs - 1
    shared: dict[str, Any] = {
        **strides("q", q),
        **strides("k", k),
        "n_q": grid.q_len,
        "n_kv": grid.kv_len,
        "num_heads": heads,
        "group": heads // k.shape[1],
        "scale_log2": scale * LOG2_E,
    }
    return EstimatePrograms(
        last_lse=Program(
            last_lse_kernel,
            (block // lse_config.block_m, chunks, slots),
            lse_config,
            described=key_sources(lse_config, k_src=k),
            **shared,
            **tile_constants(q, grid, lse_config),
            CHUNK=lse_config.chunk,
        ),
        join_lse=Program(
            join_lse_kernel, (-(-block // 32), slots), width=block, chunks=chunks, W=32, CHUNKS=64
        ),
        estimate=Program(
            estimate_kernel,
            (-(-steps // config.chunk), slots),
            config,
            described=key_sources(config, k_src=k),
            tiles=tiles,
            **shared,
            **tile_constants(q, grid, config),
            CHUNK=config.chunk,
        ),
        finish=Program(
            finish_kernel,
            (slots, -(-grid.kv_len // _COLS), 2),
            n_q=grid.q_len,
            n_kv=grid.kv_len,
            num_cols=grid.num_cols,
            tiles=tiles,
            BLOCK=block,
            T=config.block_n,
            W=_COLS,
        ),
        lse_part=(chunks, block),
        part=(2, steps, config.block_n),
        subs=subs,
    )
