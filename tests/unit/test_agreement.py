"""Agreement of sparse with dense against a literal float64 computation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sp_profile import agreement
from sp_profile.agreement import LogitHead, measure_agreement, sample_positions
from sp_runtime.errors import UnsupportedError, UsageError


def linear_head(hidden: int = 16, vocabulary: int = 50) -> nn.Linear:
    torch.manual_seed(42)
    return nn.Linear(hidden, vocabulary, bias=False)


def literal_kl(head: nn.Linear, dense: Tensor, sparse: Tensor) -> list[float]:
    weight = head.weight.detach().double()
    divergences = []
    for a, b in zip(dense.double(), sparse.double(), strict=True):
        p, q = (weight @ a).softmax(0).tolist(), (weight @ b).softmax(0).tolist()
        divergences.append(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
    return divergences


@pytest.mark.parametrize("slice_bytes", [200, 4 * 50 * 7, 1 << 20], ids=["one", "seven", "all"])
def test_equals_the_literal_definition(monkeypatch: pytest.MonkeyPatch, slice_bytes: int) -> None:
    monkeypatch.setattr(agreement, "_SLICE_BYTES", slice_bytes)
    head = linear_head()
    dense = torch.randn(23, 16)
    sparse = dense + 0.3 * torch.randn(23, 16)
    found = measure_agreement(head, dense, sparse)
    expected = literal_kl(head, dense, sparse)
    assert found.positions == found.of_positions == 23
    assert found.kl_mean == pytest.approx(sum(expected) / 23, rel=1e-4)
    assert found.kl_max == pytest.approx(max(expected), rel=1e-4)
    assert found.kl_last == pytest.approx(expected[-1], rel=1e-4)
    hits = (head(dense).argmax(-1) == head(sparse).argmax(-1)).sum().item()
    assert found.top1 == pytest.approx(hits / 23)
    assert 0 < hits < 23
    assert found.hidden_max_abs == pytest.approx((dense - sparse).abs().max().item())
    assert found.hidden_rel == pytest.approx(((dense - sparse).norm() / dense.norm()).item())


def test_equal_states_agree_in_everything() -> None:
    dense = torch.randn(9, 16)
    found = measure_agreement(linear_head(), dense, dense.clone(), generated_equal=True)
    assert (found.kl_mean, found.kl_max, found.top1) == (0.0, 0.0, 1.0)
    assert (found.hidden_max_abs, found.hidden_rel) == (0.0, 0.0)
    assert found.generated_equal is True


@given(total=st.integers(1, 500), sample=st.integers(1, 600))
def test_sampled_positions_are_distinct_ascending_and_end_at_the_last(
    total: int, sample: int
) -> None:
    positions = sample_positions(total, sample).tolist()
    assert len(positions) == min(total, sample)
    assert positions == sorted(set(positions))
    assert positions[0] >= 0
    assert positions[-1] == total - 1


def test_a_sample_is_stated() -> None:
    dense = torch.randn(100, 16)
    found = measure_agreement(linear_head(), dense, dense + 1, sample=10)
    assert (found.positions, found.of_positions) == (10, 100)


def test_different_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="differ"):
        measure_agreement(linear_head(), torch.randn(4, 16), torch.randn(5, 16))


def tiny_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(42)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def test_head_of_a_model_gives_its_logits() -> None:
    model = tiny_llama()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(LogitHead.of(model)(hidden), model(input_ids=ids).logits[0])
    LogitHead.of(model).check(model, model.get_decoder())


def test_head_of_a_model_with_unknown_logits_is_refused() -> None:
    model = tiny_llama()
    plain = model.forward

    def scaled(**arguments: object) -> object:
        output = plain(**arguments)
        output.logits = output.logits * 1.7
        return output

    model.forward = scaled
    with pytest.raises(UnsupportedError, match="logits"):
        LogitHead.of(model).check(model, model.get_decoder())
