"""Launches of the kernels of pattern sharing: a part of the `Kernels` protocol on a GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from sp_runtime.kernels.base import Borrowing, BorrowRoles, ClusterSlots, Pivots, ShareRoles
from sp_runtime.kernels.launch import launch, on_device
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
        with on_device(rows):
            launch(
                close_rows_kernel,
                (batch * heads,),
                None,
                rows_ptr=rows.contiguous(),
                others_ptr=rows if others is None else others,
                which_ptr=rows if which is None else which,
                out_ptr=close.view(torch.uint8),
                num_cols=cols,
                num_heads=heads,
                num_others=1 if others is None else others.shape[1],
                limit=float(limit),
                UNIFORM=uniform,
                W=_BINS,
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
        with on_device(eligible):
            launch(
                share_roles_kernel,
                (batch,),
                memory_bound(1),
                eligible_ptr=eligible.view(torch.uint8),
                alike_ptr=alike.view(torch.uint8),
                known_ptr=known.view(torch.uint8),
                cluster_ptr=slots.head_cluster,
                slot_ptr=slots.slot,
                clustered_ptr=slots.clustered.view(torch.uint8),
                branch_ptr=branch,
                cost_ptr=cost,
                shared_ptr=roles.shared.view(torch.uint8),
                dense_ptr=roles.dense.view(torch.uint8),
                heads_ptr=roles.heads,
                branch_out_ptr=roles.branch,
                cost_out_ptr=roles.cost,
                num_heads=heads,
                num_clusters=known.shape[1],
                num_slots=num_slots,
                pivot_cost=float(pivot_cost),
                PIVOT=pivot_branch,
                SHARED=shared_branch,
                HEADS=triton.next_power_of_2(heads),
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
        with on_device(mask):
            launch(
                lend_kernel,
                (rows, batch * heads),
                memory_bound(2),
                mask_ptr=mask.view(torch.uint8),
                shared_ptr=shared.view(torch.uint8),
                lent_ptr=lent.view(torch.uint8),
                cluster_ptr=head_cluster,
                floor_ptr=(mask if floor is None else floor).view(torch.uint8),
                num_rows=rows,
                num_cols=cols,
                num_heads=heads,
                num_clusters=lent.shape[1],
                FLOOR=floor is not None,
                W=_COLS,
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
        with on_device(rows):
            launch(
                borrow_roles_kernel,
                (batch * heads,),
                None,
                rows_ptr=rows.contiguous(),
                lent_ptr=lent_rows,
                borrows_ptr=borrowing.borrows.view(torch.uint8),
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
                num_cols=cols,
                num_heads=heads,
                num_lenders=lent_rows.shape[1],
                near=float(near),
                far=float(far),
                WIDENED=widened_branch,
                FALLBACK=fallback_branch,
                W=_BINS,
            )
        return roles

    def unite(self, masks: Tensor, slots: Tensor, onto: Tensor) -> None:
        """See `Kernels.unite`."""
        batch, num_masks, rows, cols = masks.shape
        with on_device(masks):
            launch(
                unite_kernel,
                (rows, batch * slots.shape[1]),
                memory_bound(2),
                masks_ptr=masks.view(torch.uint8),
                slots_ptr=slots,
                onto_ptr=onto,
                num_rows=rows,
                num_cols=cols,
                num_heads=slots.shape[1],
                num_masks=num_masks,
                W=_COLS,
            )

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
        with on_device(pattern):
            launch(
                keep_kernel,
                (rows, batch * slots),
                memory_bound(2),
                heads_ptr=heads,
                cluster_ptr=clusters,
                pattern_ptr=pattern.view(torch.uint8),
                sums_ptr=sums,
                covered_ptr=covered,
                known_out_ptr=pivots.known.view(torch.uint8),
                mask_out_ptr=pivots.mask.view(torch.uint8),
                vertical_out_ptr=pivots.vertical,
                slash_out_ptr=pivots.slash,
                covered_out_ptr=pivots.covered,
                num_rows=rows,
                num_cols=cols,
                num_heads=sums.shape[2],
                num_clusters=pivots.known.shape[1],
                num_slots=slots,
                W=_COLS,
            )


def memory_bound(warps: int) -> KernelConfig:
    """A launch that has no matrix tiles."""
    return KernelConfig(block_m=1, block_n=1, num_warps=warps, num_stages=1)


def empty_mask(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=torch.bool, device=device)
