"""Launches of the selection kernels: the decision half of the `Kernels` protocol on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UsageError
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.program import Program, kept
from sp_runtime.kernels.select_blocks import (
    cross_mask_kernel,
    cross_select_kernel,
    gamma_rows_kernel,
)
from sp_runtime.kernels.triton_index import TritonIndexing
from sp_runtime.kernels.triton_map import (
    GammaScalars,
    MapSearching,
    gamma_arguments,
    gamma_scalars,
    require_map,
)
from sp_runtime.kernels.triton_share import TritonSharing, empty_mask, memory_bound
from sp_runtime.operating_point import SlashCover
from sp_runtime.selection import LEAST_SHARE

# Mask columns that a program reads or writes at once.
_COLS = 256


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


class TritonSelection(TritonIndexing, TritonSharing, MapSearching):
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
        at_gamma, number, stride_b, stride_h = gamma_arguments(gamma, (batch, heads), sums)
        shape = (batch * heads, heads, grid.num_rows, grid.num_cols)
        choose = _cross_select(
            self.select, (*shape[:2], length, grid.num_cols, grid.block_size), (low, high),
            (number, stride_b, stride_h, at_gamma is not sums),
        )  # fmt: skip
        choose(
            vertical_ptr=estimate.vertical.contiguous(),
            slash_ptr=estimate.slash.contiguous(),
            blocks_ptr=sums.contiguous(),
            flags_ptr=flags,
            gamma_ptr=at_gamma,
        )
        draw = _cross_mask(*shape, mask.stride(0), slash_cover == "both")
        draw(flags_ptr=flags, mask_ptr=mask)
        return mask

    def gamma_mask(
        self,
        mass: Tensor,
        gamma: float | Tensor,
        *,
        row_slack: float = 1.0,
        local_blocks: int | None = None,
        out: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """See `Kernels.gamma_mask`."""
        batch, heads, rows, cols = mass.shape
        assert (out is None) == (slots is None), "both or neither"
        mask = empty_mask(mass.shape, mass.device) if out is None else out
        assert mask.is_contiguous()
        mass = mass.contiguous()
        at_gamma, number, stride_b, stride_h = gamma_arguments(gamma, (batch, heads), mass)
        level = (number, stride_b, stride_h, at_gamma is not mass)
        value = mass
        if row_slack > 1:
            require_map(rows, cols)
            # The rows are the last of the causal triangle.
            room = rows * (2 * cols - rows + 1) // 2
            value = self.map_threshold(mass, at_gamma, level, (batch, heads), room=room)
        choose = _gamma_rows(
            self.select.row, (batch, heads, rows, cols, mask.shape[1]), level, row_slack,
            local_blocks, slots is not None,
        )  # fmt: skip
        choose(
            mass_ptr=mass,
            mask_ptr=mask,
            slot_ptr=mass if slots is None else slots.contiguous(),
            value_ptr=value,
            gamma_ptr=at_gamma,
        )
        return mask


@kept
def _cross_select(
    select: SelectConfig,
    size: tuple[int, int, int, int, int],
    bounds: tuple[int, int],
    gamma: GammaScalars,
) -> Program:
    """size: programs, heads, keys, columns, block size. bounds: of the blocks chosen."""
    return Program(
        cross_select_kernel,
        (size[0], 2),
        memory_bound(select.warps),
        **gamma_scalars(gamma),
        n_kv=size[2],
        num_cols=size[3],
        num_heads=size[1],
        low=bounds[0],
        high=bounds[1],
        BLOCK=size[4],
        W=select.tokens,
        BINS=select.bins,
        STAGES=select.stages,
    )


@kept
def _cross_mask(
    programs: int, heads: int, rows: int, cols: int, stride_b: int, both: bool
) -> Program:
    return Program(
        cross_mask_kernel,
        (-(-rows // 4), programs),
        stride_b=stride_b,
        num_heads=heads,
        num_rows=rows,
        num_cols=cols,
        BOTH=both,
        ROWS=4,
        W=_COLS,
    )


@kept
def _gamma_rows(
    row: int,
    size: tuple[int, int, int, int, int],
    gamma: GammaScalars,
    row_slack: float,
    local_blocks: int | None,
    slots: bool,
) -> Program:
    """size: batch, heads, rows, columns, masks of the result."""
    batch, heads, rows, cols, masks = size
    return Program(
        gamma_rows_kernel,
        (batch * heads * rows,),
        memory_bound(1),
        **gamma_scalars(gamma),
        row_slack=row_slack,
        least_share=LEAST_SHARE,
        num_rows=rows,
        num_cols=cols,
        num_heads=heads,
        num_masks=masks,
        local_blocks=local_blocks or 0,
        FORCED=local_blocks is not None,
        SLOTS=slots,
        SPREAD=row_slack > 1,
        W=row,
    )
