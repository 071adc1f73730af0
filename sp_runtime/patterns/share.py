"""SharePrefill: heads of a cluster share the pattern of the first of them that runs.

Source: SharePrefill (arXiv 2505.19578), rule `paper`; the authors' code, rule `release`. The two
rules are switches of one implementation.

Parameters, with the published values: paper: gamma 0.9, tau 0.2, delta 0.3; release: tau 0.5, gamma
and phi 0.9 (0.95 in its benchmarks), kappa 0.1; both: min_budget 1024, blocks of 128.

Where this differs: any batch, query offsets, head counts and types; no step waits for the host; a
divergence of an empty bin is 0 where the authors' code gets NaN and falls back; delta and tau may
be quantiles of a calibration. Which clusters are enabled is the profile's evidence.
Legend: B batch, H heads, R x C blocks, S slots (the enabled clusters with members in this layer),
K enabled clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.kernels.base import LastBlockEstimate, Pivots
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import exact_mass_cost, last_block_cost, pooled_cost
from sp_runtime.patterns.query_aware import (
    add_query_aware,
    is_query_aware,
    query_aware_branch,
)
from sp_runtime.patterns.share_tables import ShareTables
from sp_runtime.patterns.vertical_slash import minimum_vertical_slash_mask, vertical_slash_at
from sp_runtime.selection import take_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What `decide` saw of a layer and `remember` needs for the pivots found in it.

    sums: float32 [2, B, H, C], block sums of the estimate. vertical_slash: bool [B, H, R, C].
    """

    sums: Tensor
    vertical_slash: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Alone:
    """What the heads of a layer take where they neither share nor become pivots.

    mask: bool [B, H, R, C]; branch: uint8 [B, H]; cost: float32 [B, H]. eligible: bool [B, H],
    heads that may share or become pivots. floor: bool [B, H, R, C] or None, blocks that a shared
    pattern is united with.
    """

    mask: Tensor
    branch: Tensor
    cost: Tensor
    eligible: Tensor
    floor: Tensor | None


