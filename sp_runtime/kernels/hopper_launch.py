"""The host side of the Hopper kernels: tensor descriptors and grids, from shapes alone.

Importing this module imports Gluon.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.kernels import hopper, hopper_mass
from sp_runtime.kernels.launch import Layout, layout, outer_strides
from sp_runtime.kernels.program import Program, kept
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
    taken: Tensor | None = None,
) -> None:
    """Write out [B, Hq, Nq, D] and lse [B, Hq, Nq] of a call that `uses_hopper_kernel` takes.

    order: int32 [B*Hq*R], the order in which the flat (batch, head, row) tiles start. taken: int32
    [1 + B*Hq*R] of zeros, which the kernel writes to, or None to have it made.
    """
    if taken is None:
        taken = torch.zeros(1 + order.numel(), dtype=torch.int32, device=q.device)
    program = _attention_program(
        layout(q), layout(k), layout(v), layout(out), index.grid, scale_log2, config
    )
    program(
        q_desc=q,
        k_desc=k,
        v_desc=v,
        out_desc=out,
        first_desc=out,
        lse_ptr=lse,
        order_ptr=order,
        row_ptr=index.row_ptr,
        col_ptr=index.col_idx,
        dense_ptr=index.dense.contiguous(),
        taken_ptr=taken,
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
    program = _mass_program(layout(q), layout(k), *heads.shape, grid, scale_log2, config)
    program(q_desc=q, k_desc=k, heads_ptr=heads, lse_ptr=lse, mass_ptr=mass)


@kept
def _attention_program(
    q: Layout,
    k: Layout,
    v: Layout,
    out: Layout,
    grid: BlockGrid,
    scale_log2: float,
    config: HopperConfig,
) -> Program:
    assert grid.block_size == hopper.BLOCK
    batch, heads, _, dim = q.shape
    tiles = batch * heads * grid.num_rows
    return Program(
        hopper.hopper_kernel,
        (config.programs(tiles, multiprocessors(q.device)),),
        described={
            "q_desc": _describe(q, hopper.HALF),
            "k_desc": _describe(k, hopper.BLOCK),
            "v_desc": _describe(v, hopper.BLOCK),
            "out_desc": _describe(out, hopper.HALF),
            "first_desc": _describe(out, hopper.HALF, _first_row_queries(grid)),
        },
        num_tiles=tiles,
        num_rows=grid.num_rows,
        first_row=grid.first_row,
        q_offset=grid.q_offset,
        q_len=grid.q_len,
        num_heads=heads,
        group=heads // k.shape[1],
        scale_log2=scale_log2,
        D=dim,
        BLOCK=hopper.BLOCK,
        STAGES=config.stages,
        Q_SLOTS=config.q_slots,
        DYNAMIC=config.dynamic,
    )


@kept
def _mass_program(
    q: Layout,
    k: Layout,
    batch: int,
    slots: int,
    grid: BlockGrid,
    scale_log2: float,
    config: HopperMassConfig,
) -> Program:
    assert grid.block_size == hopper.BLOCK
    steps = mass_steps(grid)
    length = config.length(steps, multiprocessors(q.device))
    return Program(
        hopper_mass.hopper_mass_kernel,
        (-(-steps // length), batch * slots),
        described={"q_desc": _describe(q, hopper.HALF), "k_desc": _describe(k, hopper.BLOCK)},
        num_slots=slots,
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


def multiprocessors(device: torch.device) -> int:
    """Torch holds the properties of a device, so that this does not synchronise."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _first_row_queries(grid: BlockGrid) -> int:
    """Queries of the first block row, which is partial after an unaligned query offset."""
    return min((grid.first_row + 1) * grid.block_size, grid.kv_len) - grid.q_offset


def _describe(
    of: Layout, rows: int, length: int | None = None
) -> Callable[[Tensor], hopper.TensorDescriptor]:
    strides = outer_strides(of)
    return lambda tensor: hopper.tile_descriptor(tensor, strides, rows, length)
