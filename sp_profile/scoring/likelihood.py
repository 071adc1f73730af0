"""Scores from hidden states: the likelihood of a text, and agreement with dense attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sp_profile.agreement import Agreement
from sp_runtime.errors import UsageError

_SLICE_BYTES = 64 * 2**20  # of one float32 [positions, V] slice; two such live at once


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLoss:
    """mean: negative log-likelihood of a token in nats, over `tokens` tokens (all but the first).

    Comparable only between runs on the same token ids.
    """

    tokens: int
    mean: float

    @property
    def score(self) -> float:
        """-mean: greater is better."""
        return -self.mean

    @property
    def perplexity(self) -> float:
        """exp(mean); infinite where that overflows."""
        return math.exp(self.mean) if self.mean < 700 else math.inf


@torch.no_grad()
def nll(hidden: Tensor, head: Callable[[Tensor], Tensor], ids: Sequence[int] | Tensor) -> TokenLoss:
    """How likely the model finds a text of N tokens, in slices: no [N, V] tensor exists.

    hidden: last hidden states [N, D]. head: [n, D] -> float32 logits [n, V]. ids: the N tokens.
    Raises UsageError for fewer than two tokens and for lengths that differ.
    """
    tokens = torch.as_tensor(ids, dtype=torch.int64, device=hidden.device)
    total = tokens.shape[0]
    if hidden.shape[0] != total:
        raise UsageError(f"{hidden.shape[0]} hidden states for {total} tokens")
    if total < 2:
        raise UsageError("the likelihood of a text needs two tokens or more")
    step = max(1, _SLICE_BYTES // (4 * head(hidden[:1]).shape[-1]))
    loss = 0.0
    for start in range(0, total - 1, step):
        stop = min(start + step, total - 1)
        logits = head(hidden[start:stop])
        chosen = logits.gather(1, tokens[start + 1 : stop + 1, None])[:, 0]
        loss += float((logits.logsumexp(-1) - chosen).double().sum())
    return TokenLoss(tokens=total - 1, mean=loss / (total - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreementScore:
    """The task `agreement` in four numbers.

    kl, kl_last: KL(dense || sparse) in nats, mean over positions and at the last one.
    top1: share of positions with the same most likely token. equal: 1 if the generated texts are
    equal, None where nothing was generated.
    """

    kl: float
    kl_last: float
    top1: float
    equal: float | None

    @property
    def score(self) -> float:
        """top1, in [0, 1]."""
        return self.top1


def agreement_score(agreement: Agreement) -> AgreementScore:
    """What the task `agreement` reports of a comparison."""
    equal = agreement.generated_equal
    return AgreementScore(
        kl=agreement.kl_mean,
        kl_last=agreement.kl_last,
        top1=agreement.top1,
        equal=None if equal is None else float(equal),
    )
