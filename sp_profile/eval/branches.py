"""Which way each head took in the prefills of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.patterns.base import Branch
from sp_runtime.report import PrefillReport


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadBranches:
    """How many prefills took one branch at each head that the runtime computed.

    name: of `Branch`, lower-case. counts: one a head, in (layer, head) order.
    """

    name: str
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodBranches:
    """The branches of a method over all tasks and lengths; prefills: how many were counted."""

    method: str
    prefills: int
    branches: tuple[HeadBranches, ...]


class BranchTally:
    """Counts branches prefill by prefill."""

    def __init__(self) -> None:
        self._taken: list[Tensor] = []

    def add(self, taken: Tensor | None) -> None:
        """Take one prefill's branches, as `branches_of` gives them; None counts as nothing."""
        if taken is not None:
            self._taken.append(taken)

    def result(self) -> tuple[HeadBranches, ...]:
        """Branches that some head took, in the order of `Branch`."""
        if not self._taken:
            return ()
        taken = torch.stack(self._taken)
        counts = {branch: (taken == branch).sum(0) for branch in Branch}
        return tuple(
            HeadBranches(name=branch.name.lower(), counts=tuple(count.tolist()))
            for branch, count in counts.items()
            if bool(count.any())
        )


def branches_of(report: PrefillReport | None, num_heads: int) -> Tensor | None:
    """uint8 [heads of the runtime's layers] on the host: the branches of the first forward.

    None where there is no report, or the whole forward was dense.
    """
    if report is None or not report.forwards or not report.forwards[0].layers:
        return None
    dense = torch.full((num_heads,), Branch.DENSE, dtype=torch.uint8)
    layers = report.forwards[0].layers
    return torch.cat([dense if one.branch is None else one.branch[0].cpu() for one in layers])


def summed(method: str, cells: Iterable[tuple[HeadBranches, ...]]) -> MethodBranches | None:
    """Over the cells of a method; None where none of them recorded any branch."""
    totals: dict[str, list[int]] = {}
    for branch in (branch for cell in cells for branch in cell):
        known = totals.setdefault(branch.name, [0] * len(branch.counts))
        totals[branch.name] = [a + b for a, b in zip(known, branch.counts, strict=True)]
    if not totals:
        return None
    order = [branch.name.lower() for branch in Branch]
    return MethodBranches(
        method=method,
        prefills=sum(counts[0] for counts in totals.values()),
        branches=tuple(
            HeadBranches(name=name, counts=tuple(totals[name]))
            for name in sorted(totals, key=order.index)
        ),
    )
