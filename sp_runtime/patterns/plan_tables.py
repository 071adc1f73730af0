"""The per-head plan of a profile, grouped by layer and assignment, on the device of the prefill."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sp_runtime.errors import ProfileMismatchError
from sp_runtime.patterns.base import Branch, LayerInputs
from sp_runtime.patterns.share_tables import require_block_size, upload

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


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadGroup:
    """Heads of one layer that one vectorised call serves.

    plans: their plans, in head order. heads: int64 [S]. gamma: float32 [S]. length: the window in
    tokens (streaming) or the stride in queries (sampled) that they have in common, else 0.
    """

    plans: tuple[HeadPlan, ...]
    heads: Tensor
    gamma: Tensor
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BorrowGroup:
    """The heads of one layer that borrow: bool [H], and for each its place in `lenders`: int64 [H],
    0 elsewhere.
    """

    borrows: Tensor
    slot: Tensor
    lenders: tuple[HeadRef, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPlan:
    """One layer of the plan.

    branch: uint8 [H]. dense: bool [H]. gamma: float32 [H], of every head. The other groups are None
    or empty where no head is assigned to them. dense_lenders: dense heads whose exact mass a later
    layer borrows. lenders: all heads of this layer that lend. done: lenders that no later layer
    needs.
    """

    branch: Tensor
    dense: Tensor
    gamma: Tensor
    vertical_slash: HeadGroup | None
    query_aware: HeadGroup | None
    streaming: tuple[HeadGroup, ...]
    sampled: tuple[HeadGroup, ...]
    borrow: BorrowGroup | None
    dense_lenders: HeadGroup | None
    lenders: tuple[HeadRef, ...]
    done: tuple[HeadRef, ...]


class PlanTables:
    """The plan of a profile; each layer's tensors are made once for each device.

    block_size: the one that the plan was measured at.
    A lender in one of the first `dense_layers` layers, which no pattern sees, has nothing to
    lend: its borrowers are vertical-slash at their own gamma, and reported so.
    """

    def __init__(self, heads: Iterable[HeadPlan], *, block_size: int, dense_layers: int) -> None:
        self._block_size = block_size
        self._layers: dict[int, list[HeadPlan]] = {}
        self._last_use: dict[HeadRef, int] = {}
        self._dense_layers = dense_layers
        for plan in heads:
            self._layers.setdefault(plan.layer, []).append(plan)
            if plan.lender is not None and self._assignment(plan) == "borrow":
                last = self._last_use.get(plan.lender, plan.layer)
                self._last_use[plan.lender] = max(last, plan.layer)
        self._cache: dict[tuple[int, int, torch.device], LayerPlan] = {}

    def layer(self, inputs: LayerInputs) -> LayerPlan:
        """One layer's plan.

        Raises:
            UsageError: the block size is not the profile's.
            ProfileMismatchError: the plan does not name every head of the layer once.
        """
        require_block_size(self._block_size, inputs.grid.block_size)
        key = (inputs.layer, inputs.num_heads, inputs.q.device)
        if key not in self._cache:
            self._cache[key] = self._build(*key)
        return self._cache[key]

    def _assignment(self, plan: HeadPlan) -> str:
        if plan.lender is not None and plan.lender.layer < self._dense_layers:
            return "vertical_slash"
        return plan.assignment

    def _build(self, layer: int, num_heads: int, device: torch.device) -> LayerPlan:
        plans = sorted(self._layers.get(layer, []), key=lambda plan: plan.head)
        if [plan.head for plan in plans] != list(range(num_heads)):
            raise ProfileMismatchError(
                f"the plan names {len(plans)} heads in layer {layer}, the model {num_heads}",
                hint="use the profile that was made from this model",
            )
        kinds = [self._assignment(plan) for plan in plans]
        lends = [plan.ref in self._last_use for plan in plans]
        branch = [
            Branch.PIVOT if kind == "dense" and lent else _BRANCH[kind]
            for kind, lent in zip(kinds, lends, strict=True)
        ]

        def groups(
            kind: str, length: Callable[[HeadPlan], int | None] = lambda _: 0
        ) -> tuple[HeadGroup, ...]:
            chosen = [plan for plan, at in zip(plans, kinds, strict=True) if at == kind]
            lengths = sorted({length(plan) or 0 for plan in chosen})
            return tuple(
                _group([plan for plan in chosen if (length(plan) or 0) == each], each, device)
                for each in lengths
            )

        dense_lenders = [
            plan
            for plan, kind, lent in zip(plans, kinds, lends, strict=True)
            if kind == "dense" and lent
        ]
        return LayerPlan(
            branch=upload(torch.tensor(branch, dtype=torch.uint8), device),
            dense=upload(torch.tensor([kind == "dense" for kind in kinds]), device),
            gamma=upload(torch.tensor([plan.gamma for plan in plans], dtype=torch.float32), device),
            vertical_slash=next(iter(groups("vertical_slash")), None),
            query_aware=next(iter(groups("query_aware")), None),
            streaming=groups("streaming", lambda plan: plan.window),
            sampled=groups("sampled", lambda plan: plan.stride),
            borrow=_borrowers(plans, kinds, device),
            dense_lenders=_group(dense_lenders, 0, device) if dense_lenders else None,
            lenders=tuple(plan.ref for plan, lent in zip(plans, lends, strict=True) if lent),
            done=tuple(ref for ref, last in self._last_use.items() if last == layer),
        )


def _borrowers(plans: list[HeadPlan], kinds: list[str], device: torch.device) -> BorrowGroup | None:
    borrows = [kind == "borrow" for kind in kinds]
    lent = [p.lender if on else None for p, on in zip(plans, borrows, strict=True)]
    lenders = list(dict.fromkeys(ref for ref in lent if ref is not None))
    if not lenders:
        return None
    return BorrowGroup(
        borrows=upload(torch.tensor(borrows), device),
        slot=upload(torch.tensor([0 if r is None else lenders.index(r) for r in lent]), device),
        lenders=tuple(lenders),
    )


def _group(plans: list[HeadPlan], length: int, device: torch.device) -> HeadGroup:
    return HeadGroup(
        plans=tuple(plans),
        heads=upload(torch.tensor([plan.head for plan in plans]), device),
        gamma=upload(torch.tensor([plan.gamma for plan in plans], dtype=torch.float32), device),
        length=length,
    )
