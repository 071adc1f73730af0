"""Prefill prompts with an attached model and measure it, beside dense attention where asked for."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sp_profile.agreement import LogitHead, measure_agreement
from sp_profile.memory import OUT_OF_MEMORY, release_memory
from sp_profile.prefill_report import summarise
from sp_profile.prefill_types import EncodedPrompt, PrefillConfig, PrefillResult, Sparsity, Timing
from sp_profile.prompts import PromptText, encode
from sp_profile.timing import attention_clock, peak_memory, synchronize
from sp_runtime.audit import Audit
from sp_runtime.errors import ResourceError, UsageError
from sp_runtime.integrations.transformers import attach
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import Profile
from sp_runtime.report import PrefillReport

_CHUNK_MULTIPLE = 128
_CPU_WARMUP_TOKENS = 16  # touches every weight once, so that the first prompt does not pay for it


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attempt:
    """How a prompt is prefilled. chunk: tokens a forward; reason: why not as was asked, or "".

    audit_seed: of the heads that are audited, the same ones in each run of a prompt.
    """

    chunk: int
    point: OperatingPoint
    reason: str = ""
    audit_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One measured run. hidden: last hidden states [N, D] or None; generated: token ids."""

    ttft_seconds: float
    attention_seconds: float
    peak_memory_bytes: int | None
    hidden: Tensor | None
    generated: tuple[int, ...]
    report: PrefillReport | None


