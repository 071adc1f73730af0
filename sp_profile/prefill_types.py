"""Settings and results of measured prefills, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from sp_profile.agreement import Agreement
from sp_runtime.audit import Audit, HeadAudit
from sp_runtime.block_index import BLOCK_SIZES
from sp_runtime.errors import UsageError
from sp_runtime.operating_point import OperatingPoint

ComputePath = Literal["sparse", "dense", "mixed"]
OnOom = Literal["fail", "dense"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillConfig:
    """How prompts are prefilled and what is measured.

    chat_template: the prompt becomes a user turn.
    compare_dense: prefill each prompt densely as well and measure the agreement.
    generate: greedy tokens after the prompt, decoded densely; the first comes from the prefill.
    chunk_size: tokens a forward; None: the whole prompt in one.
    repeat: measured runs, of which the median counts. warmup: runs before them for each length
        class (powers of two); None: one on a GPU, none on a CPU.
    agreement_sample: positions at which logits are compared; None: every one.
    block_size, weights_sha256, allow_weights_mismatch: as in `attach`.
    on_oom: what is done with a prompt that runs out of memory in smaller chunks too.
    include_text: keep what was generated, which may quote the prompt.
    audit: share of the heads that are computed densely as well, see `attach`; it costs time.
    """

    point: OperatingPoint
    chat_template: bool = False
    compare_dense: bool = False
    generate: int = 0
    chunk_size: int | None = None
    kernels: str = "auto"
    repeat: int = 1
    warmup: int | None = None
    agreement_sample: int | None = None
    block_size: int | None = None
    weights_sha256: str | None = None
    allow_weights_mismatch: bool = False
    on_oom: OnOom = "fail"
    include_text: bool = False
    audit: float = 0.0

    def __post_init__(self) -> None:
        Audit(self.audit)  # refuses what is no share
        lowest = {"generate": 0, "chunk_size": 1, "repeat": 1, "warmup": 0, "agreement_sample": 1}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} {value} is under {least}")
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            raise UsageError(
                f"block size {self.block_size} is not supported",
                hint=f"use one of {', '.join(map(str, BLOCK_SIZES))}",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids; sha256: of its text, as in `PromptText.sha256`."""

    name: str
    sha256: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchCounts:
    """How many (forward, layer, head) took each way; names are those of `Branch`, lower-case."""

    pivot: int = 0
    shared: int = 0
    vertical_slash: int = 0
    query_aware: int = 0
    dense: int = 0
    sampled: int = 0
    streaming: int = 0
    lm_infinite: int = 0
    a_shape: int = 0
    block_sparse: int = 0
    infllm: int = 0
    hip: int = 0
    moa: int = 0
    xattention: int = 0
    widened: int = 0

    def __add__(self, other: BranchCounts) -> BranchCounts:
        names = [field.name for field in fields(self)]
        return BranchCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerResult:
    """One layer of one prefill, over its chunks.

    density, estimation: blocks computed, and cost of the estimates, over causal blocks; mean over
        heads. None where the layer was left to the model (native: why).
    """

    layer: int
    density: float | None
    estimation: float | None
    branches: BranchCounts
    native: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sparsity:
    """What was computed in one prefill; densities as in `LayerResult`, over full layers.

    path: sparse, dense, or mixed where chunks differ. reasons: why forwards were dense, or smaller
        than asked for. audits: of the heads that were audited.
    """

    path: ComputePath
    reasons: tuple[str, ...]
    density: float
    estimation: float
    branches: BranchCounts
    layers: tuple[LayerResult, ...]
    audits: tuple[HeadAudit, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One way of prefilling a prompt. Seconds; memory in bytes, None on CPU.

    ttft_seconds: median of `runs_seconds`, from token ids on the device to the first token id on
        the host. attention_seconds: inside the attention function, all layers, of the median run.
    warmup_runs: runs of this length class before the first measured one.
    """

    ttft_seconds: float
    runs_seconds: tuple[float, ...]
    attention_seconds: float
    warmup_runs: int
    peak_memory_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillResult:
    """One prompt. generated_tokens: how many, the first of them from the prefill.

    generated, text, dense_text: their ids and the texts; None unless `include_text` asks for them.
    chunk_tokens: tokens a forward, fewer than were asked for where the memory did not suffice.
    """

    prompt: str
    sha256: str
    tokens: int
    chunk_tokens: int
    timing: Timing
    sparsity: Sparsity
    generated_tokens: int
    generated: tuple[int, ...] | None = None
    text: str | None = None
    dense_timing: Timing | None = None
    dense_text: str | None = None
    agreement: Agreement | None = None

    @property
    def speedup(self) -> float | None:
        """Dense TTFT over this TTFT; None without a comparison."""
        if self.dense_timing is None:
            return None
        return self.dense_timing.ttft_seconds / self.timing.ttft_seconds
