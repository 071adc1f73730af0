"""The causal token mask of partial blocks, in the language of FlashAttention-4's kernels.

Importing this module imports CUTLASS's Python DSL.
"""

from __future__ import annotations

from typing import Any

from cutlass import cute


@cute.jit
def causal_mask(
    batch: Any, head: Any, query: Any, key: Any, seqlen_info: Any, aux_tensors: Any
) -> Any:
    """Whether a query sees a key; both count from the start of one sequence."""
    return key <= query
