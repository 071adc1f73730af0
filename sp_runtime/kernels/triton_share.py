"""Launches of the kernels of pattern sharing: a part of the `Kernels` protocol on a GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from sp_runtime.kernels.base import Borrowing, BorrowRoles, ClusterSlots, Pivots, ShareRoles
from sp_runtime.kernels.program import Program, kept
from sp_runtime.kernels.share_blocks import (
    borrow_roles_kernel,
    close_rows_kernel,
    keep_kernel,
    lend_kernel,
    share_roles_kernel,
    unite_kernel,
)
from sp_runtime.kernels.tuning import KernelConfig

# Mask columns that a program reads or writes at once, and bins of two rows that it compares.
_COLS, _BINS = 256, 1024


class TritonSharing:
    """What heads share, on CUDA tensors."""

    def close_rows(
        self, rows: Tensor, others: Tensor | None, which: Tensor | None, *, limit: float
    ) -> Tensor:
        """See `Kernels.close_rows`."""
        batch, heads, cols = rows.shape
        uniform = others is None or which is None
        close = empty_mask((batch, heads), rows.device)
        number = 1 if others is None else others.shape[1]
        compare = _close_rows(batch * heads, heads, cols, number, float(limit), uniform)
        compare(
            rows_ptr=rows.contiguous(),
            others_ptr=rows if others is None else others,
            which_ptr=rows if which is None else which,
            out_ptr=close,
        )
        return close

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
        batch, heads = eligible.shape
        num_slots = slots.cluster.shape[0]
        roles = ShareRoles(
            shared=empty_mask((batch, heads), eligible.device),
            dense=empty_mask((batch, heads), eligible.device),
            heads=torch.empty(batch, num_slots, dtype=torch.int64, device=eligible.device),
            branch=torch.empty(batch, heads, dtype=torch.uint8, device=eligible.device),
            cost=torch.empty(batch, heads, dtype=torch.float32, device=eligible.device),
        )
        assign = _share_roles(
            batch, heads, known.shape[1], num_slots, float(pivot_cost), pivot_branch, shared_branch
        )
        assign(
            eligible_ptr=eligible,
            alike_ptr=alike,
            known_ptr=known,
            cluster_ptr=slots.head_cluster,
            slot_ptr=slots.slot,
            clustered_ptr=slots.clustered,
            branch_ptr=branch,
            cost_ptr=cost,
            shared_ptr=roles.shared,
            dense_ptr=roles.dense,
            heads_ptr=roles.heads,
            branch_out_ptr=roles.branch,
            cost_out_ptr=roles.cost,
        )
        return roles

    def lend(
        self,
        mask: Tensor,
        shared: Tensor,
        lent: Tensor,
        head_cluster: Tensor,
        floor: Tensor | None,
    ) -> Tensor:
        """See `Kernels.lend`; writes into `mask`."""
        batch, heads, rows, cols = mask.shape
        copy = _lend(batch * heads, rows, cols, heads, lent.shape[1], floor is not None)
        copy(
            mask_ptr=mask,
            shared_ptr=shared,
            lent_ptr=lent,
            cluster_ptr=head_cluster,
            floor_ptr=mask if floor is None else floor,
        )
        return mask

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
        batch, heads, cols = rows.shape
        device = rows.device
        roles = BorrowRoles(
            slots=torch.empty(batch, heads, dtype=torch.int64, device=device),
            gamma=torch.empty(batch, heads, dtype=torch.float32, device=device),
            branch=torch.empty(batch, heads, dtype=torch.uint8, device=device),
            onto=torch.empty(batch, heads, dtype=torch.int64, device=device),
        )
        decide = _borrow_roles(
            (batch * heads, heads, cols, lent_rows.shape[1]),
            (float(near), float(far)),
            (widened_branch, fallback_branch),
        )
        decide(
            rows_ptr=rows.contiguous(),
            lent_ptr=lent_rows,
            borrows_ptr=borrowing.borrows,
            row_ptr=borrowing.row,
            slots_ptr=borrowing.slots,
            own_ptr=borrowing.own,
            gamma_ptr=borrowing.gamma,
            fallback_ptr=borrowing.fallback,
            branch_ptr=borrowing.branch,
            slots_out_ptr=roles.slots,
            gamma_out_ptr=roles.gamma,
            branch_out_ptr=roles.branch,
            onto_ptr=roles.onto,
        )
        return roles

    def unite(self, masks: Tensor, slots: Tensor, onto: Tensor) -> None:
        """See `Kernels.unite`."""
        batch, num_masks, rows, cols = masks.shape
        unite = _unite(batch * slots.shape[1], rows, cols, slots.shape[1], num_masks)
        unite(masks_ptr=masks, slots_ptr=slots.contiguous(), onto_ptr=onto.contiguous())

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
        batch, slots, rows, cols = pattern.shape
        keep = _keep((batch * slots, rows, cols, slots), sums.shape[2], pivots.known.shape[1])
        keep(
            heads_ptr=heads,
            cluster_ptr=clusters,
            pattern_ptr=pattern,
            sums_ptr=sums,
            covered_ptr=covered,
            known_out_ptr=pivots.known,
            mask_out_ptr=pivots.mask,
            vertical_out_ptr=pivots.vertical,
            slash_out_ptr=pivots.slash,
            covered_out_ptr=pivots.covered,
        )


@kept
def _close_rows(
    programs: int, heads: int, cols: int, others: int, limit: float, uniform: bool
) -> Program:
    return Program(
        close_rows_kernel,
        (programs,),
        num_cols=cols,
        num_heads=heads,
        num_others=others,
        limit=limit,
        UNIFORM=uniform,
        W=_BINS,
    )


@kept
def _share_roles(
    batch: int,
    heads: int,
    clusters: int,
    slots: int,
    pivot_cost: float,
    pivot_branch: int,
    shared_branch: int,
) -> Program:
    return Program(
        share_roles_kernel,
        (batch,),
        memory_bound(1),
        num_heads=heads,
        num_clusters=clusters,
        num_slots=slots,
        pivot_cost=pivot_cost,
        PIVOT=pivot_branch,
        SHARED=shared_branch,
        HEADS=triton.next_power_of_2(heads),
    )


@kept
def _lend(programs: int, rows: int, cols: int, heads: int, clusters: int, floor: bool) -> Program:
    return Program(
        lend_kernel,
        (rows, programs),
        memory_bound(2),
        num_rows=rows,
        num_cols=cols,
        num_heads=heads,
        num_clusters=clusters,
        FLOOR=floor,
        W=_COLS,
    )


@kept
def _borrow_roles(
    size: tuple[int, int, int, int], limits: tuple[float, float], branches: tuple[int, int]
) -> Program:
    """size: programs, heads, columns, lenders."""
    return Program(
        borrow_roles_kernel,
        size[:1],
        num_cols=size[2],
        num_heads=size[1],
        num_lenders=size[3],
        near=limits[0],
        far=limits[1],
        WIDENED=branches[0],
        FALLBACK=branches[1],
        W=_BINS,
    )


@kept
def _unite(programs: int, rows: int, cols: int, heads: int, masks: int) -> Program:
    return Program(
        unite_kernel,
        (rows, programs),
        memory_bound(2),
        num_rows=rows,
        num_cols=cols,
        num_heads=heads,
        num_masks=masks,
        W=_COLS,
    )


@kept
def _keep(size: tuple[int, int, int, int], heads: int, clusters: int) -> Program:
    """size: programs, rows, columns, slots."""
    return Program(
        keep_kernel,
        (size[1], size[0]),
        memory_bound(2),
        num_rows=size[1],
        num_cols=size[2],
        num_heads=heads,
        num_clusters=clusters,
        num_slots=size[3],
        W=_COLS,
    )


@kept
def memory_bound(warps: int) -> KernelConfig:
    """A launch that has no matrix tiles."""
    return KernelConfig(block_m=1, block_n=1, num_warps=warps, num_stages=1)


def empty_mask(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.bool, device=device)
