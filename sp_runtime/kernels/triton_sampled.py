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
from sp_runtime.kernels.strides import stride_runs
from sp_runtime.kernels.tuning import KernelConfig

# What the log-sum-exps of the slots take at a time, or those of one head where that is more: longer
# prompts go in pieces of heads.
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
    """The launches of each piece: log-sum-exps float32 [heads of a piece, C, width], then mass.

    part: entries that the largest of the log-sum-exps have.
    """

    pieces: tuple[tuple[Program, Program], ...]
    part: int


@kept
def sampled_programs(
    q: Layout,
    k: Layout,
    batch: int,
    slots: int,
    stride: int | tuple[int, ...],
    grid: BlockGrid,
    scale: float,
    config: KernelConfig,
) -> SampledPrograms:
    """stride: of all slots, or of each; a run of equal ones is one launch of each kernel."""
    runs = stride_runs(stride, slots)
    if len(runs) == 1:  # the slots of all sequences lie side by side
        every = [(runs[0][0], 0, batch * slots)]
    else:
        every = [
            (each, b * slots + start, b * slots + stop)
            for b in range(batch)
            for each, start, stop in runs
        ]
    parts = [
        # Of one sequence every slot from the first on is its own: layers share their programs.
        _run_programs(q, k, slots if batch > 1 else run[2], grid, scale, config, *run)
        for run in every
    ]
    return SampledPrograms(
        pieces=tuple(piece for part in parts for piece in part.pieces),
        part=max((part.part for part in parts), default=0),
    )


@kept
def _run_programs(
    q: Layout,
    k: Layout,
    slots: int,
    grid: BlockGrid,
    scale: float,
    config: KernelConfig,
    stride: int,
    begin: int,
    end: int,
) -> SampledPrograms:
    """Slots [begin, end) of all B*S, which have one stride."""
    stride = min(stride, grid.block_size)  # from there on, the last query of each row alone
    # Slots of one block row: a power of two, so that tiles hold whole rows or parts of one.
    per_row = int(triton.next_power_of_2(-(-grid.block_size // stride)))
    width = -(-grid.num_rows * per_row // config.block_m) * config.block_m
    tile = max(_SLOTS, per_row)
    piece = max(1, min(end - begin, _MAX_BYTES // (4 * grid.num_cols * width)))
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
        count = min(piece, end - start)
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
        pieces=tuple(programs(start) for start in range(begin, end, piece)),
        part=piece * grid.num_cols * width,
    )
