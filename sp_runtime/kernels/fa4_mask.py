"""The causal token mask of partial blocks, in the language of FlashAttention-4's kernels.

Importing this module imports CUTLASS's Python DSL.
"""

from __future__ import annotations

from typing import Any

from cutlass import Int32, cute
from flash_attn.cute.utils import scalar_to_ssa


@cute.jit
def causal_mask(
    batch: Any, head: Any, query: Any, key: Any, seqlen_info: Any, aux_tensors: Any
) -> Any:
    """Whether a query sees a key; the queries are the last of the positions that the keys have."""
    offset = scalar_to_ssa(seqlen_info.seqlen_k - seqlen_info.seqlen_q, Int32)
    return key <= query + offset