class SharePattern:
    """One sequence's prefill under rule `paper` or `release`.

    A head borrows only from a pivot of an earlier layer. Of several heads that could become the
    pivot of a cluster in one layer the lowest does, and the others take vertical-slash, as do
    the heads of no enabled cluster. Every decision is taken on the device.
    """

    def __init__(self, *, point: OperatingPoint, tables: ShareTables) -> None:
        self._point = point
        self._tables = tables
        self._pivots: Pivots | None = None
        self._seen: _Seen | None = None

    def decide(self, inputs: LayerInputs) -> Decision:
        slots = self._tables.layer(inputs)
        alone, seen = self._without_sharing(inputs)
        self._seen = seen
        if slots is None:
            lead, device = alone.branch.shape, inputs.q.device
            return Decision(
                mask=alone.mask,
                dense=inputs.constants.full(tuple(lead), False, torch.bool, device),
                branch=alone.branch,
                mass_heads=None,
                cost=alone.cost,
            )
        if self._pivots is None:
            self._pivots = _no_pivots(inputs, self._tables.num_clusters)
        pivots, kernels = self._pivots, inputs.kernels
        roles = kernels.share_roles(
            alone.eligible,
            self._alike(inputs, seen, pivots, slots.head_cluster),
            pivots.known,
            slots,
            branch=alone.branch,
            cost=alone.cost,
            pivot_cost=exact_mass_cost(inputs.grid),
            shared_branch=Branch.SHARED.value,
            pivot_branch=Branch.PIVOT.value,
        )
        return Decision(
            mask=kernels.lend(
                alone.mask, roles.shared, pivots.mask, slots.head_cluster, alone.floor
            ),
            dense=roles.dense,
            branch=roles.branch,
            mass_heads=roles.heads,
            cost=roles.cost,
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        seen, self._seen = self._seen, None
        slots = self._tables.layer(inputs)
        heads = decision.mass_heads
        if slots is None or heads is None:
            return
        assert seen is not None
        assert mass is not None
        assert self._pivots is not None
        inputs.kernels.keep_pivots(
            self._pivots,
            heads,
            slots.cluster,
            pattern=inputs.kernels.gamma_mask(mass, self._point.gamma),
            sums=seen.sums,
            covered=self._covered(inputs, seen, mass, heads),
        )

    def _covered(self, inputs: LayerInputs, seen: _Seen, mass: Tensor, heads: Tensor) -> Tensor:
        """float32 [B, S]: share of each pivot's mass in its own vertical-slash; rule release."""
        if self._point.rule != "release":
            return inputs.constants.full(tuple(heads.shape), 0.0, mass.dtype, mass.device)
        # A head that lends is dense and shares nothing, so `lend` has left its blocks alone.
        covered = (mass * take_heads(seen.vertical_slash, heads)).sum((-2, -1))
        return covered / inputs.grid.num_rows  # every row of the mass sums to 1

    def _without_sharing(self, inputs: LayerInputs) -> tuple[_Alone, _Seen]:
        """What every head takes unless it shares, and whether it may."""
        point, grid = self._point, inputs.grid
        estimate = inputs.kernels.last_block(inputs.q, inputs.k, grid, scale=inputs.scale)
        vertical_slash = vertical_slash_at(point, inputs.kernels, estimate, grid)
        seen = _Seen(sums=estimate.block_sums(grid), vertical_slash=vertical_slash)
        if point.rule == "release":
            return self._release(inputs, estimate, vertical_slash), seen
        lead, device = (inputs.batch, inputs.num_heads), inputs.q.device
        full = inputs.constants.full
        alone = _Alone(
            mask=vertical_slash,
            branch=full(lead, Branch.VERTICAL_SLASH.value, torch.uint8, device),
            cost=full(lead, last_block_cost(grid), torch.float32, device),
            eligible=inputs.kernels.close_rows(seen.sums[0], None, None, limit=point.delta),
            floor=None,
        )
        return alone, seen

    def _release(
        self, inputs: LayerInputs, estimate: LastBlockEstimate, vertical_slash: Tensor
    ) -> _Alone:
        """Rule release: query-aware heads come first, and shared patterns have a floor."""
        point, grid = self._point, inputs.grid
        floor = minimum_vertical_slash_mask(
            inputs.kernels,
            estimate,
            grid,
            min_budget=point.min_budget,
            slash_cover=point.slash_cover,
        )
        means = inputs.kernels.pool(inputs.q, inputs.k, grid)
        chosen = is_query_aware(inputs, means, estimate, point.kappa)
        mask = torch.where(chosen[..., None, None], floor, vertical_slash)
        add_query_aware(inputs, means, chosen, mask, gamma=point.gamma)
        cost = last_block_cost(grid) + pooled_cost(grid)
        return _Alone(
            mask=mask,
            branch=query_aware_branch(inputs, chosen),
            cost=inputs.constants.full(tuple(chosen.shape), cost, torch.float32, chosen.device),
            eligible=~chosen,
            floor=floor,
        )

    def _alike(
        self, inputs: LayerInputs, seen: _Seen, pivots: Pivots, head_cluster: Tensor
    ) -> Tensor:
        """bool [B, H]: the head's estimate is close enough to that of its cluster's pivot."""
        point, close = self._point, inputs.kernels.close_rows
        alike = close(seen.sums[0], pivots.vertical, head_cluster, limit=point.tau)
        if point.rule == "release":
            alike &= close(seen.sums[1], pivots.slash, head_cluster, limit=point.tau)
            alike &= (pivots.covered < point.phi).index_select(1, head_cluster)
        return alike


def _no_pivots(inputs: LayerInputs, num_clusters: int) -> Pivots:
    lead, grid, device = (inputs.batch, num_clusters), inputs.grid, inputs.q.device
    blocks = (*lead, grid.num_rows, grid.num_cols)
    return Pivots(
        known=torch.zeros(lead, dtype=torch.bool, device=device),
        mask=torch.zeros(blocks, dtype=torch.bool, device=device),
        vertical=torch.zeros(*lead, grid.num_cols, device=device),
        slash=torch.zeros(*lead, grid.num_cols, device=device),
        covered=torch.zeros(lead, device=device),
    )
