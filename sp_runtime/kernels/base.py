"""What a kernel backend provides: one protocol for the torch reference and the Triton backend.

Shapes: q [B, Hq, Nq, D]; k, v [B, Hkv, Nk, D] with Hq a multiple of Hkv (query head h reads KV
head h // (Hq // Hkv)); any strides with a contiguous last dimension; fp16, bf16 or fp32.
N = Nk = kv_len.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.operating_point import SlashCover


def block_sum(x: Tensor, grid: BlockGrid) -> Tensor:
    """Sum [..., N] (keys or key distances) into block bins [..., C]; the last bin may be ragged."""
    width = grid.num_cols * grid.block_size
    return pad(x, (0, width - x.shape[-1])).unflatten(-1, (-1, grid.block_size)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class LastBlockEstimate:
    """Attention of the last min(block_size, Nq) queries, exact over all keys (float32).

    vertical: [B, Hq, N], the mean over these queries of the attention on key j; sums to 1.
    slash:    [B, Hq, N], slash[o] = (1 / #queries) * sum of the attention at key distance
              i - j = o; sums to 1.
    sums:     [2, B, Hq, C], both summed into blocks, or None where nobody has done so yet; see
              `block_sums`.
    """

    vertical: Tensor
    slash: Tensor
    sums: Tensor | None = None

    def block_sums(self, grid: BlockGrid) -> Tensor:
        """float32 [2, B, Hq, C]: vertical and slash summed into blocks; the last may be ragged."""
        if self.sums is not None:
            return self.sums
        return torch.stack([block_sum(self.vertical, grid), block_sum(self.slash, grid)])


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockMeans:
    """Means of blocks of queries and keys, float32; a ragged block is the mean of what it has.

    queries: [B, S, R + 1, D], of the query blocks of S heads, and in row R of the last
        min(block_size, Nq) queries. keys: [B, Hkv, C, D]. heads: int64 [S], or None for all H.
    num_heads: H.
    """

    queries: Tensor
    keys: Tensor
    heads: Tensor | None
    num_heads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pivots:
    """What is known of the pivot of each of K clusters; each sequence of a batch has its own.

    known: bool [B, K]. mask: bool [B, K, R, C], its gamma-mask with the forced blocks.
    vertical, slash: float32 [B, K, C], its last-block estimate in blocks.
    covered: float32 [B, K], share of its mass that its own vertical-slash blocks hold.
    """

    known: Tensor
    mask: Tensor
    vertical: Tensor
    slash: Tensor
    covered: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSlots:
    """The S clusters with members in one layer of H heads.

    cluster: int64 [S], the cluster of each slot. member: bool [S, H]. slot: int64 [H], the slot of
    each head, and head_cluster: int64 [H], its cluster; 0 and arbitrary where `clustered`
    (bool [H]) is False.
    """

    cluster: Tensor
    member: Tensor
    slot: Tensor
    head_cluster: Tensor
    clustered: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareRoles:
    """What each head of a layer does: shared and dense bool [B, H]; heads int64 [B, S], the pivot
    of each slot or -1; branch uint8 [B, H]; cost float32 [B, H].
    """

    shared: Tensor
    dense: Tensor
    heads: Tensor
    branch: Tensor
    cost: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Borrowing:
    """The plan of one layer whose borrowers are guarded, H heads.

    borrows: bool [H]. row: int64 [H], its lender's place among the rows of lenders, 0 elsewhere.
    slots: int64 [H], where each head's mask lies, a borrower's at its lender's; own: int64 [H],
    where the masks lie that `Kernels.vertical_slash` makes. gamma: float32 [H] of those masks, and
    fallback: float32 [H], of a borrower that gives its lender up. branch: uint8 [H].
    """

    borrows: Tensor
    row: Tensor
    slots: Tensor
    own: Tensor
    gamma: Tensor
    fallback: Tensor
    branch: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class BorrowRoles:
    """What each head of a layer takes: slots int64 [B, H], gamma float32 [B, H] and branch uint8
    [B, H] as in `Borrowing`; onto int64 [B, H], the slot whose mask a head's own is united with, or
    -1.
    """

    slots: Tensor
    gamma: Tensor
    branch: Tensor
    onto: Tensor


class Kernels(Protocol):
    """One implementation of the device operations of a sparse prefill.

    `scale` multiplies q k^T before the softmax. No operation synchronises with the host on CUDA.
    """

    name: str

    def attention_kernel(self, q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid) -> str:
        """Which kernel `attention` runs for such a call, in a few words for a report."""
        ...

    def describe(self, head_dim: int, block_size: int, dtype: torch.dtype) -> str:
        """The same from the shape alone, on the current device."""
        ...

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Block-sparse causal attention over the blocks of `index`, and only those.

        Returns the output [B, Hq, Nq, D] in q's dtype (memory laid out as [B, Nq, Hq, D]) and the
        natural-log row log-sum-exp [B, Hq, Nq] in float32.
        """
        ...

    def block_mass(
        self, q: Tensor, k: Tensor, lse: Tensor, heads: Tensor, grid: BlockGrid, *, scale: float
    ) -> Tensor:
        """Exact block attention mass of some heads, given the *dense* row log-sum-exp.

        heads: int64 [B, S], the query head of each slot, or -1 for an empty slot.
        lse: float32 [B, Hq, Nq]. Returns float32 [B, S, R, C]: the mean over the queries of block
        row r of their softmax mass on key block c; every row of a used slot sums to 1, an empty
        slot is 0, a future block is 0.
        """
        ...

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
        """Block mass from every `stride`-th query of each block row, softmax over all keys.

        The sampled queries are those whose distance to the end of their block row is a multiple of
        `stride`, so that the last query of every row is always one of them. heads as in
        `block_mass`. stride: of all slots, or of each. Returns float32 [B, S, R, C].
        """
        ...

    def last_block(
        self, q: Tensor, k: Tensor, grid: BlockGrid, *, scale: float
    ) -> LastBlockEstimate:
        """The last-block estimate of every head."""
        ...

    def build_index(
        self,
        mask: Tensor,
        grid: BlockGrid,
        dense: Tensor | None,
        *,
        slots: Tensor | None = None,
        last_rows: int = 0,
    ) -> BlockIndex:
        """`BlockIndex.from_mask` on the device.

        mask: bool [B, Hq, R, C], or with slots, int64 [B, Hq], the masks [B, K, R, C] that these
            number. dense: bool [B, Hq], [B, Hq, R] or None.
        last_rows: so many block rows from the end are dense in every head.
        """
        ...

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
        """bool [B, Hq, R, C]: the largest columns and diagonals, on every block row of the grid.

        n_v = (number of largest entries of `vertical` whose cumulative sum stays at or under gamma,
        + 1) // block_size + 1 columns, and n_s diagonals from `slash` alike, the largest block sums
        first, ties to the lower index; block 0 and the main diagonal are among them.

        gamma: in [0, 1], a number or float32 broadcastable to [B, Hq]; 1 counts every entry, 0 none
            of them, which leaves the minimum budget.
        min_budget, max_budget: bounds of n_v and of n_s in tokens, rounded up to whole blocks, at
            least one; max_budget None is no bound.
        slash_cover: a chosen slash bin o switches on block diagonal o (`one`), or o and o + 1
            (`both`), which hold every token at a distance of bin o.
        out: where they are written, contiguous but for the batch; a new tensor if left out.
        """
        ...

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
        """bool [B, S, R, C]: the fewest blocks of each row that reach a share gamma of its mass.

        The largest causal blocks, ties to the lower index, up to and including the one with which
        the sum reaches gamma. A row without mass keeps every causal block,
        and so does every row from gamma 1 on.

        mass: float32 [B, S, R, C], future blocks 0; the rows are the last R of C block rows.
        gamma: in (0, 1], a number or float32 broadcastable to [B, S].
        row_slack: beyond 1 the fewest blocks of the whole map reach gamma, and a row may miss
            row_slack * (1 - gamma) of its mass; see `selection.spread_gamma_masks`.
        local_blocks: force key block 0, the diagonal and so many blocks before it on afterwards;
            None forces nothing.
        out, slots: contiguous masks bool [B, K, R, C] into which the mask of s goes at slots[s],
            int64 [S], and which are returned; a new tensor where both are left out.
        """
        ...

    def pool(
        self, q: Tensor, k: Tensor, grid: BlockGrid, *, heads: Tensor | None = None
    ) -> BlockMeans:
        """Block means of every KV head and of the query heads int64 [S], or of all."""
        ...

    def pooled_row(self, means: BlockMeans, grid: BlockGrid, *, scale: float) -> Tensor:
        """float32 [B, S, C]: softmax of the mean of the last queries on the means of all keys."""
        ...

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
        """bool [B, S, R, C]: the fewest blocks of each map that reach a share gamma of it.

        The map is the causal softmax of mean queries on mean keys; the blocks of all its rows are
        ranked together, equal ones by the lower index. Block 0 and the diagonal are on as well.

        gamma: in (0, 1], a number or float32 broadcastable to [B, S]; a tensor may also hold 0,
            of heads that add nothing, where `onto` is given.
        onto, slots: contiguous masks bool [B, K, R, C] with which the mask of s is united in place,
            at slots[s], int64 [S], or at s, and which are returned; a new tensor where both are
            left out.
        """
        ...

    def close_rows(
        self, rows: Tensor, others: Tensor | None, which: Tensor | None, *, limit: float
    ) -> Tensor:
        """bool [B, H]: sqrt_jsd of rows[b, h] and others[b, which[h]] is under `limit`.

        rows: float32 [B, H, C]; others: float32 [B, K, C] with which int64 [H], or None and None
        for the uniform distribution.
        """
        ...

    def share_roles(
        self,
        eligible: Tensor,
        alike: Tensor,
        known: Tensor,
        slots: ClusterSlots,
        *,
        branch: Tensor,
        cost: Tensor,
        pivot_cost: float,
        shared_branch: int,
        pivot_branch: int,
    ) -> ShareRoles:
        """Which heads share their cluster's pattern, and which become its pivot.

        A clustered, eligible head shares where its cluster has a pivot that it is alike; where it
        has none, the lowest such head of the slot becomes the pivot.

        eligible, alike: bool [B, H]. known: bool [B, K]. branch: uint8 [B, H] and cost: float32
        [B, H], of the heads otherwise; a pivot costs pivot_cost more, and the two branch numbers
        are those of heads that share and of pivots.
        """
        ...

    def lend(
        self,
        mask: Tensor,
        shared: Tensor,
        lent: Tensor,
        head_cluster: Tensor,
        floor: Tensor | None,
    ) -> Tensor:
        """mask [B, H, R, C] with lent[b, head_cluster[h]] in place of the heads that share.

        lent: bool [B, K, R, C]; floor: bool [B, H, R, C] or None, blocks united with it. `mask`
        may be overwritten where `shared` (bool [B, H]).
        """
        ...

    def borrow_roles(
        self,
        rows: Tensor,
        lent_rows: Tensor,
        borrowing: Borrowing,
        *,
        near: float,
        far: float,
        widened_branch: int,
        fallback_branch: int,
    ) -> BorrowRoles:
        """Which borrowers take their lender's mask, widen it, or give it up.

        At a sqrt_jsd between rows[b, h] and lent_rows[b, row[h]] of at most `near` a borrower's
        slot, gamma and branch are the plan's; up to `far` its own mask, at gamma 0, is united with
        its lender's; beyond that it takes its own mask at its fallback. Other heads: the plan's.

        rows: float32 [B, H, C]. lent_rows: float32 [B, K, C].
        """
        ...

    def unite(self, masks: Tensor, slots: Tensor, onto: Tensor) -> None:
        """Add masks[b, onto[b, h]] to masks[b, slots[b, h]] in place, where onto is not -1.

        masks: bool [B, K, R, C], contiguous. slots, onto: int64 [B, H]; no slot of a mask that
        grows is another head's.
        """
        ...

    def keep_pivots(
        self,
        pivots: Pivots,
        heads: Tensor,
        clusters: Tensor,
        *,
        pattern: Tensor,
        sums: Tensor,
        covered: Tensor,
    ) -> None:
        """Write the new pivots of clusters int64 [S] in place, where heads int64 [B, S] >= 0.

        pattern: bool [B, S, R, C], the gamma-masks before forcing. sums: float32 [2, B, H, C], the
        block sums of the estimate. covered: float32 [B, S].
        """
        ...
