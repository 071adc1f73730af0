"""Launches of the sampled block mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.launch import LOG2_E, Layout, key_sources, strides, tile_constants
from sp_runtime.kernels.program import Program, kept
from sp_runtime.kernels.sampled_mass import slot_lse_kernel, slot_mass_kernel
from sp_runtime.kernels.tuning import KernelConfig

# What the log-sum-exps of the slots take at a time; longer prompts go in pieces of heads.
_MAX_BYTES = 1 << 28
_SLOTS, _COLS = 64, 32


def sampled_block_mass(
    q: Tensor, k: Tensor, heads: Tensor, grid: BlockGrid, programs: SampledPrograms
) -> Tensor:
    """`Kernels.sampled_mass` on checked inputs; heads int64 [B, S] contiguous. Launches two kernels
    for each piece."""
    mass = torch.empty(
        (*heads.shape, grid.num_rows, grid.num_cols), dtype=torch.float32, device=q.device
    )
    part = torch.empty(programs.part, dtype=torch.float32, device=q.device)
    for lse, average in programs.pieces:
        lse(q_ptr=q, k_src=k, heads_ptr=heads, part_ptr=part)
        average(part_ptr=part, heads_ptr=heads, mass_ptr=mass)
    return mass


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledPrograms:
    """The launches of each piece: log-sum-exps float32 [heads of a piece, C, width], then mass."""

    pieces: tuple[tuple[Program, Program], ...]
    part: tuple[int, int, int]


@kept
def sampled_programs(
    q: Layout,
    k: Layout,
    batch: int,
    slots: int,
    grid: BlockGrid,
    stride: int,
    scale: float,
    config: KernelConfig,
) -> SampledPrograms:
    """stride: in [1, block size]."""
    # Slots of one block row: a power of two, so that tiles hold whole rows or parts of one.
    per_row = int(triton.next_power_of_2(-(-grid.block_size // stride)))
    width = -(-grid.num_rows * per_row // config.block_m) * config.block_m
    tile = max(_SLOTS, per_row)
    number = batch * slots
    piece = max(1, min(number, _MAX_BYTES // (4 * grid.num_cols * width)))
    shared: dict[str, Any] = {
        "n_q": grid.q_len,
        "n_kv": grid.kv_len,
        "num_rows": grid.num_rows,
        "num_cols": grid.num_cols,
        "num_slots": slots,
        "stride": stride,
        "width": width,
        "PER_ROW": per_row,
    }

    def programs(start: int) -> tuple[Program, Program]:
        count = min(piece, number - start)
        lse = Program(
            slot_lse_kernel,
            (width // config.block_m, -(-grid.num_cols // config.chunk), count),
            config,
            described=key_sources(config, k_src=k),
            **strides("q", q),
            **strides("k", k),
            group=q.shape[1] // k.shape[1],
            start=start,
            scale_log2=scale * LOG2_E,
            **tile_constants(q, grid, config),
            CHUNK=config.chunk,
            **shared,
        )
        average = Program(
            slot_mass_kernel,
            (-(-grid.num_rows * per_row // tile), count),
            start=start,
            BLOCK=grid.block_size,
            SLOTS=tile,
            COLS=_COLS,
            **shared,
        )
        return lse, average

    return SampledPrograms(
        pieces=tuple(programs(start) for start in range(0, number, piece)),
        part=(piece, grid.num_cols, width),
    )
