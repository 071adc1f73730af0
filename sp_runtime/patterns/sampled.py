"""Sampled: each head's own gamma-mask, from the exact attention of a strided subset of queries.

Our own method. Parameters: stride 4 to 64 (16 here), the queries of each block row that are
sampled, counted from its end; gamma 0.9 of their mean attention over all block rows of the head,
of which none misses more than row_slack 2 times what the head does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import sampled_cost
from sp_runtime.patterns.decision import uniform_decision


def sampled_mask(
    inputs: LayerInputs,
    heads: Tensor,
    *,
    stride: int | tuple[int, ...],
    gamma: float | Tensor,
    row_slack: float,
    local_blocks: int,
    out: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """bool [B, S, R, C]: gamma-mask of the sampled mass of heads int64 [S], forced blocks on.

    stride: of all, or of each head. gamma: in (0, 1], a number or float32 broadcastable to [B, S].
    row_slack, out, slots: as in `Kernels.gamma_mask`.
    """
    mass = inputs.kernels.sampled_mass(
        inputs.q,
        inputs.k,
        heads.expand(inputs.batch, -1),
        inputs.grid,
        stride=stride,
        scale=inputs.scale,
    )
    return inputs.kernels.gamma_mask(
        mass, gamma, row_slack=row_slack, local_blocks=local_blocks, out=out, slots=slots
    )


@dataclass(frozen=True, kw_only=True)
class SampledPattern:
    """Every head takes its own mask from every `point.stride`-th query."""

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        heads = inputs.constants.every_head(inputs.num_heads, inputs.q.device)
        point = self.point
        mask = sampled_mask(
            inputs,
            heads,
            stride=point.stride,
            gamma=point.gamma,
            row_slack=point.row_slack,
            local_blocks=point.local_blocks,
        )
        return uniform_decision(
            inputs,
            mask,
            branch=Branch.SAMPLED,
            cost=sampled_cost(inputs.grid, self.point.stride),
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
