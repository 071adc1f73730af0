"""The choices of blocks in plain torch, as `selection` defines them, for `ReferenceKernels`."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import (
    Borrowing,
    BorrowRoles,
    ClusterSlots,
    LastBlockEstimate,
    Pivots,
    ShareRoles,
)
from sp_runtime.operating_point import SlashCover
from sp_runtime.selection import (
    forced_mask,
    spread_gamma_masks,
    sqrt_jsd,
    take_heads,
    vertical_slash_masks,
)


class ReferenceSelection:
    """The decision half of the `Kernels` protocol, on any device that torch has."""

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
        (mask,) = vertical_slash_masks(
            estimate,
            grid,
            gammas=(gamma,),
            min_budget=min_budget,
            max_budget=max_budget,
            slash_cover=slash_cover,
        )
        return mask if out is None else out.copy_(mask)

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
        (mask,) = spread_gamma_masks(mass, (gamma,), row_slack=row_slack)
        if local_blocks is not None:
            rows, cols = mask.shape[-2:]
            mask |= forced_mask(rows, cols, local_blocks, mask.device)
        if out is None or slots is None:
            assert out is slots, "both or neither"
            return mask
        return out.index_copy_(1, slots, mask)

    def close_rows(
        self, rows: Tensor, others: Tensor | None, which: Tensor | None, *, limit: float
    ) -> Tensor:
        """See `Kernels.close_rows`."""
        if others is None or which is None:
            return sqrt_jsd(torch.full_like(rows, 1 / rows.shape[-1]), rows) < limit
        return sqrt_jsd(others.index_select(1, which), rows) < limit

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
        """See `Kernels.share_roles`."""
        known = known.index_select(1, slots.head_cluster)
        eligible = eligible & slots.clustered
        heads, dense = _first_heads(eligible & ~known, slots)
        shared = eligible & known & alike
        branch = branch.masked_fill(shared, shared_branch)
        return ShareRoles(
            shared=shared,
            dense=dense,
            heads=heads,
            branch=branch.masked_fill(dense, pivot_branch),
            cost=cost + dense * pivot_cost,
        )

    def lend(
        self,
        mask: Tensor,
        shared: Tensor,
        lent: Tensor,
        head_cluster: Tensor,
        floor: Tensor | None,
    ) -> Tensor:
        """See `Kernels.lend`."""
        of_head = lent.index_select(1, head_cluster)
        of_head = of_head if floor is None else of_head | floor
        return torch.where(shared[..., None, None], of_head, mask)

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
        """See `Kernels.borrow_roles`."""
        distance = sqrt_jsd(lent_rows.index_select(1, borrowing.row), rows)
        drifted = borrowing.borrows & (distance > near)
        lost = borrowing.borrows & (distance > far)
        widened = drifted & ~lost
        branch = borrowing.branch.expand(drifted.shape).masked_fill(widened, widened_branch)
        return BorrowRoles(
            slots=torch.where(drifted, borrowing.own, borrowing.slots),
            gamma=torch.where(lost, borrowing.fallback, borrowing.gamma),
            branch=branch.masked_fill(lost, fallback_branch),
            onto=torch.where(widened, borrowing.slots, -1),
        )

    def unite(self, masks: Tensor, slots: Tensor, onto: Tensor) -> None:
        """See `Kernels.unite`."""
        grown = take_heads(masks, slots) | (take_heads(masks, onto) & (onto >= 0)[..., None, None])
        where = slots[..., None, None].expand(*slots.shape, *masks.shape[2:])
        # Heads that share a slot write the same mask: theirs does not grow.
        masks.scatter_(1, where, grown)

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
        """See `Kernels.keep_pivots`."""
        rows, cols = pattern.shape[-2:]
        forced = forced_mask(rows, cols, 0, pattern.device)
        new = Pivots(
            known=torch.ones_like(heads, dtype=torch.bool),
            mask=pattern | forced,
            vertical=take_heads(sums[0], heads),
            slash=take_heads(sums[1], heads),
            covered=covered,
        )
        for part in fields(Pivots):
            state, value = getattr(pivots, part.name), getattr(new, part.name)
            where = (heads >= 0).view(*heads.shape, *([1] * (value.dim() - 2)))
            merged = torch.where(where, value, state.index_select(1, clusters))
            state.index_copy_(1, clusters, merged)


def _first_heads(candidates: Tensor, slots: ClusterSlots) -> tuple[Tensor, Tensor]:
    """The lowest candidate of each slot: int64 [B, S] (-1: none), and as flags bool [B, H]."""
    num_heads = candidates.shape[1]
    heads = torch.arange(num_heads, device=candidates.device)
    of_slot = candidates[:, None] & slots.member  # [B, S, H]
    first = torch.where(of_slot, heads, num_heads).amin(-1)
    flags = (heads == first[..., None]).any(1)
    return torch.where(first < num_heads, first, -1), flags
