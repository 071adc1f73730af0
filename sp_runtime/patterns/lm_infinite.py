"""LM-Infinite: the lambda-shaped mask, first tokens and a local window.

Source: LM-Infinite (arXiv 2308.16137). Parameters: sink, the paper's n_starting (10 to 100; here
100), and window, its distance limit L_pretrain (4,096 for Llama-2, the default here).

Where this differs: the block mask only, to our own definition. As a block mask it has the shape of
streaming (StreamingLLM): the two differ in sizes and in positions. LM-Infinite clips the distance
to the first tokens at the limit, StreamingLLM counts positions inside its cache; neither can be
done after rotary embedding, so sequences beyond the trained length are refused. The paper's
optional top-k middle tokens are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.decision import uniform_decision
from sp_runtime.patterns.streaming import streaming_mask


@dataclass(frozen=True, kw_only=True)
class LmInfinitePattern:
    """Every head keeps `point.sink` first tokens and a window of `point.window` tokens."""

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        mask = streaming_mask(inputs.grid, self.point.sink, self.point.window, inputs.q.device)
        return uniform_decision(inputs, mask, branch=Branch.LM_INFINITE, cost=0.0)

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
