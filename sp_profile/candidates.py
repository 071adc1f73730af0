"""The ways a head could be computed that calibration measures, so that planning can choose.

Every candidate's mask comes from the runtime's own pattern code: what is measured is what runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from sp_runtime.errors import UsageError
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.operating_point import SlashCover, default_point
from sp_runtime.patterns.base import LayerInputs, Pattern
from sp_runtime.patterns.cost import last_block_cost, pooled_cost, sampled_cost
from sp_runtime.patterns.masks import forced_blocks, spread_gamma_masks
from sp_runtime.patterns.query_aware import query_aware_masks
from sp_runtime.patterns.registry import make_pattern_factory
from sp_runtime.patterns.streaming import streaming_mask
from sp_runtime.patterns.vertical_slash import (
    minimum_vertical_slash_mask,
    vertical_slash_masks,
)
from sp_runtime.strict_json import OPTIONAL

CandidateKind = Literal[
    "vertical_slash", "query_aware", "streaming", "sampled", "flexprefill", "xattention"
]
PEERS: tuple[CandidateKind, ...] = ("flexprefill", "xattention")
"""Measured beside the plan, for all heads alike; no plan assigns them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One way to compute a head; the fields that its kind does not use are None (gamma: 1).

    gamma: cumulative attention threshold in (0, 1], tau of `xattention`. stride: every stride-th
    query (`sampled`). window: tokens of local attention (`streaming`).
    """

    assignment: CandidateKind
    gamma: float = 1.0
    stride: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise UsageError(f"gamma {self.gamma} is not in (0, 1]", hint="try 0.9")
        if (self.stride is not None) != (self.assignment == "sampled"):
            raise UsageError("a stride belongs to `sampled`, and only there")
        if (self.window is not None) != (self.assignment == "streaming"):
            raise UsageError("a window belongs to `streaming`, and only there")


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskSettings:
    """The settings that all candidates of a run share, as in `OperatingPoint`.

    local_blocks: of the masks of block mass, sampled and exact; runs of earlier releases kept none.
    row_slack: of sampled masks and of the exact ones that are the ceiling; 1 in earlier releases.
    """

    min_budget: int = 1024
    max_budget: int | None = None
    slash_cover: SlashCover = "both"
    sink: int = 128
    local_blocks: int = field(default=0, metadata=OPTIONAL)
    row_slack: float = field(default=1.0, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class LentMask:
    """A sampled mask that other heads may borrow. stride: every stride-th query; gamma: of it."""

    gamma: float
    stride: int


def default_candidates(*, gamma: float = 0.9, stride: int = 16) -> tuple[Candidate, ...]:
    """The grid that calibration measures; the run's own gamma and stride are always in it.

    Shorter strides are otherwise left out: at 8, sampling alone costs a sixteenth of dense
    attention, and no recall was cheaper with it than with 16.
    """

    def grid(*gammas: float) -> list[float]:
        return sorted({*gammas, gamma})

    return (
        *(Candidate(assignment="vertical_slash", gamma=g) for g in grid(0.7, 0.8, 0.9, 0.95, 0.98)),
        *(Candidate(assignment="query_aware", gamma=g) for g in grid(0.8, 0.9, 0.95, 0.98)),
        *(Candidate(assignment="streaming", window=w) for w in (256, 1024, 4096)),
        *(
            Candidate(assignment="sampled", gamma=g, stride=s)
            for s in sorted({16, 32, 64, stride})
            for g in grid(0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.965, 0.98)
        ),
    )


def peer_candidates() -> tuple[Candidate, ...]:
    """Published methods at several thresholds, their other settings as published."""
    return tuple(
        Candidate(assignment=kind, gamma=gamma)
        for kind in PEERS
        for gamma in (0.7, 0.8, 0.9, 0.95, 0.98)
    )


def default_lending(*, gamma: float = 0.9, stride: int = 16) -> tuple[LentMask, ...]:
    """Masks measured as lent ones beside those at the run's own gamma and stride.

    Sampled at every 32nd query: a lender's estimate costs half of that at every 16th. The gammas
    are those whose borrowers can keep a mean recall of 0.9 and more.
    """
    lent = (LentMask(gamma=g, stride=32) for g in (0.9, 0.95, 0.98))
    return tuple(one for one in lent if (one.gamma, one.stride) != (gamma, stride))


ORACLE_GAMMAS = (0.7, 0.8, 0.9, 0.95, 0.98)
"""Thresholds at which a run records each head's own exact mask: the ceiling of every method."""


