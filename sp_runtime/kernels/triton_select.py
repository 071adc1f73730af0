"""Launches of the selection kernels: the decision half of the `Kernels` protocol on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import ResourceError, UsageError
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.build_index import (
    count_kernel,
    fill_kernel,
    row_order_kernel,
    row_ptr_kernel,
)
from sp_runtime.kernels.launch import launch, on_device
from sp_runtime.kernels.schedule import LONG_ROW
from sp_runtime.kernels.select_blocks import (
    cross_mask_kernel,
    cross_select_kernel,
    flat_crossing_kernel,
    flat_mask_kernel,
    gamma_rows_kernel,
)
from sp_runtime.kernels.triton_share import TritonSharing, empty_mask, memory_bound
from sp_runtime.operating_point import SlashCover

# Mask columns that a program reads or writes at once.
_COLS = 256
# Row counts that a program sums at once.
_COUNTS = 4096
# Rows whose place a program finds, and rows that it compares them with at once.
_RANKED, _OTHERS = 64, 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """tokens, bins: entries that a program holds of a head's estimate and of its block sums;
    warps: of that program; stages: its loads in flight; row: blocks of a gamma-mask row that its
    one warp holds.
    """

    tokens: int = 4096
    bins: int = 1024
    warps: int = 16
    stages: int = 3
    row: int = 256


class TritonSelection(TritonSharing):
    """What `Kernels` decides, on CUDA tensors (or any under Triton's interpreter).

    select: tile shapes of the kernels that search for a threshold.
    """

    select = SelectConfig()

    def vertical_slash(
        self,
        estimate: LastBlockEstimate,
        grid: BlockGrid,
        *,
        gamma: float | Tensor,
        min_budget: int,
        max_budget: int | None,
        slash_cover: SlashCover,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `Kernels.vertical_slash`."""
        batch, heads, length = estimate.vertical.shape
        if length != grid.kv_len:
            raise UsageError(f"an estimate of {length} keys, a grid of {grid.kv_len}")
        device = estimate.vertical.device
        sums = estimate.block_sums(grid)
        flags = torch.empty(sums.shape, dtype=torch.uint8, device=device)
        mask = out
        if mask is None:
            mask = empty_mask((batch, heads, grid.num_rows, grid.num_cols), device)
        assert mask[0].is_contiguous()
        low = max(1, -(-min_budget // grid.block_size))
        high = grid.num_cols
        if max_budget is not None:
            high = max(1, -(-max_budget // grid.block_size))
        with on_device(mask):
            launch(
                cross_select_kernel,
                (batch * heads, 2),
                memory_bound(self.select.warps),
                vertical_ptr=estimate.vertical.contiguous(),
                slash_ptr=estimate.slash.contiguous(),
                blocks_ptr=sums.contiguous(),
                flags_ptr=flags,
                **_gamma(gamma, (batch, heads), sums),
                n_kv=length,
                num_cols=grid.num_cols,
                num_heads=heads,
                low=low,
                high=high,
                BLOCK=grid.block_size,
                W=self.select.tokens,
                BINS=self.select.bins,
                STAGES=self.select.stages,
            )
            launch(
                cross_mask_kernel,
                (-(-grid.num_rows // 4), batch * heads),
                None,
                flags_ptr=flags,
                mask_ptr=mask.view(torch.uint8),
                stride_b=mask.stride(0),
                num_heads=heads,
                num_rows=grid.num_rows,
                num_cols=grid.num_cols,
                BOTH=slash_cover == "both",
                ROWS=4,
                W=_COLS,
            )
        return mask

    def gamma_mask(
        self,
        mass: Tensor,
        gamma: float | Tensor,
        *,
        local_blocks: int | None = None,
        out: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """See `Kernels.gamma_mask`."""
        batch, heads, rows, cols = mass.shape
        mask = empty_mask(mass.shape, mass.device) if out is None else out
        assert mask.is_contiguous()
        with on_device(mass):
            launch(
                gamma_rows_kernel,
                (batch * heads * rows,),
                memory_bound(1),
                mass_ptr=mass.contiguous(),
                mask_ptr=mask.view(torch.uint8),
                slot_ptr=mass if slots is None else slots,
                **_gamma(gamma, (batch, heads), mass),
                num_rows=rows,
                num_cols=cols,
                num_heads=heads,
                num_masks=mask.shape[1],
                local_blocks=local_blocks or 0,
                FORCED=local_blocks is not None,
                SLOTS=slots is not None,
                W=self.select.row,
            )
        return mask

    def flat_gamma_mask(self, mass: Tensor, gamma: float | Tensor) -> Tensor:
        """See `Kernels.flat_gamma_mask`."""
        batch, slots, rows, cols = mass.shape
        if rows * cols >= 2**31:
            raise ResourceError(
                f"a map of {rows} x {cols} blocks passes 2^31", hint="use larger blocks"
            )
        mass = mass.contiguous()
        mask = empty_mask(mass.shape, mass.device)
        value = torch.empty(batch * slots, 2, dtype=torch.int32, device=mass.device)
        with on_device(mass):
            launch(
                flat_crossing_kernel,
                (batch * slots,),
                memory_bound(self.select.warps),
                mass_ptr=mass,
                value_ptr=value,
                **_gamma(gamma, (batch, slots), mass),
                count=rows * cols,
                num_heads=slots,
                W=self.select.tokens // 2,  # as many registers as there are, with the ties
                STAGES=self.select.stages,
            )
            launch(
                flat_mask_kernel,
                (rows, batch * slots),
                None,
                mass_ptr=mass,
                value_ptr=value,
                mask_ptr=mask.view(torch.uint8),
                num_rows=rows,
                num_cols=cols,
                W=_COLS,
            )
        return mask

    def build_index(
        self,
        mask: Tensor,
        grid: BlockGrid,
        dense: Tensor | None,
        *,
        slots: Tensor | None = None,
        last_rows: int = 0,
    ) -> BlockIndex:
        """See `Kernels.build_index`; the list capacity is that of all causal blocks."""
        if mask.dim() != 4 or mask.shape[2:] != (grid.num_rows, grid.num_cols):
            raise UsageError(
                f"block mask has shape {tuple(mask.shape)}, expected "
                f"[B, H, {grid.num_rows}, {grid.num_cols}] for this grid"
            )
        batch, heads, rows = mask.shape[:3]
        if slots is not None:
            heads = slots.shape[1]
        capacity = batch * heads * grid.num_causal_blocks
        if capacity >= 2**31:
            raise ResourceError(
                f"a block index of {capacity} blocks passes 2^31",
                hint="use block size 128, fewer heads at once or chunked prefill",
            )
        flags = _dense_flags(dense, mask, (batch, heads, rows))
        options: dict[str, Any] = {"dtype": torch.int32, "device": mask.device}
        counts = torch.empty(batch * heads * rows, **options)
        row_ptr = torch.empty(batch * heads * rows + 1, **options)
        col_idx = torch.empty(capacity, **options)
        counted = torch.empty(batch, heads, dtype=torch.int64, device=mask.device)
        out = empty_mask((batch, heads, rows), mask.device)
        shared: dict[str, Any] = {
            "mask_ptr": mask.view(torch.uint8),
            "slot_ptr": mask.view(torch.uint8) if slots is None else slots,
            "slot_b": 0 if slots is None else slots.stride(0),
            "SLOTS": slots is not None,
            **dict(
                zip(("stride_b", "stride_h", "stride_r", "stride_c"), mask.stride(), strict=True)
            ),
            "num_heads": heads,
            "num_rows": rows,
            "first_row": grid.first_row,
            "COLS": _COLS,
        }
        with on_device(mask):
            launch(
                count_kernel,
                (batch * heads * rows,),
                memory_bound(1),
                dense_ptr=flags.view(torch.uint8),
                count_ptr=counts,
                out_ptr=out.view(torch.uint8),
                **dict(zip(("dense_b", "dense_h", "dense_r"), flags.stride(), strict=True)),
                last_rows=last_rows,
                FLAGGED=dense is not None,
                **shared,
            )
            launch(
                row_ptr_kernel,
                (batch * heads,),
                memory_bound(8),
                count_ptr=counts,
                dense_ptr=out.view(torch.uint8),
                row_ptr=row_ptr,
                blocks_ptr=counted,
                num_rows=rows,
                first_row=grid.first_row,
                W=_COUNTS,
            )
            launch(
                fill_kernel,
                (batch * heads * rows,),
                memory_bound(1),
                dense_ptr=out.view(torch.uint8),
                row_ptr=row_ptr,
                col_ptr=col_idx,
                **shared,
            )
        return BlockIndex(grid=grid, row_ptr=row_ptr, col_idx=col_idx, dense=out, counted=counted)


def device_row_order(index: BlockIndex, group: int) -> Tensor:
    """`schedule.row_order` in one launch."""
    batch, heads, rows = index.dense.shape
    order = torch.empty(batch * heads * rows, dtype=torch.int32, device=index.dense.device)
    with on_device(order):
        launch(
            row_order_kernel,
            (-(-group * rows // _RANKED), batch * heads // group),
            None,
            row_ptr=index.row_ptr,
            dense_ptr=index.dense.contiguous().view(torch.uint8),
            blocks_ptr=index.blocks(),
            order_ptr=order,
            num_rows=rows,
            first_row=index.grid.first_row,
            group=group,
            heads=batch * heads,
            LONG=LONG_ROW,
            W=_RANKED,
            OTHERS=_OTHERS,
            COUNTS=1024,
        )
    return order


def _gamma(gamma: float | Tensor, shape: tuple[int, int], unused: Tensor) -> dict[str, Any]:
    """The arguments of `select_blocks.load_gamma`; a number needs no tensor and so no launch."""
    tensor = isinstance(gamma, Tensor)
    spread = gamma.expand(shape) if isinstance(gamma, Tensor) else unused
    return {
        "gamma_ptr": spread,
        "gamma": 1.0 if isinstance(gamma, Tensor) else float(gamma),
        "gamma_b": spread.stride(0) if tensor else 0,
        "gamma_h": spread.stride(1) if tensor else 0,
        "TENSOR": tensor,
    }


def _dense_flags(dense: Tensor | None, mask: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Dense flags as [B, H, R] without a copy; the mask's own memory where there are none."""
    if dense is None:
        return mask[..., 0]
    if dense.shape == shape[:2]:
        return dense[..., None].expand(shape)
    if dense.shape != shape:
        raise UsageError(f"dense flags have shape {tuple(dense.shape)}, expected {shape}")
    return dense
