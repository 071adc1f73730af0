"""The session: what reaches the handler, what stays native, and that the model is restored."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch

from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.fingerprint import fingerprint_config
from sp_runtime.integrations.transformers_mask import ForwardCall
from sp_runtime.integrations.transformers_session import (
    SESSION_ATTRIBUTE,
    attention_modules,
    attention_session,
)

NAME = "sp_test"
FULL_FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi3", "glm4"]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def assert_untouched(model, implementation="sdpa"):
    assert model.config._attn_implementation == implementation
    for module in model.modules():
        assert SESSION_ATTRIBUTE not in module.__dict__


@pytest.mark.parametrize("family", [*FULL_FAMILIES, "mistral-sliding", "gemma3"])
@pytest.mark.parametrize("length", [1, 70, 133])
def test_logits_equal_dense(family, length, make_model, make_tokens, literal):
    model, ids = make_model(family), make_tokens(length)
    dense = model(ids).logits
    with attention_session(model, literal, name=NAME):
        ours = model(ids).logits
    torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FULL_FAMILIES)
def test_every_layer_reaches_the_handler(family, make_model, make_tokens, literal):
    model = make_model(family)
    with attention_session(model, literal, name=NAME):
        model(make_tokens(90))
    assert literal.layers == [0, 1]
    assert literal.calls == [ForwardCall(q_len=90, kv_len=90, q_offset=0)]


def test_handler_output_is_what_the_model_computes_with(make_model, make_tokens, literal):
    """Not a copy of native attention: another handler output gives other logits."""
    model, ids = make_model("llama"), make_tokens(80)
    dense = model(ids).logits

    class Zeros:
        def begin(self, call):
            pass

        def attend(self, layer, q, k, v, scale):
            return torch.zeros_like(q)

    with attention_session(model, Zeros(), name=NAME):
        zeros = model(ids).logits
    assert (zeros - dense).abs().max() > 0.1


def test_gemma3_sliding_layers_stay_native_and_say_so(make_model, make_tokens, literal):
    model, native = make_model("gemma3"), []
    with attention_session(model, literal, name=NAME, on_native=lambda *told: native.append(told)):
        model(make_tokens(130))
    assert literal.layers == [1, 3]
    assert native == [(0, "sliding window of 80 tokens"), (2, "sliding window of 80 tokens")]
    assert len(literal.calls) == 1


def test_window_that_holds_the_sequence_counts_as_full(make_model, make_tokens, literal):
    model, native = make_model("gemma3"), []
    dense = [model(make_tokens(n)).logits for n in (80, 81)]
    with attention_session(model, literal, name=NAME, on_native=lambda *told: native.append(told)):
        at_window = model(make_tokens(80)).logits
        assert literal.layers == [0, 1, 2, 3]
        assert native == []
        past_window = model(make_tokens(81)).logits
    assert literal.layers == [0, 1, 2, 3, 1, 3]
    assert [layer for layer, _ in native] == [0, 2]
    assert len(literal.calls) == 2
    torch.testing.assert_close(at_window, dense[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(past_window, dense[1], rtol=1e-3, atol=1e-3)


def test_layers_limit_what_the_handler_takes(make_model, make_tokens, literal):
    model, native = make_model("gemma3"), []
    with attention_session(
        model,
        literal,
        name=NAME,
        layers=frozenset({1, 3}),
        on_native=lambda *told: native.append(told),
    ):
        model(make_tokens(70))
    assert literal.layers == [1, 3]
    assert [layer for layer, _ in native] == [0, 2]


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral-sliding"])
@pytest.mark.parametrize("chunks", [[170], [64, 64, 42], [34] * 5, [100, 1, 69]])
def test_chunks_equal_one_forward(family, chunks, make_model, make_tokens, literal):
    from transformers import DynamicCache

    model, ids = make_model(family), make_tokens(170)
    dense = model(ids).logits
    cache, parts, start = DynamicCache(config=model.config), [], 0
    with attention_session(model, literal, name=NAME):
        for size in chunks:
            parts.append(model(ids[:, start : start + size], past_key_values=cache).logits)
            start += size
    torch.testing.assert_close(torch.cat(parts, dim=1), dense, rtol=1e-3, atol=1e-3)
    assert [(call.q_offset, call.q_len) for call in literal.calls] == [
        (sum(chunks[:i]), size) for i, size in enumerate(chunks)
    ]
    assert all(call.kv_len == call.q_offset + call.q_len for call in literal.calls)


def test_batch_without_padding(make_model, make_tokens, literal):
    model, ids = make_model("qwen3"), make_tokens(100, batch=2)
    dense = model(ids).logits
    with attention_session(model, literal, name=NAME):
        ours = model(ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-3)


def test_calling_the_decoder_alone(make_model, make_tokens, literal):
    model, ids = make_model("llama"), make_tokens(75)
    dense = model.model(ids).last_hidden_state
    with attention_session(model, literal, name=NAME):
        ours = model.model(ids).last_hidden_state
    assert literal.layers == [0, 1]
    torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-3)


def test_generate_equals_dense(make_model, make_tokens, literal):
    model, ids = make_model("llama"), make_tokens(70)
    options = {"max_new_tokens": 6, "do_sample": False}
    dense = model.generate(ids, **options)
    with attention_session(model, literal, name=NAME):
        ours = model.generate(ids, **options)
    assert ours.tolist() == dense.tolist()
    assert [call.q_len for call in literal.calls] == [70, 1, 1, 1, 1, 1]


def test_a_forward_after_a_failed_one_begins_anew(make_model, make_tokens, make_literal):
    class Fails(make_literal):
        def attend(self, layer, q, k, v, scale):
            if layer == 1 and len(self.calls) == 1:
                raise RuntimeError("out of luck")
            return super().attend(layer, q, k, v, scale)

    model, handler = make_model("llama"), Fails()
    with attention_session(model, handler, name=NAME):
        with pytest.raises(RuntimeError, match="out of luck"):
            model(make_tokens(70))
        model(make_tokens(72))
    assert [call.q_len for call in handler.calls] == [70, 72]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_restored_after_the_block(implementation, make_model, literal):
    model = make_model("llama")
    model.set_attn_implementation(implementation)
    with attention_session(model, literal, name=NAME):
        assert model.config._attn_implementation == NAME
    assert_untouched(model, implementation)


def test_restored_after_an_exception(make_model, make_tokens, literal):
    model = make_model("llama")
    dense = model(make_tokens(70)).logits
    with (
        pytest.raises(ZeroDivisionError),
        attention_session(model, literal, name=NAME),
    ):
        raise ZeroDivisionError
    assert_untouched(model)
    assert torch.equal(model(make_tokens(70)).logits, dense)


def test_restored_after_a_refused_forward(make_model, make_tokens, literal):
    model, ids = make_model("llama"), make_tokens(70)
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    with (
        pytest.raises(UnsupportedError, match="padding"),
        attention_session(model, literal, name=NAME),
    ):
        model(ids, attention_mask=mask)
    assert_untouched(model)


def test_two_models_each_use_their_own(make_model, make_tokens, make_literal):
    first, second = make_model("llama"), make_model("qwen3")
    ours, theirs = make_literal(), make_literal()
    with attention_session(first, ours, name=NAME), attention_session(second, theirs, name=NAME):
        first(make_tokens(70))
        second(make_tokens(71))
        first(make_tokens(72))
    assert [call.q_len for call in ours.calls] == [70, 72]
    assert [call.q_len for call in theirs.calls] == [71]


def test_two_models_closed_in_the_other_order(make_model, make_tokens, make_literal):
    first, second = make_model("llama"), make_model("llama")
    ours, theirs = make_literal(), make_literal()
    outer = attention_session(first, ours, name=NAME)
    outer.__enter__()
    with attention_session(second, theirs, name=NAME):
        outer.__exit__(None, None, None)
        assert_untouched(first)
        second(make_tokens(70))
    assert len(theirs.calls) == 1


def test_nested_is_refused_and_the_outer_goes_on(make_model, make_tokens, make_literal):
    model, outer, inner = make_model("llama"), make_literal(), make_literal()
    with attention_session(model, outer, name=NAME):
        with (
            pytest.raises(UsageError, match="already attached"),
            attention_session(model, inner, name="sp_other"),
        ):
            pass
        model(make_tokens(70))
    assert len(outer.calls) == 1
    assert inner.calls == []
    assert_untouched(model)


def test_shared_config_object(make_model, make_tokens, literal, make_literal):
    """Two models on one config object: the second cannot be attached, but computes as ever."""
    from transformers import LlamaForCausalLM

    model = make_model("llama")
    torch.manual_seed(7)
    sibling = LlamaForCausalLM(model.config).eval()
    ids = make_tokens(70, batch=2)
    padded = torch.ones_like(ids)
    padded[0, :9] = 0
    dense = [sibling(ids).logits, sibling(ids, attention_mask=padded).logits]
    with attention_session(model, literal, name=NAME):
        assert torch.equal(sibling(ids).logits, dense[0])
        assert torch.equal(sibling(ids, attention_mask=padded).logits, dense[1])
        with (
            pytest.raises(UsageError, match="shares this model's config"),
            attention_session(sibling, make_literal(), name=NAME),
        ):
            pass
    assert literal.calls == []


def test_names_of_others_are_not_overwritten(make_model, literal):
    from transformers import AttentionInterface

    before = AttentionInterface()["sdpa"]
    with (
        pytest.raises(UsageError, match="'sdpa' exists"),
        attention_session(make_model("llama"), literal, name="sdpa"),
    ):
        pass
    assert AttentionInterface()["sdpa"] is before


def test_not_a_transformers_model(literal):
    with (
        pytest.raises(UsageError, match="not a transformers model"),
        attention_session(torch.nn.Linear(2, 2), literal, name=NAME),
    ):
        pass


def test_attention_modules_in_layer_order(make_model):
    assert [module.layer_idx for module in attention_modules(make_model("gemma3"))] == [0, 1, 2, 3]


def test_multimodal_model_attaches_its_decoder_only(make_model, make_tokens, literal):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

    text = copy.deepcopy(make_model("gemma3").config)
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    torch.manual_seed(3)
    config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=2)
    model = Gemma3ForConditionalGeneration(config).eval()
    ids = make_tokens(100)
    dense = model(ids).logits
    with attention_session(model, literal, name=NAME):
        assert model.config.vision_config._attn_implementation == "sdpa"
        ours = model(ids).logits
    assert literal.layers == [1, 3]
    torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-3)
    assert model.config.text_config._attn_implementation == "sdpa"


def test_native_mask_is_built_once_a_forward(make_model, make_tokens, literal, monkeypatch):
    import transformers.masking_utils as masking

    built, build = [], masking.sdpa_mask
    monkeypatch.setattr(masking, "sdpa_mask", lambda **it: built.append(1) or build(**it))
    model = make_model("gemma3")
    with attention_session(model, literal, name=NAME):
        model(make_tokens(130))
    assert len(built) == 1  # two sliding layers share it, the full ones need none


@pytest.mark.parametrize("family", [*FULL_FAMILIES, "mistral-sliding", "gemma3", "gemma2"])
def test_fingerprint_of_a_config_equals_that_of_the_model_in_use(family, make_model, make_tokens):
    model = make_model(family)
    as_stored = json.loads(model.config.to_json_string(use_diff=False))
    before = fingerprint_config(type(model.config).from_dict(as_stored))
    model(make_tokens(70))
    after = fingerprint_config(model.config)
    assert before == after
    sliding = {"mistral-sliding": (), "gemma3": (1, 3)}  # gemma2's window holds its context
    assert after.full_layers == sliding.get(family, (0, 1))


def test_importing_the_binding_loads_no_transformers():
    code = (
        "import sys, sp_runtime.integrations.transformers, sp_runtime.fingerprint;"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
