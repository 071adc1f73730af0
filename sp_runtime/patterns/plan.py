"""Rule `plan`: every head computes what the profile's plan assigns to it.

The assignments were chosen on calibration prompts for the fewest blocks at a recall floor; here
they are executed as written, with an optional guard against lenders that have drifted away from
their borrowers. Masks lie in one store, in which lenders write before their borrowers read, so
that a borrowed mask costs neither a copy nor a launch. Legend: B batch, H heads, R x C blocks,
K masks of the store, S heads of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sp_runtime.kernels.base import BorrowRoles, LastBlockEstimate
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.plan_tables import HeadGroup, LayerPlan, PlanTables
from sp_runtime.patterns.sampled import sampled_mask
from sp_runtime.patterns.streaming import streaming_masks
from sp_runtime.patterns.vertical_slash import vertical_slash_at

if TYPE_CHECKING:
    from sp_runtime.profile import HeadRef


@dataclass(frozen=True, kw_only=True, slots=True)
class _Store:
    """What passes from layer to layer: masks bool [B, K, R, C], numbered by `PlanSlots`, and with
    `drift` the last-row estimates of lenders, float32 [B, lenders, C].
    """

    masks: Tensor
    rows: Tensor | None


class PlanPattern:
    """One sequence's prefill under the plan.

    A sampled lender lends its mask, to heads of its own layer as well, a dense one the gamma-mask
    of its exact block mass. With `point.drift` a borrower whose last-row estimate lies further
    than that from its lender's unites the mask with its own minimum-budget vertical-slash, and
    beyond `point.drift_widen` times as far it takes vertical-slash at its own gamma instead.
    """

    def __init__(self, *, point: OperatingPoint, tables: PlanTables) -> None:
        self._point = point
        self._tables = tables
        self._store: _Store | None = None
        self._lent: set[HeadRef] = set()

    def decide(self, inputs: LayerInputs) -> Decision:
        plan = self._tables.layer(inputs)
        if self._store is None:
            self._store = self._new_store(inputs)
        store = self._store
        # Dense lenders write when their layer is done, sampled ones below.
        assert plan.needs <= self._lent | plan.lends, "layers come in order"
        self._lent |= plan.lends
        estimate = self._estimate(inputs, plan)
        roles = self._guard(inputs, plan, store, estimate)
        if roles is not None or plan.vertical_slash:
            gamma = plan.gamma if roles is None else roles.gamma
            self._vertical_slash(inputs, store, estimate, gamma)
        if plan.query_aware is not None:
            self._query_aware(inputs, store, plan.query_aware)
        if plan.sampled is not None:
            sampled_mask(
                inputs,
                plan.sampled.heads,
                stride=plan.sampled.strides,
                gamma=plan.sampled.gamma,
                row_slack=self._point.row_slack,
                local_blocks=self._point.local_blocks,
                out=store.masks,
                slots=plan.sampled.slots,
            )
        if roles is not None:
            inputs.kernels.unite(store.masks, roles.slots, roles.onto)
        mass_heads = None
        if plan.dense_lenders is not None:
            mass_heads = plan.dense_lenders.heads.expand(inputs.batch, -1)
        return Decision(
            mask=store.masks,
            slots=plan.slots if roles is None else roles.slots,
            dense=plan.dense,
            branch=plan.branch if roles is None else roles.branch,
            mass_heads=mass_heads,
            cost=self._tables.cost(inputs, estimated=estimate is not None),
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        lenders = self._tables.layer(inputs).dense_lenders
        if lenders is None:
            return
        assert mass is not None
        assert self._store is not None
        inputs.kernels.gamma_mask(
            mass,
            lenders.gamma,
            local_blocks=self._point.local_blocks,
            out=self._store.masks,
            slots=lenders.slots,
        )

    def _new_store(self, inputs: LayerInputs) -> _Store:
        slots, grid, device = self._tables.slots, inputs.grid, inputs.q.device
        shape = (inputs.batch, slots.total, grid.num_rows, grid.num_cols)
        masks = torch.zeros(shape, dtype=torch.bool, device=device)
        if slots.windows:
            reaches = self._tables.reaches(inputs)
            masks[:, : slots.first_lender] = streaming_masks(grid, self._point.sink, reaches)
        rows = None
        if self._point.drift is not None:
            rows = torch.empty(inputs.batch, slots.num_lenders, grid.num_cols, device=device)
        return _Store(masks=masks, rows=rows)

    def _estimate(self, inputs: LayerInputs, plan: LayerPlan) -> LastBlockEstimate | None:
        """The last-block estimate, only where a head of this layer needs it."""
        shares = plan.borrowing is not None or plan.lenders is not None
        if not plan.vertical_slash and (self._point.drift is None or not shares):
            return None
        return inputs.kernels.last_block(inputs.q, inputs.k, inputs.grid, scale=inputs.scale)

    def _guard(
        self,
        inputs: LayerInputs,
        plan: LayerPlan,
        store: _Store,
        estimate: LastBlockEstimate | None,
    ) -> BorrowRoles | None:
        """What becomes of the borrowers, where they are guarded; keeps the rows of lenders."""
        drift = self._point.drift
        if drift is None or estimate is None or store.rows is None:
            return None
        rows = estimate.block_sums(inputs.grid)[0]
        if plan.lenders is not None:
            lent = rows.index_select(1, plan.lenders.heads)
            store.rows.index_copy_(1, plan.lenders.slots, lent)
        if plan.borrowing is None:
            return None
        return inputs.kernels.borrow_roles(
            rows,
            store.rows,
            plan.borrowing,
            near=drift,
            far=drift * self._point.drift_widen,
            widened_branch=Branch.WIDENED.value,
            fallback_branch=Branch.VERTICAL_SLASH.value,
        )

    def _vertical_slash(
        self,
        inputs: LayerInputs,
        store: _Store,
        estimate: LastBlockEstimate | None,
        gamma: Tensor,
    ) -> None:
        """Every head's own mask at gamma float32 [H] or [B, H], 0 for the minimum budget."""
        assert estimate is not None
        first = self._tables.slots.first_own
        vertical_slash_at(
            self._point,
            inputs.kernels,
            estimate,
            inputs.grid,
            gamma=gamma,
            out=store.masks[:, first : first + inputs.num_heads],
        )

    def _query_aware(self, inputs: LayerInputs, store: _Store, group: HeadGroup) -> None:
        """Unite the minimum budgets that lie there already with the pooled choice."""
        kernels, grid = inputs.kernels, inputs.grid
        means = kernels.pool(inputs.q, inputs.k, grid, heads=group.heads)
        kernels.query_aware(
            means,
            grid,
            gamma=group.gamma,
            scale=inputs.scale,
            onto=store.masks,
            slots=group.slots,
        )
