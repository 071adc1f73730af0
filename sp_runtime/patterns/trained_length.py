"""Refuses a method beyond the trained length where its positions cannot be reproduced."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sp_runtime.errors import UnsupportedError
from sp_runtime.patterns.base import Decision, LayerInputs, Pattern


@dataclass(frozen=True, kw_only=True)
class WithinTrainedLength:
    """`pattern`, for sequences of at most `limit` tokens.

    These methods change positions to go beyond the trained length; an attention function receives
    queries and keys after rotary embedding, so it could only compute something else there.
    """

    pattern: Pattern
    method: str
    limit: int

    def decide(self, inputs: LayerInputs) -> Decision:
        """Raises UnsupportedError for a longer sequence."""
        if inputs.grid.kv_len > self.limit:
            raise UnsupportedError(
                f"{self.method}: {inputs.grid.kv_len} tokens are more than the trained length "
                f"{self.limit}, and its positions beyond it cannot be reproduced here",
                hint="use a shorter prompt, or another method",
            )
        return self.pattern.decide(inputs)

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        self.pattern.remember(inputs, decision, mass)
