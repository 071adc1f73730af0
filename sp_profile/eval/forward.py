"""One prompt prefilled by one method: cache, first token, blocks computed, and maybe its times."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from sp_profile.agreement import LogitHead
from sp_profile.eval.branches import branches_of
from sp_profile.eval.cells import PromptTiming
from sp_profile.prefill_report import summarise
from sp_profile.timing import AttentionClock, attention_clock, synchronize
from sp_runtime.audit import Audit, HeadAudit
from sp_runtime.errors import SpError
from sp_runtime.integrations.transformers import attach
from sp_runtime.kernels.base import Kernels
from sp_runtime.kernels.select import KernelChoice
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import Profile
from sp_runtime.report import PrefillReport


class NonFiniteLogitsError(SpError):
    """The model gave NaN or an infinity, so there is nothing to score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefilled:
    """One prefilled prompt. hidden: last hidden states, [N, D] or [1, D] of the last position;
    path: sparse or dense; branches: as `branches_of`; timing: None where no times were taken;
    audits: of the heads that were audited."""

    cache: DynamicCache
    hidden: Tensor
    first_token: int
    density: float
    estimation: float
    path: str
    branches: Tensor | None
    timing: PromptTiming | None
    audits: tuple[HeadAudit, ...]


class _ClockedKernels:
    """Kernels whose attention is timed; everything else is theirs."""

    def __init__(self, kernels: Kernels, clock: AttentionClock) -> None:
        self._kernels = kernels
        self.attention = clock.timed(kernels.attention)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)


class Forward:
    """Prefills prompts on one model, attached for the time of a method."""

    def __init__(
        self,
        model: Any,
        profile: Profile | None,
        kernels: KernelChoice,
        *,
        block_size: int | None,
        weights_sha256: str | None,
    ) -> None:
        self.device: torch.device = model.device
        self.decoder = model.get_decoder()
        self.head = LogitHead.of(model)
        self.head.check(model, self.decoder)
        self._model = model
        self._profile = profile
        self._kernels = kernels
        self._block_size = block_size
        self._weights_sha256 = weights_sha256

    @torch.inference_mode()
    def prefill(
        self,
        point: OperatingPoint,
        token_ids: Tensor,
        *,
        timed: bool,
        every_position: bool = False,
        audit: Audit | None = None,
    ) -> Prefilled:
        """Prefill int64 [1, N] on the device; method dense is the plain model with SDPA.

        every_position: keep the hidden states of all positions. audit: whose recall is measured.
        Raises NonFiniteLogitsError, and what `attach` raises.
        """
        cache = DynamicCache(config=self._model.config)
        inner = AttentionClock(self.device)
        choice = self._kernels
        if timed:
            clocked = cast("Kernels", _ClockedKernels(choice.kernels, inner))
            choice = replace(choice, kernels=clocked)
        with self._attached(point, choice, audit) as report, self._clock(timed) as clock:
            synchronize(self.device)
            start = time.perf_counter()
            output = self.decoder(input_ids=token_ids, past_key_values=cache, use_cache=True)
            hidden: Tensor = output.last_hidden_state[0]
            logits = self.head(hidden[-1:])
            first = int(logits.argmax())
            ttft = time.perf_counter() - start
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteLogitsError(
                f"logits are not finite after {token_ids.shape[1]} tokens",
                hint="try bfloat16 or float32",
            )
        timing = None
        if clock is not None:
            attention = clock.seconds()
            index = attention - inner.seconds() if _all_by_kernel(report) else None
            timing = PromptTiming(ttft=ttft, attention=attention, index=index)
        density, estimation, path = self._blocks(report)
        return Prefilled(
            cache=cache,
            hidden=hidden if every_position else hidden[-1:].clone(),
            first_token=first,
            density=density,
            estimation=estimation,
            path=path,
            branches=branches_of(report, self._model.config.get_text_config().num_attention_heads),
            timing=timing,
            audits=report.audits if audit and report else (),
        )

    def _attached(
        self, point: OperatingPoint, choice: KernelChoice, audit: Audit | None
    ) -> AbstractContextManager[PrefillReport | None]:
        if point.method == "dense":
            return nullcontext()
        return attach(
            self._model,
            self._profile,
            point=point,
            kernels=choice,
            block_size=self._block_size,
            weights_sha256=self._weights_sha256,
            audit=audit or 0.0,
        )

    def _clock(self, timed: bool) -> AbstractContextManager[AttentionClock | None]:
        return attention_clock(self._model, self.device) if timed else nullcontext()

    def _blocks(self, report: PrefillReport | None) -> tuple[float, float, str]:
        """Density, estimation and path; without a report the plain model ran."""
        if report is None:
            return 1.0, 0.0, "dense"
        text_config = self._model.config.get_text_config()
        sparsity = summarise(
            report,
            num_chunks=1,
            layers=text_config.num_hidden_layers,
            heads=text_config.num_attention_heads,
        )
        return sparsity.density, sparsity.estimation, sparsity.path


def _all_by_kernel(report: PrefillReport | None) -> bool:
    """Whether every layer's attention went through the block-sparse kernel."""
    if report is None or report.native_layers:
        return False
    forward = report.forwards[0]
    return forward.path == "sparse" and not any(layer.dense_reason for layer in forward.layers)
