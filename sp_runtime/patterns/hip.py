"""HiP: the top-k key blocks of every query block, found by refining a tree.

Source: HiP attention (arXiv 2406.09827). Parameters: top_k, the paper's k = 512 tokens.

Where this differs: the block mask only, to our own definition. The tree is a binary one over the
key blocks of the whole sequence, a node's representative is its middle key, and a node is worth the
product of that key with the mean query of the block row (the paper searches for blocks of 2 keys
and 32 queries and takes the best query). From the nodes that top_k allows, each round splits those
that are kept into halves and keeps the best of them again, down to single blocks. Nodes that hold
block 0 or the diagonal are always kept and count first. Every node's product is computed and
counted, not only those that the search meets: on a GPU one product of matrices is cheaper than
gathering. Positions beyond the trained length are refused. A wider search is another search: its
blocks need not include those of a narrower one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import representative_cost
from sp_runtime.patterns.decision import uniform_decision
from sp_runtime.patterns.masks import forced_blocks
from sp_runtime.patterns.top_k import top_blocks_of_rows
from sp_runtime.patterns.vertical_slash import budget_blocks
from sp_runtime.pooling import block_means


def tree_widths(num_blocks: int, count: int) -> tuple[int, ...]:
    """Blocks a node, level by level from the first that is refined down to 1; a row that has no
    more than `count` blocks needs none."""
    width = 1
    while -(-num_blocks // width) > count:
        width *= 2
    return tuple(width >> level for level in range(1, width.bit_length()))


def hip_mask(q: Tensor, k: Tensor, grid: BlockGrid, *, top_k: int) -> Tensor:
    """bool [B, H, R, C]: top_k tokens' worth of key blocks (at least 1) of every block row.

    q [B, H, Nq, D]; k [B, Hkv, Nk, D].
    """
    count, device = budget_blocks(top_k, grid.block_size), q.device
    queries = block_means(q, grid.q_offset, grid.block_size).unflatten(1, (k.shape[1], -1))
    diagonal = torch.arange(grid.first_row, grid.num_cols, device=device)[:, None]
    kept = torch.ones(*q.shape[:2], grid.num_rows, 1, dtype=torch.bool, device=device)
    for width in tree_widths(grid.num_cols, count):
        nodes = torch.arange(-(-grid.num_cols // width), device=device)
        middle = (nodes * width * grid.block_size + width * grid.block_size // 2).clamp(
            max=grid.kv_len - 1
        )
        keys = k.index_select(2, middle).float()  # [B, Hkv, nodes, D]
        worth = (queries @ keys[:, :, None].mT).flatten(1, 2)
        own, past = nodes == diagonal // width, nodes * width <= diagonal
        if kept.shape[-1] == 1:  # the level above: every node is within the count
            kept = past.expand_as(worth)
        else:
            kept = kept.repeat_interleave(2, -1)[..., : len(nodes)] & past
        # A node of the past holds no future key, so only kept ones are compared.
        worth = worth.masked_fill(own | (nodes == 0), torch.inf).masked_fill_(~kept, -torch.inf)
        kept = kept & top_blocks_of_rows(worth, count)
    if kept.shape[-1] == 1:
        kept = grid.causal_mask(device).expand(*q.shape[:2], -1, -1)
    return kept | forced_blocks(grid, device)


def _entries(grid: BlockGrid, top_k: int) -> int:
    """How many products of a row's query and a node's key are computed for one head."""
    count = budget_blocks(top_k, grid.block_size)
    return grid.num_rows * sum(-(-grid.num_cols // w) for w in tree_widths(grid.num_cols, count))


@dataclass(frozen=True, kw_only=True)
class HipPattern:
    """Every head keeps `point.top_k` tokens' worth of key blocks a row."""

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        mask = hip_mask(inputs.q, inputs.k, inputs.grid, top_k=self.point.top_k)
        cost = representative_cost(inputs.grid, _entries(inputs.grid, self.point.top_k))
        return uniform_decision(inputs, mask, branch=Branch.HIP, cost=cost)

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
