"""The per-head plan of a profile, grouped by layer and assignment, on the device of the prefill."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import ProfileMismatchError
from sp_runtime.kernels.base import Borrowing
from sp_runtime.patterns.base import Branch, LayerInputs
from sp_runtime.patterns.cost import exact_mass_cost, last_block_cost, pooled_cost, sampled_cost
from sp_runtime.patterns.plan_slots import PlanSlots
from sp_runtime.patterns.share_tables import remembered, require_block_size, upload
from sp_runtime.patterns.streaming import reach

if TYPE_CHECKING:
    from sp_runtime.profile import HeadPlan, HeadRef

_BRANCH = {
    "dense": Branch.DENSE,
    "vertical_slash": Branch.VERTICAL_SLASH,
    "query_aware": Branch.QUERY_AWARE,
    "streaming": Branch.STREAMING,
    "sampled": Branch.SAMPLED,
    "borrow": Branch.SHARED,
}
_KEPT_COSTS = 64  # grids whose costs are kept: those of a prompt in chunks

# Of each layer, without and with the last-block estimate: float32 [B, H].
_Costs = dict[tuple[int, bool], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadGroup:
    """Heads of one layer that one vectorised call serves.

    heads: int64 [S]. gamma: float32 [S]. slots: int64 [S], where their masks go. strides: in
    queries, of each head if they are sampled, in ascending order.
    """

    heads: Tensor
    gamma: Tensor
    slots: Tensor
    strides: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPlan:
    """One layer of the plan; H heads of each of B sequences.

    branch: uint8 [B, H]. dense: bool [B, H]. slots: int64 [B, H], where each head's mask lies.
    gamma: float32 [H], that of vertical-slash heads, and 0 of the others. vertical_slash: a head
    takes it, or is united with it. query_aware, sampled: their heads. dense_lenders: dense heads
    whose exact mass a later layer borrows. borrowing: of the heads that borrow, None without any.
    lenders: heads of this layer that lend, None without any; their slots count lenders alone.
    lends, needs: the lenders of this layer, and those that it borrows from.
    """

    branch: Tensor
    dense: Tensor
    slots: Tensor
    gamma: Tensor
    vertical_slash: bool
    query_aware: HeadGroup | None
    sampled: HeadGroup | None
    dense_lenders: HeadGroup | None
    borrowing: Borrowing | None
    lenders: HeadGroup | None
    lends: frozenset[HeadRef]
    needs: frozenset[HeadRef]


class PlanTables:
    """The plan of a profile; each layer's tensors are made once for each device.

    block_size: the one that the plan was measured at.
    A lender in one of the first `dense_layers` layers, which no pattern sees, has nothing to
    lend: its borrowers are vertical-slash at their own gamma, and reported so.
    """

    def __init__(self, heads: Iterable[HeadPlan], *, block_size: int, dense_layers: int) -> None:
        self._block_size = block_size
        self._layers: dict[int, list[HeadPlan]] = {}
        self._dense_layers = dense_layers
        for plan in sorted(heads, key=lambda plan: plan.ref):
            self._layers.setdefault(plan.layer, []).append(plan)
        seen = [
            plan for layer, plans in self._layers.items() for plan in plans if layer >= dense_layers
        ]
        self.slots = PlanSlots.of((plan, self._assignment(plan)) for plan in seen)
        self._cache: dict[tuple[int, int, int, torch.device], LayerPlan] = {}
        self._costs: dict[tuple[int, BlockGrid, torch.device], _Costs] = {}
        self._reaches: dict[torch.device, Tensor] = {}

    def layer(self, inputs: LayerInputs) -> LayerPlan:
        """One layer's plan.

        Raises:
            UsageError: the block size is not the profile's.
            ProfileMismatchError: the plan does not name every head of the layer once.
        """
        require_block_size(self._block_size, inputs.grid.block_size)
        key = (inputs.layer, inputs.batch, inputs.num_heads, inputs.q.device)
        return remembered(self._cache, key, inputs, lambda: self._build(*key))

    def cost(self, inputs: LayerInputs, *, estimated: bool) -> Tensor:
        """float32 [B, H], what the estimates of a layer cost each head.

        estimated: with the last-block estimate, which all heads of a layer get at once.
        """
        key = (inputs.batch, inputs.grid, inputs.q.device)
        if key not in self._costs and len(self._costs) >= _KEPT_COSTS:
            self._costs = {}  # another thread may still read the old ones
        costs = remembered(self._costs, key, inputs, lambda: self._costs_of(*key))
        return costs[inputs.layer, estimated]

    def reaches(self, inputs: LayerInputs) -> Tensor:
        """int64 [W], the `streaming.reach` of each window of the plan."""
        device = inputs.q.device

        def make() -> Tensor:
            reaches = [reach(inputs.grid, window) for window in self.slots.windows]
            return _table(reaches, torch.int64, device)

        return remembered(self._reaches, device, inputs, make)

    def _costs_of(self, batch: int, grid: BlockGrid, device: torch.device) -> _Costs:
        """In one copy to the device: every length of a prompt has costs of its own."""
        base = last_block_cost(grid)
        own = {
            layer: [self._own_cost(plan, grid) for plan in plans]
            for layer, plans in self._layers.items()
        }
        costs = [cost + shift for shift in (0.0, base) for layer in own.values() for cost in layer]
        table = _table(costs, torch.float32, device).expand(batch, -1)
        pieces = table.split([len(layer) for layer in own.values()] * 2, dim=1)
        keys = [(layer, estimated) for estimated in (False, True) for layer in own]
        return dict(zip(keys, pieces, strict=True))

    def _own_cost(self, plan: HeadPlan, grid: BlockGrid) -> float:
        if plan.assignment == "query_aware":
            return pooled_cost(grid)
        if plan.assignment == "sampled":
            assert plan.stride is not None
            return sampled_cost(grid, plan.stride)
        lends = plan.assignment == "dense" and plan.ref in self.slots.lender
        return exact_mass_cost(grid) if lends else 0.0

    def _assignment(self, plan: HeadPlan) -> str:
        if plan.lender is not None and plan.lender.layer < self._dense_layers:
            return "vertical_slash"
        return plan.assignment

    def _build(self, layer: int, batch: int, num_heads: int, device: torch.device) -> LayerPlan:
        plans = self._layers.get(layer, [])
        if [plan.head for plan in plans] != list(range(num_heads)):
            raise ProfileMismatchError(
                f"the plan names {len(plans)} heads in layer {layer}, the model {num_heads}",
                hint="use the profile that was made from this model",
            )
        kinds = [self._assignment(plan) for plan in plans]
        lent = self.slots.lender
        slots = [self.slots.of_head(plan, kind) for plan, kind in zip(plans, kinds, strict=True)]
        branch = [
            Branch.PIVOT if kind == "dense" and plan.ref in lent else _BRANCH[kind]
            for plan, kind in zip(plans, kinds, strict=True)
        ]
        gamma = [
            plan.gamma if kind == "vertical_slash" else 0.0
            for plan, kind in zip(plans, kinds, strict=True)
        ]

        def group(chosen: list[HeadPlan], *, first: int = 0) -> HeadGroup | None:
            """first: the slot that counts as 0."""
            if not chosen:
                return None
            return HeadGroup(
                heads=_table([plan.head for plan in chosen], torch.int64, device),
                gamma=_table([plan.gamma for plan in chosen], torch.float32, device),
                slots=_table([slots[plan.head] - first for plan in chosen], torch.int64, device),
                strides=tuple(plan.stride for plan in chosen if plan.stride is not None),
            )

        sampled = [plan for plan in plans if plan.assignment == "sampled"]
        lenders = [plan for plan in plans if plan.ref in lent]
        tables = (
            _table(slots, torch.int64, device),
            _table(gamma, torch.float32, device),
            _table(branch, torch.uint8, device),
        )
        return LayerPlan(
            slots=tables[0].expand(batch, -1),
            gamma=tables[1],
            branch=tables[2].expand(batch, -1),
            dense=_table([kind == "dense" for kind in kinds], torch.bool, device).expand(batch, -1),
            vertical_slash="vertical_slash" in kinds or "query_aware" in kinds,
            query_aware=group([plan for plan in plans if plan.assignment == "query_aware"]),
            sampled=group(sorted(sampled, key=lambda plan: plan.stride or 0)),
            dense_lenders=group([plan for plan in lenders if plan.assignment == "dense"]),
            borrowing=self._borrowing(plans, kinds, tables, device),
            lenders=group(lenders, first=self.slots.first_lender),
            lends=frozenset(plan.ref for plan in lenders),
            needs=frozenset(
                plan.lender
                for plan, kind in zip(plans, kinds, strict=True)
                if plan.lender is not None and kind == "borrow"
            ),
        )

    def _borrowing(
        self,
        plans: list[HeadPlan],
        kinds: list[str],
        tables: tuple[Tensor, Tensor, Tensor],
        device: torch.device,
    ) -> Borrowing | None:
        if "borrow" not in kinds:
            return None
        slots, gamma, branch = tables
        borrows = [kind == "borrow" for kind in kinds]
        lenders = [
            self.slots.lender[plan.lender] if on and plan.lender is not None else 0
            for plan, on in zip(plans, borrows, strict=True)
        ]
        own = [self.slots.first_own + plan.head for plan in plans]
        return Borrowing(
            borrows=_table(borrows, torch.bool, device),
            row=_table(lenders, torch.int64, device),
            slots=slots,
            own=_table(own, torch.int64, device),
            gamma=gamma,
            fallback=_table([plan.gamma for plan in plans], torch.float32, device),
            branch=branch,
        )


@functools.lru_cache(maxsize=16)
def plan_tables(heads: tuple[HeadPlan, ...], *, block_size: int, dense_layers: int) -> PlanTables:
    """The tables of a plan; attaching a model once more finds them on its device."""
    return PlanTables(heads, block_size=block_size, dense_layers=dense_layers)


def _table(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    return upload(torch.tensor(values, dtype=dtype), device)
