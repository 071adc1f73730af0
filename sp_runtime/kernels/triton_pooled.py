"""Launches of the query-aware choice: a part of the `Kernels` protocol on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import BlockMeans
from sp_runtime.kernels.launch import LOG2_E, Layout, check_inputs, layout, strides
from sp_runtime.kernels.pooled import (
    pool_kernel,
    pooled_map_kernel,
    pooled_row_kernel,
    query_aware_kernel,
)
from sp_runtime.kernels.program import Program, kept
from sp_runtime.kernels.triton_map import (
    GammaScalars,
    MapSearching,
    gamma_arguments,
    gamma_scalars,
    require_map,
)
from sp_runtime.kernels.triton_share import empty_mask, memory_bound
from sp_runtime.kernels.tuning import padded_head_dim

# Entries of a tile of queries or keys that a program adds up at once.
_TILE = 4096
# Rows, columns and head dimensions of the map that a program takes at once; columns of a mask.
_ROWS, _COLS, _STEP, _MASK_COLS = 16, 32, 64, 256
_TILED = memory_bound(4)

# Of means: batch, slots, heads, KV heads, head_dim, and whether heads were selected.
Sizes = tuple[int, int, int, int, int, bool]


class TritonPooled(MapSearching):
    """What block means choose, on CUDA tensors."""

    def pool(
        self, q: Tensor, k: Tensor, grid: BlockGrid, *, heads: Tensor | None = None
    ) -> BlockMeans:
        """See `Kernels.pool`."""
        batch, num_heads, _, dim = q.shape
        heads = None if heads is None else heads.contiguous()
        slots = num_heads if heads is None else heads.shape[0]
        average = _pool(layout(q), layout(k), grid, slots, heads is not None)
        options: dict[str, Any] = {"dtype": torch.float32, "device": q.device}
        queries = torch.empty(batch, slots, grid.num_rows + 1, dim, **options)
        keys = torch.empty(batch, k.shape[1], grid.num_cols, dim, **options)
        average(
            q_ptr=q,
            k_ptr=k,
            heads_ptr=q if heads is None else heads,
            queries_ptr=queries,
            keys_ptr=keys,
        )
        return BlockMeans(queries=queries, keys=keys, heads=heads, num_heads=num_heads)

    def pooled_row(self, means: BlockMeans, grid: BlockGrid, *, scale: float) -> Tensor:
        """See `Kernels.pooled_row`."""
        batch, slots = means.queries.shape[:2]
        row = torch.empty(
            batch, slots, grid.num_cols, dtype=torch.float32, device=means.queries.device
        )
        choose = _pooled_row(_sizes(means), grid, scale)
        choose(**_means(means), out_ptr=row)
        return row

    def query_aware(
        self,
        means: BlockMeans,
        grid: BlockGrid,
        *,
        gamma: float | Tensor,
        scale: float,
        onto: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """See `Kernels.query_aware`."""
        batch, num_slots = means.queries.shape[:2]
        rows, cols, count = grid.num_rows, grid.num_cols, grid.num_causal_blocks
        require_map(rows, cols)
        device = means.queries.device
        share = torch.empty(batch * num_slots, count, dtype=torch.float32, device=device)
        mask = empty_mask((batch, num_slots, rows, cols), device) if onto is None else onto
        assert mask.is_contiguous()
        at_gamma, number, stride_b, stride_h = gamma_arguments(gamma, (batch, num_slots), share)
        level = (number, stride_b, stride_h, at_gamma is not share)
        make, draw = _query_aware(
            _sizes(means), grid, scale, level, mask.shape[1], slots is not None, onto is not None
        )
        make(**_means(means), map_ptr=share, gamma_ptr=at_gamma)
        value = self.map_threshold(share, at_gamma, level, (batch, num_slots), room=count)
        draw(
            map_ptr=share,
            value_ptr=value,
            mask_ptr=mask,
            slot_ptr=value if slots is None else slots.contiguous(),
            gamma_ptr=at_gamma,
        )
        return mask


@kept
def _pool(q: Layout, k: Layout, grid: BlockGrid, slots: int, selected: bool) -> Program:
    check_inputs(q, k, grid, 1.0)
    batch, kv_heads, _, dim = k.shape
    padded = padded_head_dim(dim)
    return Program(
        pool_kernel,
        (grid.num_cols + 1, slots + kv_heads, batch),
        **strides("q", q),
        **strides("k", k),
        n_q=grid.q_len,
        n_kv=grid.kv_len,
        num_rows=grid.num_rows,
        num_cols=grid.num_cols,
        num_slots=slots,
        num_kv_heads=kv_heads,
        HEAD_DIM=dim,
        DIM=padded,
        BLOCK=grid.block_size,
        SELECTED=selected,
        W=min(grid.block_size, _TILE // padded),
    )


@kept
def _pooled_row(sizes: Sizes, grid: BlockGrid, scale: float) -> Program:
    batch, slots = sizes[:2]
    return Program(pooled_row_kernel, (batch * slots,), COLS=_ROWS, **_shared(sizes, grid, scale))


@kept
def _query_aware(
    sizes: Sizes,
    grid: BlockGrid,
    scale: float,
    gamma: GammaScalars,
    masks: int,
    slots: bool,
    unite: bool,
) -> tuple[Program, Program]:
    """The map of every slot, and its mask among `masks` masks."""
    rows, number, count = grid.num_rows, sizes[0] * sizes[1], grid.num_causal_blocks
    level = gamma_scalars(gamma)
    make = Program(
        pooled_map_kernel,
        (-(-rows // _ROWS), number),
        _TILED,
        **level,
        count=count,
        ROWS=_ROWS,
        COLS=_COLS,
        STEP=_STEP,
        **_shared(sizes, grid, scale),
    )
    draw = Program(
        query_aware_kernel,
        (rows, number),
        **level,
        num_rows=rows,
        num_cols=grid.num_cols,
        num_slots=sizes[1],
        num_masks=masks,
        count=count,
        SLOTS=slots,
        UNITE=unite,
        W=_MASK_COLS,
    )
    return make, draw


def _sizes(means: BlockMeans) -> Sizes:
    batch, slots, _, dim = means.queries.shape
    return batch, slots, means.num_heads, means.keys.shape[1], dim, means.heads is not None


def _means(means: BlockMeans) -> dict[str, Tensor]:
    """The tensors of the kernels that read means."""
    return {
        "queries_ptr": means.queries,
        "keys_ptr": means.keys,
        "heads_ptr": means.queries if means.heads is None else means.heads,
    }


def _shared(sizes: Sizes, grid: BlockGrid, scale: float) -> dict[str, Any]:
    """What they have in common besides."""
    _, slots, heads, kv_heads, dim, selected = sizes
    return {
        "num_rows": grid.num_rows,
        "num_cols": grid.num_cols,
        "num_slots": slots,
        "num_kv_heads": kv_heads,
        "group": heads // kv_heads,
        "scale_log2": scale * LOG2_E,
        "HEAD_DIM": dim,
        "DIM": padded_head_dim(dim),
        "SELECTED": selected,
    }
