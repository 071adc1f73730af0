"""Rule `plan`: every head computes what the profile's plan assigns to it.

The assignments were chosen on calibration prompts for the fewest blocks at a recall floor; here
they are executed as written, with an optional guard against lenders that have drifted away from
their borrowers. Legend: B batch, H heads, R x C blocks, S heads of a group.
"""

from __future__ import annotations

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
from sp_runtime.patterns.masks import block_sum, forced_blocks, gamma_mask, sqrt_jsd
from sp_runtime.patterns.plan_tables import HeadGroup, LayerPlan, PlanTables
from sp_runtime.patterns.query_aware import query_aware_mask
from sp_runtime.patterns.sampled import sampled_mask
from sp_runtime.patterns.streaming import streaming_mask
from sp_runtime.patterns.vertical_slash import (
    minimum_vertical_slash_mask,
    select_heads,
    vertical_slash_at,
)


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
        mask = torch.zeros(blocks, dtype=torch.bool, device=device)
        branch = plan.branch.repeat(inputs.batch, 1)
        base = 0.0 if layer.estimate is None else last_block_cost(grid)
        cost = torch.full(blocks[:2], base, device=device)
        if plan.vertical_slash is not None:
            mask.index_copy_(
                1, plan.vertical_slash.heads, layer.vertical_slash(plan.vertical_slash)
            )
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
            self._borrow(layer, plan.borrow, mask, branch)
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
        masks = gamma_mask(mass, lenders.gamma) | forced_blocks(inputs.grid, mass.device)
        for slot, plan in enumerate(lenders.plans):
            self._masks[plan.ref] = masks[:, slot]

    def _estimate(self, inputs: LayerInputs, plan: LayerPlan) -> LastBlockEstimate | None:
        """The last-block estimate, only where a head of this layer needs it."""
        guarded = self._point.drift is not None and (plan.borrow is not None or plan.lenders)
        if not guarded and plan.vertical_slash is None and plan.query_aware is None:
            return None
        return inputs.kernels.last_block(inputs.q, inputs.k, inputs.grid, scale=inputs.scale)

    def _borrow(self, layer: _Layer, group: HeadGroup, mask: Tensor, branch: Tensor) -> None:
        """Write the masks of the borrowers, and the branch of those that have drifted."""
        lenders = [plan.lender for plan in group.plans if plan.lender is not None]
        lent = torch.stack([self._masks[ref] for ref in lenders], dim=1)
        if self._point.drift is not None:
            rows = torch.stack([self._rows[ref] for ref in lenders], dim=1)
            distance = sqrt_jsd(layer.rows().index_select(1, group.heads), rows)
            drifted = distance > self._point.drift
            lent = torch.where(drifted[..., None, None], layer.vertical_slash(group), lent)
            code = torch.where(drifted, Branch.VERTICAL_SLASH.value, Branch.SHARED.value)
            branch.index_copy_(1, group.heads, code.to(torch.uint8))
        mask.index_copy_(1, group.heads, lent)

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
        return block_sum(self.estimate.vertical, self.inputs.grid)

    def vertical_slash(self, group: HeadGroup) -> Tensor:
        """bool [B, S, R, C]."""
        assert self.estimate is not None
        estimate = select_heads(self.estimate, group.heads)
        return vertical_slash_at(self.point, estimate, self.inputs.grid, gamma=group.gamma)

    def query_aware(self, group: HeadGroup) -> Tensor:
        """bool [B, S, R, C], united with the minimum budget of vertical-slash."""
        assert self.estimate is not None
        inputs = self.inputs
        chosen = query_aware_mask(
            inputs.q,
            inputs.k,
            inputs.grid,
            gamma=group.gamma,
            scale=inputs.scale,
            heads=group.heads,
        )
        return chosen | minimum_vertical_slash_mask(
            select_heads(self.estimate, group.heads),
            inputs.grid,
            min_budget=self.point.min_budget,
            slash_cover=self.point.slash_cover,
        )
