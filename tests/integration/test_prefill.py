"""The prefill driver on a tiny model that mixes full and sliding-window layers."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch

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
    assert result.generated_tokens <= 3
    assert result.generated is result.text is None


def test_fewer_blocks_are_fewer_and_differ(model: Any) -> None:
    point = replace(POINT, gamma=0.3, min_budget=64)
    result = Prefiller(model, Words(), replace(CONFIG, point=point), None).run(prompt(700))
    assert 0.1 < result.sparsity.density < 0.9
    assert result.agreement is not None
    assert result.agreement.hidden_rel > 1e-5


def test_audited_heads_are_the_same_in_every_run(model: Any) -> None:
    point = replace(POINT, method="streaming", sink=64, window=64)
    config = replace(CONFIG, point=point, compare_dense=False, audit=0.5, chunk_size=300)
    first, second = (Prefiller(model, Words(), config, None).run(prompt(600)) for _ in range(2))
    assert first.sparsity.audits == second.sparsity.audits
    places = [(audit.forward, audit.layer, audit.head) for audit in first.sparsity.audits]
    assert 0 < len(places) < 8  # of four heads in two chunks
    assert {(audit.sequence, audit.layer, audit.branch) for audit in first.sparsity.audits} == {
        (0, 1, "streaming")
    }
    assert all(0 < audit.recall < 1 for audit in first.sparsity.audits)
    plain = Prefiller(model, Words(), replace(config, audit=0.0), None).run(prompt(600))
    assert plain.sparsity.audits == ()
    assert replace(first.sparsity, audits=()) == plain.sparsity


def test_the_model_and_its_attention_table_are_restored(model: Any) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table

    before = (model.config._attn_implementation, dict(table))
    with attention_clock(model, model.device):
        assert table["sdpa"] is not before[1]["sdpa"]
        assert not gc.isenabled()
    assert gc.isenabled()
    Prefiller(model, Words(), CONFIG, None).run(prompt(100))
    after = {name: function for name, function in table.items() if name in before[1]}
    assert (model.config._attn_implementation, after) == before


def fail_forwards(
    monkeypatch: pytest.MonkeyPatch, smallest: int, error: type[Exception] = torch.OutOfMemoryError
) -> list[int]:
    """Sparse forwards of at least so many tokens fail; returns the tokens of every forward."""
    seen: list[int] = []
    forward, attached = Prefiller._forward, Prefiller._attached
    methods: list[str] = []

    def noted(self: Prefiller, attempt: Any, *, dense: bool) -> Any:
        methods.append("dense" if dense else attempt.point.method)
        return attached(self, attempt, dense=dense)

    def failing(self: Prefiller, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        seen.append(ids.shape[1])
        if methods[-1] != "dense" and ids.shape[1] >= smallest:
            raise error("out of memory")
        return forward(self, ids, cache)

    monkeypatch.setattr(Prefiller, "_attached", noted)
    monkeypatch.setattr(Prefiller, "_forward", failing)
    return seen


SPARSE = replace(CONFIG, compare_dense=False, generate=0)


def test_out_of_memory_is_tried_once_more_in_half_the_chunks(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefiller = Prefiller(model, Words(), SPARSE, None)
    seen = fail_forwards(monkeypatch, smallest=300)
    result = prefiller.run(prompt(400))
    assert seen == [400, 256, 144]
    assert (result.chunk_tokens, result.sparsity.path) == (256, "sparse")
    assert result.sparsity.reasons == ("smaller chunks: out of memory",)
    assert prefiller.run(prompt(200)).chunk_tokens == 200


def test_out_of_memory_twice_names_the_prompt_and_the_knob(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefiller = Prefiller(model, Words(), SPARSE, None)
    seen = fail_forwards(monkeypatch, smallest=100)
    with pytest.raises(ResourceError, match="400: out of memory on cpu at 400 tokens") as caught:
        prefiller.run(prompt(400))
    assert seen == [400, 256]
    assert "--chunk-size" in str(caught.value.hint)


def test_out_of_memory_falls_back_to_dense_only_where_that_is_allowed(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefiller = Prefiller(model, Words(), replace(SPARSE, on_oom="dense"), None)
    seen = fail_forwards(monkeypatch, smallest=100)
    result = prefiller.run(prompt(400))
    assert seen == [400, 256, 256, 144]
    assert (result.sparsity.path, result.chunk_tokens) == ("dense", 256)
    assert result.sparsity.reasons[-1] == "dense after running out of memory, as on_oom allows"


def test_other_errors_of_the_device_are_not_tried_again(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefiller = Prefiller(model, Words(), replace(SPARSE, on_oom="dense"), None)
    seen = fail_forwards(monkeypatch, smallest=100, error=torch.AcceleratorError)
    with pytest.raises(torch.AcceleratorError):
        prefiller.run(prompt(400))
    assert seen == [400]


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
