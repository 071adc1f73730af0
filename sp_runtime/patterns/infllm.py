"""InfLLM: first tokens, a local window, and past blocks found by their representative keys.

Source: InfLLM (arXiv 2402.04617). Parameters, with the values of the authors' configuration for
Mistral: sink (n_init) 128, window (n_local) 4,096, top_k 16 units of 128 tokens (2,048 tokens
here), 4 representative tokens a unit.

Where this differs: the block mask only, to our own definition. Units are the key blocks. The
authors represent a unit by the keys that the queries after it attend to most; a prefill in chunks
has no earlier queries, so here they are the keys farthest from the mean key of their block. A past
block is worth the largest product of the mean query of a block row with its representatives. Memory
offloading and positions have no counterpart: sequences beyond the trained length are refused.
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
from sp_runtime.patterns.streaming import streaming_mask
from sp_runtime.patterns.top_k import top_blocks_of_rows
from sp_runtime.patterns.vertical_slash import budget_blocks
from sp_runtime.pooling import block_means

REPRESENTATIVES = 4  # keys a block


def representative_keys(k: Tensor, grid: BlockGrid) -> Tensor:
    """float32 [B, Hkv, whole blocks, 4, D]: the keys of each block farthest from its mean key.

    Only whole blocks have any: a ragged last one is its own diagonal, which is always on.
    """
    # Head by head, so that the float32 copies of the keys stay small.
    return torch.cat([_representatives(head, grid) for head in k.split(1, dim=1)], dim=1)


def _representatives(k: Tensor, grid: BlockGrid) -> Tensor:
    size = grid.block_size
    blocks = k[:, :, : grid.kv_len // size * size].unflatten(2, (-1, size)).float()
    distance = (blocks - blocks.mean(3, keepdim=True)).square().sum(-1)
    order = distance.sort(dim=-1, descending=True, stable=True).indices[..., :REPRESENTATIVES]
    return blocks.gather(3, order[..., None].expand(*order.shape, k.shape[-1]))


def infllm_mask(
    q: Tensor, k: Tensor, grid: BlockGrid, *, sink: int, window: int, top_k: int
) -> Tensor:
    """bool [B, H, R, C]: sink, window and the top_k tokens' worth of blocks between them.

    q [B, H, Nq, D]; k [B, Hkv, Nk, D]; sink, window, top_k in tokens, top_k in whole blocks.
    """
    near = streaming_mask(grid, sink, window, q.device)
    past = grid.causal_mask(q.device) & ~near
    queries = block_means(q, grid.q_offset, grid.block_size).unflatten(1, (k.shape[1], -1))
    keys = representative_keys(k, grid)  # [B, Hkv, blocks, 4, D]
    shape = (q.shape[0], q.shape[1], grid.num_rows, grid.num_cols)
    worth = torch.full(shape, -torch.inf, device=q.device)
    found = worth[..., : keys.shape[2]].unflatten(1, (k.shape[1], -1))
    for number in range(REPRESENTATIVES):  # one at a time: four maps need not be alive at once
        found.copy_(torch.maximum(found, queries @ keys[:, :, None, :, number].mT))
    chosen = top_blocks_of_rows(
        worth.masked_fill_(~past, -torch.inf), budget_blocks(top_k, grid.block_size)
    )
    return (chosen & past) | near


@dataclass(frozen=True, kw_only=True)
class InfLlmPattern:
    """Every head keeps `point.sink`, `point.window` and `point.top_k` tokens of past blocks."""

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        point, grid = self.point, inputs.grid
        mask = infllm_mask(
            inputs.q, inputs.k, grid, sink=point.sink, window=point.window, top_k=point.top_k
        )
        cost = representative_cost(grid, REPRESENTATIVES * grid.num_causal_blocks)
        return uniform_decision(inputs, mask, branch=Branch.INFLLM, cost=cost)

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
