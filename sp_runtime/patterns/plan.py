"""Rule `plan`: every head computes what the profile's plan assigns to it.

The assignments were chosen on calibration prompts for the fewest blocks at a recall floor; here
they are executed as written, with an optional guard against lenders that have drifted away from
their borrowers. Legend: B batch, H heads, R x C blocks, S heads of a group.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import (
    exact_mass_cost,
    last_block_cost,
    pooled_cost,
    sampled_cost,
)
from sp_runtime.patterns.masks import forced_blocks
from sp_runtime.patterns.plan_tables import BorrowGroup, HeadGroup, LayerPlan, PlanTables
from sp_runtime.patterns.query_aware import query_aware_mask
from sp_runtime.patterns.sampled import sampled_mask
from sp_runtime.patterns.streaming import streaming_mask
from sp_runtime.patterns.vertical_slash import minimum_vertical_slash_mask, vertical_slash_at


class PlanPattern:
    """One sequence's prefill under the plan; holds the masks of lenders while they are needed.

    A sampled lender lends its mask, a dense one the gamma-mask of its exact block mass. With
    `point.drift` a borrower whose last-row estimate lies further than that from its lender's
    takes vertical-slash at its own gamma instead.
    """

    def __init__(self, *, point: OperatingPoint, tables: PlanTables) -> None:
        self._point = point
        self._tables = tables
        self._masks: dict[tuple[int, int], Tensor] = {}  # [B, R, C] of each lender
        self._rows: dict[tuple[int, int], Tensor] = {}  # [B, C] of each lender, with drift only

    def decide(self, inputs: LayerInputs) -> Decision:
        grid, device = inputs.grid, inputs.q.device
        plan = self._tables.layer(inputs)
        layer = _Layer(inputs=inputs, point=self._point, estimate=self._estimate(inputs, plan))
        blocks = (inputs.batch, inputs.num_heads, grid.num_rows, grid.num_cols)
        branch = plan.branch.expand(blocks[:2])
        base = 0.0 if layer.estimate is None else last_block_cost(grid)
        cost = torch.full(blocks[:2], base, device=device)
        # Of every head, at its own gamma: the others are overwritten, or dense.
        if plan.vertical_slash is not None or self._guards(plan.borrow):
            mask = layer.vertical_slash(plan.gamma)
        else:
            mask = torch.zeros(blocks, dtype=torch.bool, device=device)
        if plan.query_aware is not None:
            mask.index_copy_(1, plan.query_aware.heads, layer.query_aware(plan.query_aware))
            cost.index_fill_(1, plan.query_aware.heads, base + pooled_cost(grid))
        for group in plan.streaming:
            local = streaming_mask(grid, self._point.sink, group.length, device)
            mask.index_copy_(1, group.heads, local.expand(inputs.batch, len(group.plans), -1, -1))
        for group in plan.sampled:
            sampled = sampled_mask(inputs, group.heads, stride=group.length, gamma=group.gamma)
            mask.index_copy_(1, group.heads, sampled)
            cost.index_fill_(1, group.heads, base + sampled_cost(grid, group.length))
        if plan.borrow is not None:
            mask, branch = self._borrow(layer, plan.borrow, mask, branch)
        self._lend(layer, plan, mask)
        mass_heads = None
        if plan.dense_lenders is not None:
            mass_heads = plan.dense_lenders.heads.expand(inputs.batch, -1)
            cost.index_fill_(1, plan.dense_lenders.heads, base + exact_mass_cost(grid))
        return Decision(
            mask=mask,
            dense=plan.dense.expand(blocks[:2]),
            branch=branch,
            mass_heads=mass_heads,
            cost=cost,
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        lenders = self._tables.layer(inputs).dense_lenders
        if lenders is None:
            return
        assert mass is not None
        masks = inputs.kernels.gamma_mask(mass, lenders.gamma) | forced_blocks(
            inputs.grid, mass.device
        )
        for slot, plan in enumerate(lenders.plans):
            self._masks[plan.ref] = masks[:, slot]

    def _estimate(self, inputs: LayerInputs, plan: LayerPlan) -> LastBlockEstimate | None:
        """The last-block estimate, only where a head of this layer needs it."""
        guarded = self._guards(plan.borrow) or (self._point.drift is not None and plan.lenders)
        if not guarded and plan.vertical_slash is None and plan.query_aware is None:
            return None
        return inputs.kernels.last_block(inputs.q, inputs.k, inputs.grid, scale=inputs.scale)

    def _guards(self, group: BorrowGroup | None) -> bool:
        return self._point.drift is not None and group is not None

    def _borrow(
        self, layer: _Layer, group: BorrowGroup, mask: Tensor, branch: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The masks with those of the lenders, and the branches with those that have drifted."""
        kernels = layer.inputs.kernels
        shared = group.borrows.expand(branch.shape)
        if self._point.drift is not None:
            rows = torch.stack([self._rows[ref] for ref in group.lenders], dim=1)
            limit = _just_over(self._point.drift)
            shared = shared & kernels.close_rows(layer.rows(), rows, group.slot, limit=limit)
            drifted = group.borrows & ~shared
            branch = branch.masked_fill(drifted, Branch.VERTICAL_SLASH.value)
        lent = torch.stack([self._masks[ref] for ref in group.lenders], dim=1)
        return kernels.lend(mask, shared.contiguous(), lent, group.slot, None), branch

    def _lend(self, layer: _Layer, plan: LayerPlan, mask: Tensor) -> None:
        """Keep what this layer lends, and drop what no later layer borrows."""
        for ref in plan.lenders:
            # A copy: a view would keep the masks of the whole layer. Dense ones come later.
            self._masks[ref] = mask[:, ref.head].clone()
            if self._point.drift is not None:
                self._rows[ref] = layer.rows()[:, ref.head]
        for ref in plan.done:
            del self._masks[ref]
            self._rows.pop(ref, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """One layer's inputs with its estimate, and the masks that are made from it."""

    inputs: LayerInputs
    point: OperatingPoint
    estimate: LastBlockEstimate | None

    def rows(self) -> Tensor:
        """float32 [B, H, C], the last-row estimate of every head."""
        assert self.estimate is not None
        return self.estimate.block_sums(self.inputs.grid)[0]

    def vertical_slash(self, gamma: Tensor) -> Tensor:
        """bool [B, H, R, C] at gamma float32 [H]."""
        assert self.estimate is not None
        inputs = self.inputs
        return vertical_slash_at(
            self.point, inputs.kernels, self.estimate, inputs.grid, gamma=gamma
        )

    def query_aware(self, group: HeadGroup) -> Tensor:
        """bool [B, S, R, C], united with the minimum budget of vertical-slash."""
        assert self.estimate is not None
        inputs = self.inputs
        chosen = query_aware_mask(
            inputs.kernels,
            inputs.q,
            inputs.k,
            inputs.grid,
            gamma=group.gamma,
            scale=inputs.scale,
            heads=group.heads,
        )
        minimum = minimum_vertical_slash_mask(
            inputs.kernels,
            self.estimate,
            inputs.grid,
            min_budget=self.point.min_budget,
            slash_cover=self.point.slash_cover,
        )
        return chosen | minimum.index_select(1, group.heads)


def _just_over(limit: float) -> float:
    """The next float32 of a number that is not negative: what is under it is at most `limit`."""
    (bits,) = struct.unpack("i", struct.pack("f", limit))
    return float(struct.unpack("f", struct.pack("i", bits + 1))[0])
