"""What estimates cost, in the unit of density: blocks of one head.

A computed block does two matrix products, q k^T and p v. An estimate only ever does the first, so
one pass over one block counts half a block.
"""

from __future__ import annotations

from sp_runtime.block_index import BlockGrid

QK_PASS = 0.5


def last_block_cost(grid: BlockGrid) -> float:
    """The last-block estimate of one head: one pass over one row of key blocks."""
    return QK_PASS * grid.num_cols


def sampled_cost(grid: BlockGrid, stride: int) -> float:
    """Sampled block mass of one head: one pass of 1 / stride of its queries."""
    return QK_PASS * grid.num_causal_blocks / stride


def exact_mass_cost(grid: BlockGrid) -> float:
    """Exact block mass of one dense head, whose log-sum-exp is known: one pass over all blocks."""
    return QK_PASS * grid.num_causal_blocks


def pooled_cost(grid: BlockGrid) -> float:
    """The map of pooled queries and keys of one head: one entry for each causal block."""
    return grid.num_causal_blocks / grid.block_size


def antidiagonal_cost(grid: BlockGrid, stride: int) -> float:
    """Antidiagonals of stride x stride cells of one head: one product in `stride` of a pass."""
    return QK_PASS * grid.num_causal_blocks / stride


def representative_cost(grid: BlockGrid, entries: int) -> float:
    """`entries` products of a mean query and one key, counted as those of `pooled_cost` are."""
    return entries / grid.block_size
