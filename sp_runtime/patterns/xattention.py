"""XAttention: blocks scored by the antidiagonals of strided cells.

Source: XAttention (arXiv 2503.16428). Parameters, with the paper's values: stride S 8 or 16 (16
here), tau 0.9 of every block row; block size 128. Within each S x S cell of the score matrix the
antidiagonal entries are summed, so that every query and every key of the cell is met once, and
divided by sqrt(d) * S; causal softmax over the strided keys; summed into blocks; per block row the
fewest blocks that reach tau; block 0 and the diagonal kept.

Where this differs: block 0 and the diagonal are forced on afterwards and do not count towards tau;
the cell on the diagonal is whole, its antidiagonal's future half included, as in the authors' code;
cells lie on the absolute grid of the sequence, and pairs that a ragged end or a query offset cuts
off are left out of their sum; one tau for all heads (the paper also tries a threshold per head).
The scores of all cells are never stored: the map is made a few block rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sp_runtime.block_index import BlockGrid
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import antidiagonal_cost
from sp_runtime.patterns.decision import uniform_decision

_MAX_CELLS = 1 << 25  # float32 scores of cells at a time: 128 MiB, about three of them alive


def antidiagonal_mass(
    q: Tensor, k: Tensor, grid: BlockGrid, *, stride: int, scale: float
) -> Tensor:
    """float32 [B, H, R, C]: the share of every key block in its block row; rows sum to 1.

    q [B, H, Nq, D]; k [B, Hkv, Nk, D]. stride: side of a cell, divides the block size. Holds one
    copy of k and a bounded number of cell scores.
    """
    batch, heads = q.shape[:2]
    keys = pad(k, (0, 0, 0, -grid.kv_len % stride)).unflatten(2, (-1, stride)).flatten(3)
    num_cells, per_block = keys.shape[2], grid.block_size // stride
    step = max(1, _MAX_CELLS // (batch * heads * per_block * num_cells))
    mass = torch.zeros(batch, heads, grid.num_rows, grid.num_cols, device=q.device)
    for row in range(0, grid.num_rows, step):
        rows = range(row, min(row + step, grid.num_rows))
        part = _rows_mass(q, keys, grid, rows, stride=stride, scale=scale)
        mass[:, :, row : rows.stop, : part.shape[-1]] = part
    return mass


def _rows_mass(
    q: Tensor, keys: Tensor, grid: BlockGrid, rows: range, *, stride: int, scale: float
) -> Tensor:
    """float32 [B, H, rows, columns up to the last of them]; keys [B, Hkv, cells, S * D]."""
    size, per_block = grid.block_size, grid.block_size // stride
    start = max((grid.first_row + rows.start) * size, grid.q_offset)
    stop = min((grid.first_row + rows.stop) * size, grid.kv_len)
    first, last = start // stride, -(-stop // stride)  # cells of these rows
    cells = _query_cells(q, start - grid.q_offset, stop - grid.q_offset, start, stride, scale)
    batch, heads, count = cells.shape[:3]
    grouped = cells.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # [B, Hkv, G * count, S * D]
    scores = (grouped @ keys[:, :, :last].mT).float().view(batch, heads, count, last)
    position = torch.arange(first, last, device=q.device)[:, None]
    future = torch.arange(last, device=q.device) > position
    share = scores.masked_fill_(future, -torch.inf).softmax(-1)
    by_block = pad(share, (0, -last % per_block)).unflatten(-1, (-1, per_block)).sum(-1)
    # Partial first and last rows hold fewer cells.
    whole = pad(by_block, (0, 0, first % per_block, -last % per_block))
    summed = whole.unflatten(2, (-1, per_block)).sum(3)
    return summed / _cells_per_row(first, last, per_block, q.device)[:, None]


def _query_cells(
    q: Tensor, start: int, stop: int, position: int, stride: int, scale: float
) -> Tensor:
    """[B, H, cells, S * D] in q's dtype: queries [start, stop) of the chunk, the first at absolute
    `position`, scaled; within a cell last query first, so that it meets the first key."""
    lead = position % stride
    # Scaled before the product, so that a sum of S of them stays in the range of float16.
    part = (q[:, :, start:stop].float() * (scale / stride)).to(q.dtype)
    part = pad(part, (0, 0, lead, -(lead + stop - start) % stride))
    return part.unflatten(2, (-1, stride)).flip(3).flatten(3)


def _cells_per_row(first: int, last: int, per_block: int, device: torch.device) -> Tensor:
    """float32 [rows], how many of the cells [first, last) lie in each block row."""
    starts = torch.arange(first // per_block, -(-last // per_block), device=device) * per_block
    return ((starts + per_block).clamp(max=last) - starts.clamp(min=first)).float()


@dataclass(frozen=True, kw_only=True)
class XAttentionPattern:
    """Every head keeps the blocks whose antidiagonals reach `point.tau` of their row."""

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        point, grid = self.point, inputs.grid
        mass = antidiagonal_mass(inputs.q, inputs.k, grid, stride=point.stride, scale=inputs.scale)
        mask = inputs.kernels.gamma_mask(mass, point.tau, local_blocks=point.local_blocks)
        return uniform_decision(
            inputs, mask, branch=Branch.XATTENTION, cost=antidiagonal_cost(grid, point.stride)
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