class Prefiller:
    """Prefills prompts one at a time on one model.

    model, tokenizer: a causal language model of transformers and its tokenizer, ready on a device.
    """

    def __init__(
        self, model: Any, tokenizer: Any, config: PrefillConfig, profile: Profile | None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._config = config
        self._profile = profile
        self._device: torch.device = model.device
        self._decoder = model.get_decoder()
        self._head = LogitHead.of(model)
        self._head.check(model, self._decoder)
        self._stop = stop_tokens(model)
        self._warm: set[tuple[str, int]] = set()
        probe = _Attempt(chunk=_CPU_WARMUP_TOKENS, point=config.point)
        self._run(self._decoder_probe(), probe, dense=True, keep=False)

    def run(self, prompt: EncodedPrompt) -> PrefillResult:
        """Prefill one prompt; where the memory does not suffice, once more in half the chunks.

        Raises ResourceError where that fails too (unless `on_oom` is dense, and dense attention
        fits), and what `attach` raises. Any other error of the device passes through, and nothing
        is tried after it.
        """
        ids = torch.tensor([prompt.token_ids], device=self._device)
        for attempt in self._attempts(prompt):
            try:
                return self._run_prompt(prompt, ids, attempt)
            except OUT_OF_MEMORY:
                pass  # and out of the handler first, whose traceback holds tensors
            release_memory()
        smallest = min(attempt.chunk for attempt in self._attempts(prompt))
        raise ResourceError(
            f"{prompt.name}: out of memory on {self._device} at {ids.shape[1]} tokens, also in "
            f"chunks of {smallest}",
            hint="use a smaller --chunk-size, --dtype bfloat16 or a shorter prompt",
        )

    def _attempts(self, prompt: EncodedPrompt) -> Iterator[_Attempt]:
        config, tokens = self._config, len(prompt.token_ids)
        seed = int(prompt.sha256[:12], 16)
        chunk = min(config.chunk_size or tokens, tokens)
        # Whole blocks of either size, so that chunks start on block boundaries.
        half = min(chunk, -(-chunk // 2 // _CHUNK_MULTIPLE) * _CHUNK_MULTIPLE)
        yield _Attempt(chunk=chunk, point=config.point, audit_seed=seed)
        if half < chunk:
            reason = "smaller chunks: out of memory"
            yield _Attempt(chunk=half, point=config.point, reason=reason, audit_seed=seed)
        if config.on_oom == "dense":
            reason = "dense after running out of memory, as on_oom allows"
            yield _Attempt(chunk=half, point=OperatingPoint(method="dense"), reason=reason)

    def _run_prompt(self, prompt: EncodedPrompt, ids: Tensor, attempt: _Attempt) -> PrefillResult:
        config = self._config
        timing, sparse = self._measure(ids, attempt, dense=False)
        assert sparse.report is not None
        agreement = dense_timing = dense_text = None
        if config.compare_dense:
            dense_timing, dense = self._measure(ids, attempt, dense=True)
            dense_text = self._kept_text(dense.generated)
            assert dense.hidden is not None
            assert sparse.hidden is not None
            agreement = measure_agreement(
                self._head,
                dense.hidden,
                sparse.hidden,
                sample=config.agreement_sample,
                generated_equal=sparse.generated == dense.generated if config.generate else None,
            )
        return PrefillResult(
            prompt=prompt.name,
            sha256=prompt.sha256,
            tokens=ids.shape[1],
            chunk_tokens=attempt.chunk,
            timing=timing,
            sparsity=self._sparsity(sparse.report, ids.shape[1], attempt),
            generated_tokens=len(sparse.generated),
            generated=sparse.generated if config.include_text else None,
            text=self._kept_text(sparse.generated),
            dense_timing=dense_timing,
            dense_text=dense_text,
            agreement=agreement,
        )

    def _measure(self, ids: Tensor, attempt: _Attempt, *, dense: bool) -> tuple[Timing, _Run]:
        """The warm-up that this length class still needs, then the measured runs."""
        warmup = self._config.warmup
        if warmup is None:
            warmup = 1 if self._device.type == "cuda" else 0
        length_class = (_label(attempt, dense), (ids.shape[1] - 1).bit_length())
        if length_class not in self._warm:
            self._warm.add(length_class)
            for _ in range(warmup):
                self._run(ids, attempt, dense=dense, keep=False)
        last = self._config.repeat - 1
        runs = [
            self._run(ids, attempt, dense=dense, keep=number == last)
            for number in range(self._config.repeat)
        ]
        seconds = tuple(run.ttft_seconds for run in runs)
        median = statistics.median_low(seconds)
        timing = Timing(
            ttft_seconds=median,
            runs_seconds=seconds,
            attention_seconds=runs[seconds.index(median)].attention_seconds,
            warmup_runs=warmup,
            peak_memory_bytes=runs[-1].peak_memory_bytes,
        )
        return timing, runs[-1]

    @torch.inference_mode()
    def _run(self, ids: Tensor, attempt: _Attempt, *, dense: bool, keep: bool) -> _Run:
        """One run; `keep` keeps hidden states where a comparison needs them, and generates."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        chunks = ids.split(attempt.chunk, dim=1)
        with self._attached(attempt, dense=dense) as report, peak_memory(self._device) as peak:
            with attention_clock(self._model, self._device) as clock:
                synchronize(self._device)
                start = time.perf_counter()
                hidden = [self._forward(chunk, cache) for chunk in chunks]
                first = int(self._head(hidden[-1][-1:]).argmax())
                ttft = time.perf_counter() - start
            seconds, memory = clock.seconds(), peak()
            generated = (first, *self._generate(first, cache)) if keep else ()
        needed = keep and self._config.compare_dense
        return _Run(
            ttft_seconds=ttft,
            attention_seconds=seconds,
            peak_memory_bytes=memory,
            hidden=torch.cat(hidden) if needed else None,
            generated=generated,
            report=report,
        )

    def _attached(
        self, attempt: _Attempt, *, dense: bool
    ) -> AbstractContextManager[PrefillReport | None]:
        """The dense side of a comparison is the plain model, and none of our code."""
        if dense:
            return nullcontext()
        return attach(
            self._model,
            self._profile,
            point=attempt.point,
            kernels=self._config.kernels,
            block_size=self._config.block_size,
            weights_sha256=self._config.weights_sha256,
            allow_weights_mismatch=self._config.allow_weights_mismatch,
            audit=Audit(self._config.audit, seed=attempt.audit_seed),
        )

    def _forward(self, ids: Tensor, cache: Any) -> Tensor:
        """Last hidden states [n, D] of token ids [1, n]; the head is not run."""
        output = self._decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _generate(self, token: int, cache: Any) -> list[int]:
        """Greedy tokens after the first one, up to a stop token."""
        tokens: list[int] = []
        while len(tokens) + 1 < self._config.generate and token not in self._stop:
            ids = torch.tensor([[token]], device=self._device)
            token = int(self._head(self._forward(ids, cache)[-1:]).argmax())
            tokens.append(token)
        return tokens

    def _sparsity(self, report: PrefillReport, tokens: int, attempt: _Attempt) -> Sparsity:
        text_config = self._model.config.get_text_config()
        sparsity = summarise(
            report,
            num_chunks=-(-tokens // attempt.chunk),
            layers=text_config.num_hidden_layers,
            heads=text_config.num_attention_heads,
        )
        if not attempt.reason:
            return sparsity
        return dataclasses.replace(sparsity, reasons=(*sparsity.reasons, attempt.reason))

    def _kept_text(self, tokens: tuple[int, ...]) -> str | None:
        """What was generated; None where it is not to be kept."""
        if not self._config.include_text:
            return None
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _decoder_probe(self) -> Tensor:
        return torch.arange(_CPU_WARMUP_TOKENS, device=self._device)[None]


def _label(attempt: _Attempt, dense: bool) -> str:
    return "dense" if dense or attempt.point.method == "dense" else "sparse"


def encode_prompts(
    prompts: Sequence[PromptText],
    tokenizer: Any,
    config: PrefillConfig,
    *,
    context: int,
    keep_going: bool = False,
) -> tuple[tuple[EncodedPrompt, ...], tuple[UsageError, ...]]:
    """Token ids of every prompt, and with keep_going the prompts that cannot be used.

    context: positions of the model, into which the tokens to generate must fit too.
    Raises UsageError at the first prompt without tokens or with too many.
    """
    limit = max(context - max(config.generate - 1, 0), 0)
    encoded: list[EncodedPrompt] = []
    problems: list[UsageError] = []
    for prompt in prompts:
        chat = config.chat_template
        try:
            ids = encode(prompt, tokenizer, chat_template=chat, max_tokens=limit)
        except UsageError as error:
            if not keep_going:
                raise
            problems.append(error)
        else:
            encoded.append(
                EncodedPrompt(name=prompt.name, sha256=prompt.sha256(chat), token_ids=ids)
            )
    return tuple(encoded), tuple(problems)


def stop_tokens(model: Any) -> frozenset[int]:
    """The tokens that end a generation, as the model's own configuration says."""
    stop = getattr(model.generation_config, "eos_token_id", None)
    if stop is None:
        stop = model.config.get_text_config().eos_token_id
    if stop is None:
        return frozenset()
    return frozenset([stop] if isinstance(stop, int) else stop)
