"""Plain torch kernels: the oracle of the Triton backend and the product's CPU path.

Everything is upcast and accumulated in float32 (float64 for float64 inputs). The work is
proportional to the blocks computed and no tensor grows with the square of the sequence. K and V
are taken one KV head at a time and never repeated for grouped queries. Scores must not overflow
the accumulator; then no result is NaN.

The host reads the index here, so on CUDA these operations synchronise with it.
Legend of shapes: G query heads of one KV head, R block rows, C block columns, T block size,
M tiles in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex, expand_dense
from sp_runtime.kernels.base import LastBlockEstimate, block_sum
from sp_runtime.kernels.reference_pooled import ReferencePooled
from sp_runtime.kernels.reference_select import ReferenceSelection
from sp_runtime.kernels.strides import stride_runs
from sp_runtime.selection import take_heads

# Scores of one batch of tiles: 2 MiB of float32, so that the passes over them stay in cache.
TILE_SCORES = 1 << 19


class ReferenceKernels(ReferencePooled, ReferenceSelection):
    """The `Kernels` protocol in plain torch, on any device that torch has."""

    name = "reference"

    def attention_kernel(self, q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid) -> str:
        """See `Kernels.attention_kernel`."""
        return "torch reference"

    def describe(self, head_dim: int, block_size: int, dtype: torch.dtype) -> str:
        """See `Kernels.describe`."""
        return "torch reference"

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels.attention`; float64 inputs give a float64 log-sum-exp."""
        batch, num_heads, q_len, head_dim = q.shape
        group = num_heads // k.shape[1]
        out = q.new_empty(batch, q_len, num_heads, head_dim).transpose(1, 2)
        lse = torch.empty(q.shape[:-1], dtype=_accumulator(q), device=q.device)
        for b, kv_head in product(range(batch), range(k.shape[1])):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            tiles = _Tiles.load(q[b, heads], k[b, kv_head], v[b, kv_head], index.grid, scale)
            for row, items in _dense_batches(index, b, heads):
                tiles.attend_dense(row, items)
            for cols, items in _listed_batches(index, b, heads):
                tiles.attend_listed(cols, items)
            out[b, heads], lse[b, heads] = tiles.result()
        return out, lse

    def block_mass(
        self, q: Tensor, k: Tensor, lse: Tensor, heads: Tensor, grid: BlockGrid, *, scale: float
    ) -> Tensor:
        """See `Kernels.block_mass`."""
        mass = _empty_mass(q, heads, grid)
        for b, kv_head, slots, slot_heads in _slots_by_kv_head(q, k, heads):
            keys = k[b, kv_head].to(mass.dtype)
            queries = q[b, slot_heads].to(mass.dtype) * scale
            shift = lse[b, slot_heads, :, None].to(mass.dtype)
            for row in range(grid.num_rows):
                span = _query_span(grid, row)
                for cols, scores in _score_chunks(queries[:, span], keys, grid, span):
                    attention = scores.sub_(shift[:, span]).exp_()
                    mass[b, slots, row, cols] = _block_sum(attention.mean(-2), grid)
        return mass

    def sampled_mass(
        self,
        q: Tensor,
        k: Tensor,
        heads: Tensor,
        grid: BlockGrid,
        *,
        stride: int | tuple[int, ...],
        scale: float,
    ) -> Tensor:
        """See `Kernels.sampled_mass`."""
        mass = _empty_mass(q, heads, grid)
        for each, start, stop in stride_runs(stride, heads.shape[1]):
            part = mass[:, start:stop]
            for b, kv_head, slots, slot_heads in _slots_by_kv_head(q, k, heads[:, start:stop]):
                keys = k[b, kv_head].to(mass.dtype)
                queries = q[b, slot_heads].to(mass.dtype) * scale
                for row in range(grid.num_rows):
                    span = _query_span(grid, row, each)
                    for cols, attention in _softmax_chunks(queries[:, span], keys, grid, span):
                        part[b, slots, row, cols] = _block_sum(attention.mean(-2), grid)
        return mass

    def last_block(
        self, q: Tensor, k: Tensor, grid: BlockGrid, *, scale: float
    ) -> LastBlockEstimate:
        """See `Kernels.last_block`; long sequences are taken in chunks of keys."""
        batch, num_heads, q_len, _ = q.shape
        group, dtype = num_heads // k.shape[1], _accumulator(q)
        span = slice(max(0, q_len - grid.block_size), q_len, 1)
        count = span.stop - span.start
        vertical = torch.zeros(batch, num_heads, grid.kv_len, dtype=dtype, device=q.device)
        # Entry t is the distance kv_len - 1 - t; the last count - 1 entries lie in the future.
        falling = F.pad(torch.zeros_like(vertical), (0, count - 1))
        for b, kv_head in product(range(batch), range(k.shape[1])):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            queries = q[b, heads, span].to(dtype) * scale
            keys = k[b, kv_head].to(dtype)
            start = 0
            for _, attention in _softmax_chunks(queries, keys, grid, span):
                width = attention.shape[-1]
                vertical[b, heads, start : start + width] = attention.mean(-2)
                diagonals = _diagonal_sums(attention) / count
                falling[b, heads, start : start + width + count - 1] += diagonals
                start += width
        slash = falling[..., : grid.kv_len].flip(-1)
        sums = torch.stack([block_sum(vertical, grid), block_sum(slash, grid)])
        return LastBlockEstimate(vertical=vertical, slash=slash, sums=sums)

    def build_index(
        self,
        mask: Tensor,
        grid: BlockGrid,
        dense: Tensor | None,
        *,
        slots: Tensor | None = None,
        last_rows: int = 0,
    ) -> BlockIndex:
        """See `Kernels.build_index`."""
        mask = mask if slots is None else take_heads(mask, slots)
        if last_rows:
            dense = expand_dense(dense, mask.shape[:3], mask.device).clone()
            dense[..., -last_rows:] = True
        return BlockIndex.from_mask(mask, grid, dense)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tiles:
    """One KV head and its query heads, padded to whole blocks in the accumulator's type.

    q, out [G * R, T, D] and lse [G * R, T], in (head, row) order; k, v [C, T, D]. Padded keys lie
    after every query, so the causal mask of the diagonal block also hides them; padded queries
    are computed and dropped.
    """

    grid: BlockGrid
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    future: Tensor

    @classmethod
    def load(cls, q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid, scale: float) -> _Tiles:
        """q [G, Nq, D]; k, v [Nk, D]."""
        dtype, size = _accumulator(q), grid.block_size
        lead = grid.q_offset - grid.first_row * size
        tail = grid.num_cols * size - grid.kv_len
        queries = F.pad(q.to(dtype) * scale, (0, 0, lead, tail)).contiguous()
        tiles = queries.view(-1, size, q.shape[-1])
        square = torch.ones(size, size, dtype=torch.bool, device=q.device)
        return cls(
            grid=grid,
            q=tiles,
            k=_pad_rows(k.to(dtype), tail).contiguous().view(grid.num_cols, size, -1),
            v=_pad_rows(v.to(dtype), tail).contiguous().view(grid.num_cols, size, -1),
            out=torch.zeros_like(tiles),
            lse=torch.full_like(tiles[..., 0], -torch.inf),
            future=square.triu_(1),
        )

    def attend_dense(self, row: int, items: Tensor) -> None:
        """Every causal block for the tiles `items`, all of block row `row`."""
        cols = self.grid.first_row + row + 1
        self._attend(items, self.k[:cols].flatten(0, 1), self.v[:cols].flatten(0, 1))

    def attend_listed(self, cols: Tensor, items: Tensor) -> None:
        """The key blocks cols [M, n] for the tiles items [M]; the last one is the diagonal."""
        self._attend(items, _gather_blocks(self.k, cols), _gather_blocks(self.v, cols))

    def _attend(self, items: Tensor, keys: Tensor, values: Tensor) -> None:
        scores = self.q.index_select(0, items) @ keys.transpose(-1, -2)
        scores[..., -self.grid.block_size :].masked_fill_(self.future, -torch.inf)
        peak = scores.amax(-1, keepdim=True)
        weights = scores.sub_(peak).exp_()
        total = weights.sum(-1, keepdim=True)
        self.out.index_copy_(0, items, (weights @ values).div_(total))
        self.lse.index_copy_(0, items, peak.add_(total.log_()).squeeze(-1))

    def result(self) -> tuple[Tensor, Tensor]:
        """Output [G, Nq, D] and log-sum-exp [G, Nq], without the padding."""
        grid = self.grid
        lead = grid.q_offset - grid.first_row * grid.block_size
        queries = slice(lead, lead + grid.q_len)
        out = self.out.view(-1, grid.num_rows * grid.block_size, self.out.shape[-1])
        return out[:, queries], self.lse.view(out.shape[:2])[:, queries]


