"""Dense: every causal block of every head."""

from __future__ import annotations

from torch import Tensor

from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.decision import uniform_decision


class DensePattern:
    """The baseline as a pattern; needs no estimate."""

    def decide(self, inputs: LayerInputs) -> Decision:
        mask = inputs.grid.causal_mask(inputs.q.device)
        return uniform_decision(inputs, mask, branch=Branch.DENSE, cost=0.0)

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
