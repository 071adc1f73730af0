"""Where the masks of a plan lie: one store for a forward, so that lending a mask copies nothing.

Streaming masks, which every layer shares, come first; then the masks of lenders, a place of which
is free again after the layer of its last borrower; then a mask for each head, which every layer
writes anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sp_runtime.profile import HeadPlan, HeadRef


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSlots:
    """The places of a plan's masks.

    windows: of the streaming masks, ascending, in tokens. lender: place of each head that lends
    among the lenders. num_lenders: places of lenders. num_heads: of a layer, at most.
    """

    windows: tuple[int, ...]
    lender: dict[HeadRef, int]
    num_lenders: int
    num_heads: int

    @classmethod
    def of(cls, plans: Iterable[tuple[HeadPlan, str]]) -> PlanSlots:
        """Of heads with what they take, in (layer, head) order."""
        listed = list(plans)
        last_use: dict[HeadRef, int] = {}
        for plan, kind in listed:
            if kind == "borrow" and plan.lender is not None:
                last_use[plan.lender] = plan.layer
        free_from: list[int] = []  # the first layer in which each place may be written
        place: dict[HeadRef, int] = {}
        for ref in sorted(last_use):
            free = [slot for slot, layer in enumerate(free_from) if layer <= ref.layer]
            slot = free[0] if free else len(free_from)
            free_from[slot : slot + 1] = [last_use[ref] + 1]
            place[ref] = slot
        return cls(
            windows=tuple(sorted({plan.window for plan, _ in listed if plan.window is not None})),
            lender=place,
            num_lenders=len(free_from),
            num_heads=max((plan.head + 1 for plan, _ in listed), default=0),
        )

    @property
    def first_lender(self) -> int:
        return len(self.windows)

    @property
    def first_own(self) -> int:
        return self.first_lender + self.num_lenders

    @property
    def total(self) -> int:
        return self.first_own + self.num_heads

    def of_head(self, plan: HeadPlan, kind: str) -> int:
        """Where the mask of a head lies that takes `kind`; dense heads have one as well."""
        if kind == "streaming":
            assert plan.window is not None
            return self.windows.index(plan.window)
        source = plan.lender if kind == "borrow" else plan.ref
        if source in self.lender:
            return self.first_lender + self.lender[source]
        return self.first_own + plan.head
