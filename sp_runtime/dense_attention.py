"""Dense causal attention through torch SDPA, for queries that end with the keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

# Attention scores of one slice of queries in the worst case, that SDPA stores them: 256 MB.
_MAX_SCORES = 1 << 26


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Causal attention of the last Nq of Nk positions.

    q: [B, H, Nq, D]; k, v: [B, Hkv, Nk, D]. Returns [B, H, Nq, D] in q's dtype.
    """
    q_len, kv_len = q.shape[2], k.shape[2]
    if q_len == 1:
        return sdpa(q, k, v, scale=scale, enable_gqa=True)
    if q_len == kv_len:
        return sdpa(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        # Here, since it loads torch's compiler and with it triton.
        from torch.nn.attention.bias import causal_lower_right

        bias = causal_lower_right(q_len, kv_len)
        return sdpa(q, k, v, attn_mask=bias, scale=scale, enable_gqa=True)
    step = max(1, _MAX_SCORES // (q.shape[0] * q.shape[1] * kv_len))
    parts = []
    for start in range(0, q_len, step):
        stop = min(start + step, q_len)
        keys = slice(kv_len - q_len + stop)
        mask = torch.ones(stop - start, keys.stop, dtype=torch.bool, device=q.device)
        mask.tril_(keys.stop - (stop - start))
        parts.append(
            sdpa(
                q[:, :, start:stop],
                k[:, :, keys],
                v[:, :, keys],
                attn_mask=mask,
                scale=scale,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2)