def _dense_batches(index: BlockIndex, batch: int, heads: slice) -> Iterator[tuple[int, Tensor]]:
    """(row, items [M]) over the rows that take every causal block."""
    grid, flags = index.grid, index.dense[batch, heads]
    for row in flags.any(0).nonzero().flatten().tolist():
        items = flags[:, row].nonzero().flatten() * grid.num_rows + row
        cols = grid.first_row + row + 1
        for part in items.split(max(1, TILE_SCORES // (grid.block_size**2 * cols))):
            yield row, part


def _listed_batches(index: BlockIndex, batch: int, heads: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """(cols [M, n], items [M]) over the rows with a list, those of one length together."""
    size, rows = index.grid.block_size, index.grid.num_rows
    begin = (batch * index.num_heads + heads.start) * rows
    starts = index.row_ptr[begin : begin + (heads.stop - heads.start) * rows + 1].long()
    lengths = starts.diff().masked_fill(index.dense[batch, heads].flatten(), 0)
    for length in lengths.unique().tolist():
        if length == 0:
            continue
        items = (lengths == length).nonzero().flatten()
        steps = torch.arange(length, device=starts.device)
        for part in items.split(max(1, TILE_SCORES // (size**2 * length))):
            yield index.col_idx[starts[part, None] + steps].long(), part


def _slots_by_kv_head(
    q: Tensor, k: Tensor, heads: Tensor
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(batch, KV head, slots [S'], their query heads [S']) of the used slots of heads [B, S]."""
    group = q.shape[1] // k.shape[1]
    for b in range(heads.shape[0]):
        kv_heads = heads[b].div(group, rounding_mode="floor")
        for kv_head in kv_heads[heads[b] >= 0].unique().tolist():
            slots = (kv_heads == kv_head).nonzero().flatten()
            yield b, kv_head, slots, heads[b, slots]


def _query_span(grid: BlockGrid, row: int, stride: int = 1) -> slice:
    """The queries of a block row; with a stride, counted from its end, so the last is taken."""
    first = (grid.first_row + row) * grid.block_size - grid.q_offset
    start, stop = max(0, first), min(grid.q_len, first + grid.block_size)
    return slice(start + (stop - 1 - start) % stride, stop, stride)


def _score_chunks(
    queries: Tensor, keys: Tensor, grid: BlockGrid, span: slice
) -> Iterator[tuple[slice, Tensor]]:
    """Scores of scaled queries [S, P, D] (those of `span`) in chunks of whole key blocks.

    Yields (block columns, scores [S, P, W]), up to the last key that `span` sees; a key after its
    query scores -inf.
    """
    end = grid.q_offset + span.stop
    width = _chunk_width(queries, grid)
    device = keys.device
    positions = torch.arange(span.start, span.stop, span.step, device=device) + grid.q_offset
    for start in range(0, end, width):
        stop = min(start + width, end)
        scores = queries @ keys[start:stop].T
        # Only keys after the span's first query can lie in the future of one of its queries.
        late = max(start, grid.q_offset + span.start)
        if late < stop:
            future = torch.arange(late, stop, device=device) > positions[:, None]
            scores[..., late - start :].masked_fill_(future, -torch.inf)
        yield slice(start // grid.block_size, -(-stop // grid.block_size)), scores


def _softmax_chunks(
    queries: Tensor, keys: Tensor, grid: BlockGrid, span: slice
) -> Iterator[tuple[slice, Tensor]]:
    """Like `_score_chunks`, after a softmax over all keys; several chunks are computed twice."""
    end = grid.q_offset + span.stop
    if end <= _chunk_width(queries, grid):
        for cols, scores in _score_chunks(queries, keys, grid, span):
            yield cols, scores.softmax(-1)
        return
    shift = torch.full_like(queries[..., :1], -torch.inf)
    for _, scores in _score_chunks(queries, keys, grid, span):
        shift = torch.logaddexp(shift, scores.logsumexp(-1, keepdim=True))
    for cols, scores in _score_chunks(queries, keys, grid, span):
        yield cols, scores.sub_(shift).exp_()


def _chunk_width(queries: Tensor, grid: BlockGrid) -> int:
    """Keys in one chunk of scores of queries [S, P, D]: whole blocks, at least one."""
    blocks = TILE_SCORES // (queries.shape[0] * queries.shape[1] * grid.block_size)
    return max(1, blocks) * grid.block_size


def _block_sum(x: Tensor, grid: BlockGrid) -> Tensor:
    """Sums over the key blocks: [..., W] -> [..., ceil(W / T)]."""
    x = F.pad(x, (0, -x.shape[-1] % grid.block_size))
    return x.unflatten(-1, (-1, grid.block_size)).sum(-1)


def _diagonal_sums(x: Tensor) -> Tensor:
    """x [S, P, W] -> [S, W + P - 1]; entry t sums x[i, j] over j + (P - 1 - i) = t."""
    count, width = x.shape[-2:]
    # Rows of width W + P read back as rows of W + P - 1 shift each row by one more entry.
    skewed = F.pad(x.flip(-2), (0, count)).flatten(-2)[..., : count * (width + count - 1)]
    return skewed.unflatten(-1, (count, width + count - 1)).sum(-2)


def _gather_blocks(x: Tensor, cols: Tensor) -> Tensor:
    """x [C, T, D], cols [M, n] -> [M, n * T, D]."""
    # index_select over flat blocks copies whole rows; indexing x itself is several times slower.
    blocks = x.flatten(1).index_select(0, cols.flatten())
    return blocks.view(cols.shape[0], -1, x.shape[-1])


def _pad_rows(x: Tensor, count: int) -> Tensor:
    """x [N, D] with `count` zero rows after it; x itself for none."""
    return F.pad(x, (0, 0, 0, count)) if count else x


def _empty_mass(q: Tensor, heads: Tensor, grid: BlockGrid) -> Tensor:
    shape = (*heads.shape, grid.num_rows, grid.num_cols)
    return torch.zeros(shape, dtype=_accumulator(q), device=q.device)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
