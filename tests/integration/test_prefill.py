"""The prefill driver on a tiny model that mixes full and sliding-window layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sp_profile import prefill
from sp_profile.prefill import Prefiller, encode_prompts
from sp_profile.prefill_types import EncodedPrompt, PrefillConfig
from sp_profile.prompts import PromptText
from sp_profile.timing import attention_clock
from sp_runtime.errors import ResourceError, UsageError
from sp_runtime.operating_point import OperatingPoint

POINT = OperatingPoint(method="vertical_slash", min_budget=4096, min_tokens=64)
CONFIG = PrefillConfig(point=POINT, block_size=64, compare_dense=True, generate=3)


class Words:
    """A tokenizer of one token a letter."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 60 + 3 for letter in text]}

    def decode(self, ids: list[int], **options: bool) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def model() -> Any:
    """Gemma 3 with layers sliding, full, sliding; window 128."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(42)
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        eos_token_id=1,
    )
    return Gemma3ForCausalLM(config).eval().requires_grad_(False)


def prompt(tokens: int) -> EncodedPrompt:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(3, 64, (tokens,), generator=generator).tolist()
    return EncodedPrompt(name=f"{tokens}", sha256="0" * 64, token_ids=tuple(ids))


@pytest.mark.parametrize("chunk_size", [None, 150], ids=["whole", "chunks"])
def test_sliding_layers_stay_native_and_count_in_no_density(
    model: Any, chunk_size: int | None
) -> None:
    config = replace(CONFIG, chunk_size=chunk_size)
    result = Prefiller(model, Words(), config, None).run(prompt(400))
    full = result.sparsity.layers[1]
    assert full.native is None
    assert full.density == pytest.approx(1)
    for layer in (result.sparsity.layers[0], result.sparsity.layers[2]):
        assert layer.density is None
        assert "sliding window of 128" in (layer.native or "")
    chunks = 1 if chunk_size is None else 3
    assert result.sparsity.branches.vertical_slash == 4 * chunks
    assert result.sparsity.branches.dense == 0
    assert result.agreement is not None
    assert result.agreement.hidden_rel < 1e-5
    assert result.agreement.generated_equal is True


def test_method_dense_is_reported_as_dense(model: Any) -> None:
    config = replace(CONFIG, point=replace(POINT, method="dense"), compare_dense=False)
    result = Prefiller(model, Words(), config, None).run(prompt(200))
    assert (result.sparsity.path, result.sparsity.density) == ("dense", 1)
    assert result.sparsity.reasons == ("method dense",)
    assert result.sparsity.branches.dense == 4
    assert result.agreement is result.dense_timing is result.speedup is None
    assert len(result.generated) <= 3


def test_fewer_blocks_are_fewer_and_differ(model: Any) -> None:
    point = replace(POINT, gamma=0.3, min_budget=64)
    result = Prefiller(model, Words(), replace(CONFIG, point=point), None).run(prompt(700))
    assert 0.1 < result.sparsity.density < 0.9
    assert result.agreement is not None
    assert result.agreement.hidden_rel > 1e-5


def test_the_model_and_its_attention_table_are_restored(model: Any) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table

    before = (model.config._attn_implementation, dict(table))
    with attention_clock(model, model.device):
        assert table["sdpa"] is not before[1]["sdpa"]
    Prefiller(model, Words(), CONFIG, None).run(prompt(100))
    after = {name: function for name, function in table.items() if name in before[1]}
    assert (model.config._attn_implementation, after) == before


def test_out_of_memory_names_the_prompt_and_the_knob(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Prefiller(model, Words(), CONFIG, None)

    def exhausted(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(prefill, "measure_agreement", exhausted)
    with pytest.raises(ResourceError, match="100 tokens") as caught:
        driver.run(prompt(100))
    assert "--chunk-size" in (caught.value.hint or "")


def test_prompts_that_do_not_fit_are_named() -> None:
    prompts = [PromptText(text="x" * n, name=f"of {n}") for n in (5, 9, 10)]
    options: dict[str, Any] = {"context": 11, "keep_going": True}
    encoded, problems = encode_prompts(prompts, Words(), CONFIG, **options)
    # Three tokens are to be generated, of which two need a position.
    assert [len(each.token_ids) for each in encoded] == [5, 9]
    assert len(problems) == 1
    assert "of 10" in problems[0].message
    with pytest.raises(UsageError, match="of 10"):
        encode_prompts(prompts, Words(), CONFIG, context=11)
