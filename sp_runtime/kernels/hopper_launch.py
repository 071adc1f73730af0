"""The host side of the Hopper kernels: tensor descriptors and grids, from shapes alone.

Importing this module imports Gluon.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.kernels import hopper, hopper_mass, launch
from sp_runtime.kernels.tuning import HopperConfig, HopperMassConfig


def hopper_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    index: BlockIndex,
    order: Tensor,
    config: HopperConfig,
    *,
    scale_log2: float,
) -> None:
    """Write out [B, Hq, Nq, D] and lse [B, Hq, Nq] of a call that `uses_hopper_kernel` takes.

    order: int32 [B*Hq*R], the order in which the flat (batch, head, row) tiles start.
    """
    grid = index.grid
    assert grid.block_size == hopper.BLOCK
    tiles = order.numel()
    taken = order
    if config.dynamic:
        taken = torch.zeros(1 + tiles, dtype=torch.int32, device=q.device)
    launch.launch(
        hopper.hopper_kernel,
        (config.programs(tiles, multiprocessors(q)),),
        None,
        q_desc=_descriptor(q, hopper.HALF),
        k_desc=_descriptor(k, hopper.BLOCK),
        v_desc=_descriptor(v, hopper.BLOCK),
        out_desc=_descriptor(out, hopper.HALF),
        first_desc=_descriptor(out, hopper.HALF, _first_row_queries(grid)),
        lse_ptr=lse,
        order_ptr=order,
        row_ptr=index.row_ptr,
        col_ptr=index.col_idx,
        dense_ptr=index.dense.contiguous().view(torch.uint8),
        taken_ptr=taken,
        num_tiles=tiles,
        num_rows=grid.num_rows,
        first_row=grid.first_row,
        q_offset=grid.q_offset,
        q_len=grid.q_len,
        num_heads=q.shape[1],
        group=q.shape[1] // k.shape[1],
        scale_log2=scale_log2,
        D=q.shape[3],
        BLOCK=hopper.BLOCK,
        STAGES=config.stages,
        Q_SLOTS=config.q_slots,
        PIN=config.pin,
        TURNS=config.turns,
        FMA=config.fma,
        DYNAMIC=config.dynamic,
    )


def hopper_block_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    heads: Tensor,
    mass: Tensor,
    grid: BlockGrid,
    config: HopperMassConfig,
    *,
    scale_log2: float,
) -> None:
    """Write mass float32 [B, S, R, C], zero on entry, for heads int64 [B, S].

    lse: float32 [B, Hq, Nq] contiguous, the dense natural row log-sum-exp.
    """
    assert grid.block_size == hopper.BLOCK
    steps = mass_steps(grid)
    length = config.length(steps, multiprocessors(q))
    launch.launch(
        hopper_mass.hopper_mass_kernel,
        (-(-steps // length), heads.numel()),
        None,
        q_desc=_descriptor(q, hopper.HALF),
        k_desc=_descriptor(k, hopper.BLOCK),
        heads_ptr=heads,
        lse_ptr=lse,
        mass_ptr=mass,
        num_slots=heads.shape[1],
        num_rows=grid.num_rows,
        first_row=grid.first_row,
        q_offset=grid.q_offset,
        q_len=grid.q_len,
        num_heads=q.shape[1],
        group=q.shape[1] // k.shape[1],
        scale_log2=scale_log2,
        length=length,
        D=q.shape[3],
        BLOCK=hopper.BLOCK,
        STAGES=config.stages,
        Q_SLOTS=config.q_slots,
    )


def mass_steps(grid: BlockGrid) -> int:
    """Key blocks of all pairs of block rows of one head; a pair needs those of its later row."""
    pairs = -(-grid.num_rows // 2)
    return pairs * pairs + pairs * (grid.first_row + 1) - grid.num_rows % 2


def multiprocessors(tensor: Tensor) -> int:
    """Of the tensor's device; torch holds its properties, so that this does not synchronise."""
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def _first_row_queries(grid: BlockGrid) -> int:
    """Queries of the first block row, which is partial after an unaligned query offset."""
    return min((grid.first_row + 1) * grid.block_size, grid.kv_len) - grid.q_offset


def _descriptor(tensor: Tensor, rows: int, length: int | None = None) -> hopper.TensorDescriptor:
    return hopper.tile_descriptor(tensor, launch.outer_strides(tensor), rows, length)
