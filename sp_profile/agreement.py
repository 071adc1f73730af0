"""How far a sparse prefill is from the dense one, from last hidden states and sliced logits.

Legend: N positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sp_runtime.errors import UnsupportedError, UsageError

_SLICE_BYTES = 64 * 2**20  # of one float32 [positions, V] slice; four such live at once
_PROBE_TOLERANCE = 2e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Sparse against dense at `positions` of `of_positions` positions (all, or an even sample).

    kl_mean, kl_max, kl_last: KL(dense || sparse) of the next-token distribution, in nats: mean and
        maximum over the positions, and at the last one, which the first new token comes from.
    top1: share of positions at which both have the same most likely token.
    hidden_max_abs: largest absolute difference of the last hidden state, over all positions.
    hidden_rel: root of the summed squared difference over that of the dense one (no unit).
    generated_equal: whether the generated tokens are the same; None where none were asked for.
    """

    positions: int
    of_positions: int
    kl_mean: float
    kl_max: float
    kl_last: float
    top1: float
    hidden_max_abs: float
    hidden_rel: float
    generated_equal: bool | None


class LogitHead:
    """Logits from last hidden states, [n, D] -> float32 [n, V], as the model itself makes them."""

    def __init__(self, head: nn.Module, *, scale: float, softcap: float | None) -> None:
        self._head = head
        self._scale = scale
        self._softcap = softcap

    @classmethod
    def of(cls, model: Any) -> LogitHead:
        """The head of a causal language model; `check` tells whether it is the whole of it.

        Raises UnsupportedError where the model has no output embeddings.
        """
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedError(
                f"{type(model).__name__} has no language-model head",
                hint="use a decoder-only causal language model",
            )
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(head, scale=scale, softcap=getattr(config, "final_logit_softcapping", None))

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden).float() * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @torch.no_grad()
    def check(self, model: Any, decoder: Any) -> None:
        """Compare with the model's own logits of a four-token probe.

        Raises UnsupportedError where they differ: the model does something to its logits that is
        not known here.
        """
        probe = torch.arange(4, device=model.device)[None]
        ours = self(decoder(input_ids=probe, use_cache=False).last_hidden_state)
        theirs = model(input_ids=probe, use_cache=False).logits.float()
        error = (ours - theirs).norm() / theirs.norm().clamp(min=1e-6)
        if not bool(error <= _PROBE_TOLERANCE):
            raise UnsupportedError(
                f"{type(model).__name__} computes its logits in a way that is not known here "
                f"(relative difference {float(error):.2g})",
                hint="prefill supports a plain language-model head with optional scale and softcap",
            )


@torch.no_grad()
def measure_agreement(
    head: Callable[[Tensor], Tensor],
    dense: Tensor,
    sparse: Tensor,
    *,
    sample: int | None = None,
    generated_equal: bool | None = None,
) -> Agreement:
    """Compare last hidden states [N, D] of one prompt, computed densely and sparsely.

    head: [n, D] -> float32 logits [n, V]; it is run on slices, so that no [N, V] tensor exists.
    sample: at most so many evenly spaced positions, the last always among them; None: every one.
    """
    if dense.shape != sparse.shape:
        raise UsageError(f"hidden states {tuple(sparse.shape)} differ from {tuple(dense.shape)}")
    total = dense.shape[0]
    chosen = sample_positions(total, sample).to(dense.device)
    vocabulary = head(dense[-1:]).shape[-1]
    step = max(1, _SLICE_BYTES // (4 * vocabulary))
    divergences, hits = [], []
    for part in chosen.split(step):
        p, q = head(dense[part]).log_softmax(-1), head(sparse[part]).log_softmax(-1)
        # Rounding can push a divergence of equal distributions a little under 0.
        divergences.append((p.exp() * (p - q)).sum(-1).clamp(min=0))
        hits.append(p.argmax(-1) == q.argmax(-1))
    kl, top1 = torch.cat(divergences), torch.cat(hits)
    max_abs, relative = _hidden_error(dense, sparse)
    return Agreement(
        positions=chosen.numel(),
        of_positions=total,
        kl_mean=float(kl.double().mean()),
        kl_max=float(kl.max()),
        kl_last=float(kl[-1]),
        top1=float(top1.double().mean()),
        hidden_max_abs=max_abs,
        hidden_rel=relative,
        generated_equal=generated_equal,
    )


def sample_positions(total: int, sample: int | None) -> Tensor:
    """int64 [min(total, sample)], ascending, evenly spaced, ending at total - 1."""
    if sample is None or sample >= total:
        return torch.arange(total)
    if sample < 1:
        raise UsageError(f"agreement sample {sample} is under 1")
    steps = torch.arange(1, sample + 1, dtype=torch.float64)
    return (steps * total / sample).ceil().long() - 1


def _hidden_error(dense: Tensor, sparse: Tensor) -> tuple[float, float]:
    largest, squares, norm = 0.0, 0.0, 0.0
    for part in range(0, dense.shape[0], 4096):
        a, b = dense[part : part + 4096].float(), sparse[part : part + 4096].float()
        largest = max(largest, float((a - b).abs().max()))
        squares += float((a - b).double().square().sum())
        norm += float(a.double().square().sum())
    return largest, (squares / norm) ** 0.5 if norm > 0 else 0.0
