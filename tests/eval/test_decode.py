"""Batched decoding from stacked caches against transformers' own generation, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from sp_profile.agreement import LogitHead
from sp_profile.eval.decode import cache_bytes, decode_greedily

LENGTH, NEW = 40, 12


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL))


def gemma() -> Any:
    """Sliding and full layers; the window is shorter than the prompt."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    layers = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=16, layer_types=layers)
    )


SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.fixture(params=[llama, gemma], ids=["full", "sliding"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    make: Callable[[], Any] = request.param
    return make().eval().requires_grad_(False)


def prefill(model: Any, ids: torch.Tensor) -> tuple[DynamicCache, int]:
    cache = DynamicCache(config=model.config)
    output = model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache, int(output.logits[0, -1].argmax())


def expected(model: Any, ids: torch.Tensor) -> list[int]:
    made = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    tokens: list[int] = made[0, ids.shape[1] :].tolist()
    return tokens


def test_a_batch_says_what_each_prompt_says_alone(model: Any) -> None:
    prompts = torch.randint(1, 61, (5, LENGTH), generator=torch.Generator().manual_seed(0))
    wanted = [expected(model, prompt[None]) for prompt in prompts]
    assert len({tuple(tokens) for tokens in wanted}) > 1
    done = [prefill(model, prompt[None]) for prompt in prompts]
    assert cache_bytes(done[0][0]) > 0
    # A token that one answer holds ends that answer and leaves the others alone.
    stop = frozenset({wanted[0][6]})
    found = decode_greedily(
        model.get_decoder(),
        LogitHead.of(model),
        [cache for cache, _ in done],
        [first for _, first in done],
        max_new_tokens=NEW,
        stop=stop,
    )
    for tokens, answer in zip(wanted, found, strict=True):
        end = next((n for n, token in enumerate(tokens) if token in stop), NEW)
        assert list(answer) == tokens[:end]


def test_one_token_needs_no_decoding(model: Any) -> None:
    cache, first = prefill(model, torch.randint(1, 61, (1, LENGTH)))

    def refuse(**options: Any) -> Any:
        raise AssertionError("the decoder ran")

    found = decode_greedily(
        refuse, LogitHead.of(model), [cache], [first], max_new_tokens=1, stop=frozenset()
    )
    assert found == ((first,),)
