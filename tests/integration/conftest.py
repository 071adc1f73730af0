"""Tiny random models of each supported (and refused) family, built from configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

VOCAB = 97

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,  # wide enough that attention is far from uniform
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Family:
    """Names of the transformers classes and what differs from SMALL."""

    config: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Family("LlamaConfig", "LlamaForCausalLM"),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}),
    "mistral": Family("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "mistral-sliding": Family("MistralConfig", "MistralForCausalLM", {"sliding_window": 96}),
    "phi3": Family("Phi3Config", "Phi3ForCausalLM", {"sliding_window": 2048}),
    "glm4": Family("Glm4Config", "Glm4ForCausalLM", {"head_dim": 16}),
    "gemma3": Family(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 4,
            "head_dim": 64,
            "query_pre_attn_scalar": 48,
            "sliding_window": 80,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma2": Family(
        "Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 16, "attn_logit_softcapping": 50.0}
    ),
    "gpt-oss": Family(
        "GptOssConfig",
        "GptOssForCausalLM",
        {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}

EAGER_ONLY = ("gemma2", "gpt-oss")  # transformers refuses SDPA for them


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """make_model(family, **config options): a fresh model in eval mode, always of equal weights."""

    def make(family: str, **options: Any) -> Any:
        import transformers

        spec = FAMILIES[family]
        config = getattr(transformers, spec.config)(**{**SMALL, **spec.options, **options})
        config._attn_implementation = "eager" if family in EAGER_ONLY else "sdpa"
        torch.manual_seed(1234)
        return getattr(transformers, spec.model)(config).eval()

    return make


@pytest.fixture(scope="session")
def make_tokens() -> Callable[..., torch.Tensor]:
    """make_tokens(length, batch=1, seed=0): int64 [batch, length], no special tokens."""

    def make(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, VOCAB, (batch, length), generator=generator)

    return make


class LiteralHandler:
    """Causal attention as written: float64 scores of every pair, future ones at -inf."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.layers: list[int] = []

    def begin(self, call: Any) -> None:
        self.calls.append(call)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        self.layers.append(layer)
        groups = q.shape[1] // k.shape[1]
        keys, values = (t.double().repeat_interleave(groups, dim=1) for t in (k, v))
        scores = q.double() @ keys.transpose(-1, -2) * scale
        call = self.calls[-1]
        rows = torch.arange(call.q_len)[:, None] + call.q_offset
        scores = scores.masked_fill(torch.arange(call.kv_len)[None] > rows, -torch.inf)
        return (scores.softmax(-1) @ values).to(q.dtype)


@pytest.fixture
def literal() -> LiteralHandler:
    """A handler that records its calls and computes attention by definition."""
    return LiteralHandler()


@pytest.fixture
def make_literal() -> type[LiteralHandler]:
    return LiteralHandler
