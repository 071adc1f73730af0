"""The adapter with a stand-in for the harness, and with the harness where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sp_profile.lm_eval_adapter import attached_lm
from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.operating_point import OperatingPoint

POINT = OperatingPoint(method="vertical_slash", gamma=0.5, min_budget=64, min_tokens=128)
HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None


class FakeLm:
    """What HFLM does with a model object, as far as the model can tell."""

    def __init__(self, *, pretrained: Any, tokenizer: Any, batch_size: int, note: str = "") -> None:
        self.model, self.tokenizer = pretrained, tokenizer
        self.batch_size, self.note = batch_size, note

    def loglikelihood_of(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.model(ids).logits
        return logits.log_softmax(-1)

    def generate(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            tokens: torch.Tensor = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_length=ids.shape[1] + 4,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        return tokens


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(tiny_model)


def test_requests_run_sparsely_and_the_model_is_restored(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = torch.randint(3, 400, (1, 500), generator=torch.Generator().manual_seed(0))
    dense = model(ids).logits
    options: dict[str, Any] = {"point": POINT, "block_size": 64, "make_lm": FakeLm, "note": "kept"}
    with attached_lm(model, tokenizer, **options) as attached:
        assert (attached.lm.batch_size, attached.lm.note) == (1, "kept")
        sparse = attached.lm.loglikelihood_of(ids)
        made = attached.lm.generate(ids)
        summary = attached.report.summary()
    assert [forward.path for forward in summary.forwards[:2]] == ["sparse", "sparse"]
    assert summary.totals.density is not None
    assert summary.totals.density < 1
    assert made.shape[1] == 504
    assert not torch.allclose(sparse, dense.log_softmax(-1), atol=1e-4)
    assert torch.equal(model(ids).logits, dense)


def test_padded_batches_are_refused(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    with (
        pytest.raises(UsageError, match="batch_size 8"),
        attached_lm(model, tokenizer, point=POINT, batch_size=8, make_lm=FakeLm),
    ):
        pass
    ids = torch.ones(2, 300, dtype=torch.long)
    mask = ids.clone()
    mask[0, :50] = 0
    with (
        attached_lm(model, tokenizer, point=POINT, block_size=64, make_lm=FakeLm) as attached,
        pytest.raises(UnsupportedError),
    ):
        attached.lm.model(ids, attention_mask=mask)


@pytest.mark.skipif(HAS_HARNESS, reason="lm-eval is installed")
def test_a_missing_harness_is_named(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    with pytest.raises(UsageError, match="lm_eval"), attached_lm(model, tokenizer, point=POINT):
        pass
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(not HAS_HARNESS, reason="lm-eval is not installed")
def test_the_harness_scores_an_attached_model(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    context = "the sky is blue " * 60
    request = SimpleNamespace(args=(context, " green"), request_type="loglikelihood")
    with attached_lm(model, tokenizer, point=POINT, block_size=64) as attached:
        ((value, _),) = attached.lm.loglikelihood([request], disable_tqdm=True)
        assert attached.report.summary().forwards[-1].path == "sparse"
    ids = tokenizer(context.rstrip() + " green", return_tensors="pt")["input_ids"]
    assert ids.shape[1] > POINT.min_tokens
    assert value < 0
