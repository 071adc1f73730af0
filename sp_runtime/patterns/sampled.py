"""Sampled: each head's own gamma-mask, from the exact attention of a strided subset of queries.

Our own method. Parameters: stride 4 to 16 (8 here), the queries of each block row that are sampled,
counted from its end; gamma 0.9 of their mean attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import sampled_cost
from sp_runtime.patterns.decision import uniform_decision
from sp_runtime.patterns.masks import forced_blocks


def sampled_mask(
    inputs: LayerInputs, heads: Tensor, *, stride: int, gamma: float | Tensor
) -> Tensor:
    """bool [B, S, R, C]: gamma-mask of the sampled mass of heads int64 [S], forced blocks on.

    gamma: in (0, 1], a number or float32 broadcastable to [B, S].
    """
    slots = heads.expand(inputs.batch, -1)
    mass = inputs.kernels.sampled_mass(
        inputs.q, inputs.k, slots, inputs.grid, stride=stride, scale=inputs.scale
    )
    return inputs.kernels.gamma_mask(mass, gamma) | forced_blocks(inputs.grid, inputs.q.device)


@dataclass(frozen=True, kw_only=True)
class SampledPattern:
    """Every head takes its own mask from every `point.stride`-th query."""

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        heads = torch.arange(inputs.num_heads, device=inputs.q.device)
        mask = sampled_mask(inputs, heads, stride=self.point.stride, gamma=self.point.gamma)
        return uniform_decision(
            inputs,
            mask,
            branch=Branch.SAMPLED,
            cost=sampled_cost(inputs.grid, self.point.stride),
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
