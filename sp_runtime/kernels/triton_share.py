"""Launches of the kernels of pattern sharing: a part of the `Kernels` protocol on a GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from sp_runtime.kernels.base import ClusterSlots, Pivots, ShareRoles
from sp_runtime.kernels.launch import launch, on_device
from sp_runtime.kernels.share_blocks import (
    close_rows_kernel,
    keep_kernel,
    lend_kernel,
    share_roles_kernel,
)
from sp_runtime.kernels.tuning import KernelConfig

# Mask columns that a program reads or writes at once.
_COLS = 256


class TritonSharing:
    """What rules `paper` and `release` decide, on CUDA tensors."""

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
                W=1024,
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
