"""The host side of the Hopper kernel: tensor descriptors and grid, from shapes alone.

Importing this module imports Gluon.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.block_index import BlockIndex
from sp_runtime.kernels import hopper, launch
from sp_runtime.kernels.tuning import HopperConfig


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
    assert grid.q_offset % hopper.BLOCK == 0
    tiles = order.numel()
    launch.launch(
        hopper.hopper_kernel,
        (config.programs(tiles, multiprocessors(q)),),
        None,
        q_desc=_descriptor(q, hopper.HALF),
        k_desc=_descriptor(k, hopper.BLOCK),
        v_desc=_descriptor(v, hopper.BLOCK),
        out_desc=_descriptor(out, hopper.HALF),
        lse_ptr=lse,
        order_ptr=order,
        row_ptr=index.row_ptr,
        col_ptr=index.col_idx,
        dense_ptr=index.dense.contiguous().view(torch.uint8),
        num_tiles=tiles,
        num_rows=grid.num_rows,
        first_row=grid.first_row,
        q_len=grid.q_len,
        num_heads=q.shape[1],
        group=q.shape[1] // k.shape[1],
        scale_log2=scale_log2,
        D=q.shape[3],
        BLOCK=hopper.BLOCK,
        STAGES=config.stages,
        PIN=config.pin,
    )


def multiprocessors(tensor: Tensor) -> int:
    """Of the tensor's device; torch holds its properties, so that this does not synchronise."""
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def _descriptor(tensor: Tensor, rows: int) -> hopper.TensorDescriptor:
    return hopper.tile_descriptor(tensor, launch.outer_strides(tensor), rows)