class SampledMasses:
    """The sampled block masses of one layer's heads, each stride computed once."""

    def __init__(self, inputs: LayerInputs) -> None:
        self._inputs = inputs
        self._masses: dict[int, Tensor] = {}

    def at(self, stride: int) -> Tensor:
        """float32 [B, H, R, C]."""
        if stride not in self._masses:
            inputs = self._inputs
            heads = torch.arange(inputs.num_heads, device=inputs.q.device)
            self._masses[stride] = inputs.kernels.sampled_mass(
                inputs.q,
                inputs.k,
                heads.expand(inputs.batch, -1),
                inputs.grid,
                stride=stride,
                scale=inputs.scale,
            )
        return self._masses[stride]


def candidate_masks(
    inputs: LayerInputs,
    candidates: tuple[Candidate, ...],
    estimate: LastBlockEstimate,
    sampled: SampledMasses,
    settings: MaskSettings,
) -> Iterator[tuple[Tensor, float | Tensor]]:
    """Yield (mask, estimation cost) of each candidate, in order.

    mask: bool [B, H, R, C] with the forced blocks; estimation cost: in blocks of one head, float32
    [H] where heads differ.
    Neighbours that differ in gamma alone share the sorting of their blocks.
    """
    grid = inputs.grid
    for _, same in groupby(candidates, lambda c: (c.assignment, c.stride, c.window)):
        group = tuple(same)
        first, gammas = group[0], tuple(candidate.gamma for candidate in group)
        if first.stride is not None:
            forced = forced_blocks(grid, inputs.q.device, local_blocks=settings.local_blocks)
            cost = sampled_cost(grid, first.stride)
            mass, slack = sampled.at(first.stride), settings.row_slack
            for mask in spread_gamma_masks(mass, gammas, row_slack=slack):
                yield mask | forced, cost
        elif first.window is not None:
            local = streaming_mask(grid, settings.sink, first.window, inputs.q.device)
            for _ in group:
                yield local.expand(inputs.batch, inputs.num_heads, -1, -1), 0.0
        elif first.assignment in PEERS:
            for gamma in gammas:
                decision = _peer(first.assignment, gamma, settings).decide(inputs)
                yield decision.head_masks(), decision.cost[0]
        elif first.assignment == "vertical_slash":
            for mask in vertical_slash_masks(
                estimate,
                grid,
                gammas=gammas,
                min_budget=settings.min_budget,
                max_budget=settings.max_budget,
                slash_cover=settings.slash_cover,
            ):
                yield mask, last_block_cost(grid)
        else:
            minimum = minimum_vertical_slash_mask(
                inputs.kernels,
                estimate,
                grid,
                min_budget=settings.min_budget,
                slash_cover=settings.slash_cover,
            )
            for mask in query_aware_masks(
                inputs.q, inputs.k, grid, gammas=gammas, scale=inputs.scale
            ):
                yield mask | minimum, last_block_cost(grid) + pooled_cost(grid)


def _peer(kind: CandidateKind, gamma: float, settings: MaskSettings) -> Pattern:
    if kind == "xattention":
        point = replace(default_point("xattention"), tau=gamma)
    else:
        point = replace(
            default_point("flexprefill"),
            gamma=gamma,
            min_budget=settings.min_budget,
            slash_cover=settings.slash_cover,
        )
    return make_pattern_factory(point, None)()
