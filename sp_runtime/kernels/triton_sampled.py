"""Launches of the sampled block mass."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.launch import (
    LOG2_E,
    descriptor_or_pointer,
    launch,
    on_device,
    strides,
    tile_constants,
)
from sp_runtime.kernels.sampled_mass import slot_lse_kernel, slot_mass_kernel
from sp_runtime.kernels.tuning import KernelConfig

# What the log-sum-exps of the slots take at a time; longer prompts go in pieces of heads.
_MAX_BYTES = 1 << 28
_SLOTS, _COLS = 64, 32


def sampled_block_mass(
    q: Tensor,
    k: Tensor,
    heads: Tensor,
    grid: BlockGrid,
    config: KernelConfig,
    *,
    stride: int,
    scale: float,
) -> Tensor:
    """`Kernels.sampled_mass` on checked inputs; heads int64 [B, S] contiguous, stride in
    [1, block size]. Launches two kernels for each piece."""
    # Slots of one block row: a power of two, so that tiles hold whole rows or parts of one.
    per_row = int(triton.next_power_of_2(-(-grid.block_size // stride)))
    width = -(-grid.num_rows * per_row // config.block_m) * config.block_m
    tile = max(_SLOTS, per_row)
    mass = torch.empty(
        (*heads.shape, grid.num_rows, grid.num_cols), dtype=torch.float32, device=q.device
    )
    piece = max(1, min(heads.numel(), _MAX_BYTES // (4 * grid.num_cols * width)))
    part = torch.empty(piece, grid.num_cols, width, dtype=torch.float32, device=q.device)
    shared: dict[str, Any] = {
        "part_ptr": part,
        "heads_ptr": heads,
        "n_q": grid.q_len,
        "n_kv": grid.kv_len,
        "num_rows": grid.num_rows,
        "num_cols": grid.num_cols,
        "num_slots": heads.shape[1],
        "stride": stride,
        "width": width,
        "PER_ROW": per_row,
    }
    with on_device(q):
        for start in range(0, heads.numel(), piece):
            count = min(piece, heads.numel() - start)
            launch(
                slot_lse_kernel,
                (width // config.block_m, -(-grid.num_cols // config.chunk), count),
                config,
                q_ptr=q,
                k_src=descriptor_or_pointer(k, config),
                **strides("q", q),
                **strides("k", k),
                group=q.shape[1] // k.shape[1],
                start=start,
                scale_log2=scale * LOG2_E,
                **tile_constants(q, grid, config),
                CHUNK=config.chunk,
                **shared,
            )
            launch(
                slot_mass_kernel,
                (-(-grid.num_rows * per_row // tile), count),
                None,
                mass_ptr=mass,
                start=start,
                BLOCK=grid.block_size,
                SLOTS=tile,
                COLS=_COLS,
                **shared,
            )
    return mass
