"""SharePrefill: heads of a cluster share the pattern of the first of them that runs.

Source: SharePrefill (arXiv 2505.19578), rule `paper`; the authors' code, rule `release`. The two
rules are switches of one implementation. Legend: B batch, H heads, R x C blocks, S slots (the
enabled clusters with members in this layer), K enabled clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import exact_mass_cost, last_block_cost, pooled_cost
from sp_runtime.patterns.masks import block_sum, forced_blocks, gamma_mask, sqrt_jsd
from sp_runtime.patterns.query_aware import is_query_aware, query_aware_mask
from sp_runtime.patterns.share_tables import LayerSlots, ShareTables
from sp_runtime.patterns.vertical_slash import minimum_vertical_slash_mask, vertical_slash_at


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pivots:
    """What is known of each cluster's pivot; each sequence of the batch has its own.

    known: bool [B, K]. mask: bool [B, K, R, C], its gamma-mask with the forced blocks.
    vertical, slash: float32 [B, K, C], its last-block estimate in blocks.
    covered: float32 [B, K], share of its mass that its own vertical-slash blocks hold.
    """

    known: Tensor
    mask: Tensor
    vertical: Tensor
    slash: Tensor
    covered: Tensor

    @classmethod
    def none(cls, inputs: LayerInputs, num_clusters: int) -> _Pivots:
        lead, grid, device = (inputs.batch, num_clusters), inputs.grid, inputs.q.device
        blocks = (*lead, grid.num_rows, grid.num_cols)
        return cls(
            known=torch.zeros(lead, dtype=torch.bool, device=device),
            mask=torch.zeros(blocks, dtype=torch.bool, device=device),
            vertical=torch.zeros(*lead, grid.num_cols, device=device),
            slash=torch.zeros(*lead, grid.num_cols, device=device),
            covered=torch.zeros(lead, device=device),
        )

    def take(self, clusters: Tensor) -> _Pivots:
        """The pivots of some clusters, int64 [S], on dimension 1."""
        return _Pivots(
            known=self.known.index_select(1, clusters),
            mask=self.mask.index_select(1, clusters),
            vertical=self.vertical.index_select(1, clusters),
            slash=self.slash.index_select(1, clusters),
            covered=self.covered.index_select(1, clusters),
        )

    def update(self, clusters: Tensor, found: Tensor, new: _Pivots) -> None:
        """Write the pivots `new` of clusters [S] in place, where found (bool [B, S])."""
        for part in fields(self):
            state, value = getattr(self, part.name), getattr(new, part.name)
            where = found.view(*found.shape, *([1] * (value.dim() - 2)))
            merged = torch.where(where, value, state.index_select(1, clusters))
            state.index_copy_(1, clusters, merged)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What `decide` saw of a layer and `remember` needs for the pivots found in it."""

    vertical: Tensor
    slash: Tensor
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
        self._pivots: _Pivots | None = None
        self._seen: _Seen | None = None

    def decide(self, inputs: LayerInputs) -> Decision:
        slots = self._tables.layer(inputs)
        alone, seen = self._without_sharing(inputs)
        self._seen = seen
        if slots is None:
            return Decision(
                mask=alone.mask,
                dense=torch.zeros_like(alone.eligible),
                branch=alone.branch,
                mass_heads=None,
                cost=alone.cost,
            )
        if self._pivots is None:
            self._pivots = _Pivots.none(inputs, self._tables.num_clusters)
        # One entry for each head: the pivot of its cluster, arbitrary outside of clusters.
        pivots = self._pivots.take(slots.cluster.index_select(0, slots.slot))
        eligible = alone.eligible & slots.clustered
        pivot_heads, dense = _first_heads(eligible & ~pivots.known, slots)
        shared = eligible & pivots.known & self._alike(seen, pivots)
        lent = pivots.mask if alone.floor is None else pivots.mask | alone.floor
        branch = alone.branch.masked_fill(shared, Branch.SHARED.value)
        return Decision(
            mask=torch.where(shared[..., None, None], lent, alone.mask),
            dense=dense,
            branch=branch.masked_fill(dense, Branch.PIVOT.value),
            mass_heads=pivot_heads,
            cost=alone.cost + dense * exact_mass_cost(inputs.grid),
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
        pattern = gamma_mask(mass, self._point.gamma) | forced_blocks(inputs.grid, mass.device)
        covered = (mass * _take_heads(seen.vertical_slash, heads)).sum((-2, -1))
        found = _Pivots(
            known=torch.ones_like(heads, dtype=torch.bool),
            mask=pattern,
            vertical=_take_heads(seen.vertical, heads),
            slash=_take_heads(seen.slash, heads),
            covered=covered / inputs.grid.num_rows,  # every row of the mass sums to 1
        )
        self._pivots.update(slots.cluster, heads >= 0, found)

    def _without_sharing(self, inputs: LayerInputs) -> tuple[_Alone, _Seen]:
        """What every head takes unless it shares, and whether it may."""
        point, grid = self._point, inputs.grid
        estimate = inputs.kernels.last_block(inputs.q, inputs.k, grid, scale=inputs.scale)
        vertical_slash = vertical_slash_at(point, estimate, grid)
        seen = _Seen(
            vertical=block_sum(estimate.vertical, grid),
            slash=block_sum(estimate.slash, grid),
            vertical_slash=vertical_slash,
        )
        if point.rule == "release":
            return self._release(inputs, estimate, vertical_slash), seen
        uniform = torch.full_like(seen.vertical, 1 / grid.num_cols)
        eligible = sqrt_jsd(seen.vertical, uniform) < point.delta
        alone = _Alone(
            mask=vertical_slash,
            branch=torch.full_like(eligible, Branch.VERTICAL_SLASH.value, dtype=torch.uint8),
            cost=torch.full_like(eligible, last_block_cost(grid), dtype=torch.float32),
            eligible=eligible,
            floor=None,
        )
        return alone, seen

    def _release(
        self, inputs: LayerInputs, estimate: LastBlockEstimate, vertical_slash: Tensor
    ) -> _Alone:
        """Rule release: query-aware heads come first, and shared patterns have a floor."""
        point, grid = self._point, inputs.grid
        floor = minimum_vertical_slash_mask(
            estimate, grid, min_budget=point.min_budget, slash_cover=point.slash_cover
        )
        chosen = is_query_aware(inputs, estimate, point.kappa)
        pooled = query_aware_mask(inputs.q, inputs.k, grid, gamma=point.gamma, scale=inputs.scale)
        branch = torch.where(chosen, Branch.QUERY_AWARE.value, Branch.VERTICAL_SLASH.value)
        cost = last_block_cost(grid) + pooled_cost(grid)
        return _Alone(
            mask=torch.where(chosen[..., None, None], pooled | floor, vertical_slash),
            branch=branch.to(torch.uint8),
            cost=torch.full_like(chosen, cost, dtype=torch.float32),
            eligible=~chosen,
            floor=floor,
        )

    def _alike(self, seen: _Seen, pivots: _Pivots) -> Tensor:
        """bool [B, H]: the head's estimate is close enough to that of its cluster's pivot."""
        point = self._point
        alike = sqrt_jsd(pivots.vertical, seen.vertical) < point.tau
        if point.rule == "release":
            alike &= sqrt_jsd(pivots.slash, seen.slash) < point.tau
            alike &= pivots.covered < point.phi
        return alike


def _first_heads(candidates: Tensor, slots: LayerSlots) -> tuple[Tensor, Tensor]:
    """The lowest candidate of each slot: int64 [B, S] (-1: none), and as flags bool [B, H]."""
    num_heads = candidates.shape[1]
    heads = torch.arange(num_heads, device=candidates.device)
    of_slot = candidates[:, None] & slots.member  # [B, S, H]
    first = torch.where(of_slot, heads, num_heads).amin(-1)
    flags = (heads == first[..., None]).any(1)
    return torch.where(first < num_heads, first, -1), flags


def _take_heads(x: Tensor, heads: Tensor) -> Tensor:
    """x [B, H, ...] at heads int64 [B, S] -> [B, S, ...]; arbitrary where heads is -1."""
    index = heads.clamp(min=0).view(*heads.shape, *([1] * (x.dim() - 2)))
    return x.gather(1, index.expand(*heads.shape, *x.shape[2:]))
