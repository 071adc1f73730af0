"""Everything that would be computed wrongly is refused by name, before or in the forward."""

from __future__ import annotations

import pytest
import torch

from sp_runtime.errors import UnsupportedError
from sp_runtime.integrations.transformers_mask import sp_mask
from sp_runtime.integrations.transformers_session import (
    SESSION_ATTRIBUTE,
    attention_session,
    sp_attention,
)

NAME = "sp_test"


@pytest.fixture
def attached(make_model, literal):
    """A tiny Llama with a session open on it."""
    model = make_model("llama")
    with attention_session(model, literal, name=NAME):
        yield model


def refuse_to_attach(model, literal, match):
    before = model.config._attn_implementation
    with (
        pytest.raises(UnsupportedError, match=match) as caught,
        attention_session(model, literal, name=NAME),
    ):
        pass
    assert model.config._attn_implementation == before
    assert all(SESSION_ATTRIBUTE not in module.__dict__ for module in model.modules())
    return str(caught.value)


def refuse_forward(model, match, /, *args, **kwargs):
    with torch.no_grad(), pytest.raises(UnsupportedError, match=match):
        model(*args, **kwargs)


def test_softcap(make_model, literal):
    refuse_to_attach(make_model("gemma2"), literal, "softcap: .* 50.0")


def test_gemma2_without_softcap_is_welcome(make_model, make_tokens, literal):
    model = make_model("gemma2", attn_logit_softcapping=None, sliding_window=80)
    with torch.no_grad():
        dense = model(make_tokens(90)).logits
        with attention_session(model, literal, name=NAME):
            ours = model(make_tokens(90)).logits
    torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-3)


def test_sinks(make_model, literal):
    refuse_to_attach(make_model("gpt-oss"), literal, "sinks")


def test_dropout_in_train_mode(make_model, literal):
    model = make_model("llama", attention_dropout=0.1)
    with attention_session(model, literal, name=NAME):
        pass
    refuse_to_attach(model.train(), literal, r"dropout: attention_dropout is 0\.1")


def test_dropout_switched_on_inside(make_model, make_tokens, literal):
    model = make_model("llama", attention_dropout=0.1)
    with attention_session(model, literal, name=NAME):
        refuse_forward(model.train(), "dropout", make_tokens(70))


def test_bidirectional(make_model, literal):
    refuse_to_attach(make_model("gemma3", use_bidirectional_attention=True), literal, "not causal")


def test_static_cache_in_the_generation_config(make_model, literal):
    model = make_model("llama")
    model.generation_config.cache_implementation = "static"
    refuse_to_attach(model, literal, "static cache: generation_config")


def test_encoder_decoder(literal):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    refuse_to_attach(T5ForConditionalGeneration(config).eval(), literal, "encoder-decoder")


def test_model_without_the_attention_interface(literal):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4)
    refuse_to_attach(MambaForCausalLM(config).eval(), literal, "layers: 0 of 2")


def test_all_reasons_at_once(make_model, literal):
    model = make_model("gemma2", attention_dropout=0.2).train()
    model.generation_config.cache_implementation = "static"
    message = refuse_to_attach(model, literal, "cannot be attached")
    for reason in ("softcap", "dropout", "static cache"):
        assert f"- {reason}" in message


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side, attached, make_tokens):
    ids = make_tokens(70, batch=2)
    mask = torch.ones_like(ids)
    mask[0, : 5 if side == "left" else None] = 0
    mask[0, 20 if side == "left" else 0 : 60] = 1
    assert mask.min() == 0
    refuse_forward(attached, "padding", ids, attention_mask=mask)


def test_padding_in_the_cached_part(attached, make_tokens):
    from transformers import DynamicCache

    ids, cache = make_tokens(70), DynamicCache()
    with torch.no_grad():
        attached(ids[:, :40], past_key_values=cache)
    mask = torch.ones_like(ids)
    mask[:, 3] = 0
    refuse_forward(attached, "padding", ids[:, 40:], attention_mask=mask, past_key_values=cache)


def test_static_cache_object(attached, make_tokens):
    from transformers import StaticCache

    cache = StaticCache(config=attached.config, max_cache_len=128)
    refuse_forward(attached, "static cache", make_tokens(70), past_key_values=cache)


def test_static_cache_in_generate(attached, make_tokens):
    with torch.no_grad(), pytest.raises(UnsupportedError, match="static cache"):
        attached.generate(
            make_tokens(70), max_new_tokens=3, do_sample=False, cache_implementation="static"
        )


def test_requires_grad(attached, make_tokens):
    with pytest.raises(UnsupportedError, match=r"requires_grad.*no_grad"):
        attached(make_tokens(70))


def test_frozen_weights_need_no_no_grad(attached, make_tokens, literal):
    attached.requires_grad_(False)
    attached(make_tokens(70))
    assert literal.layers == [0, 1]


def test_custom_4d_mask(attached, make_tokens):
    mask = torch.ones(1, 1, 70, 70, dtype=torch.bool).tril()
    refuse_forward(attached, "custom attention mask", make_tokens(70), attention_mask=mask)


def test_packed_sequences(attached, make_tokens):
    positions = torch.cat([torch.arange(30), torch.arange(40)])[None]
    refuse_forward(
        attached, "packed sequences", make_tokens(70), position_ids=positions, use_cache=False
    )


def test_output_attentions(attached, make_tokens):
    refuse_forward(attached, "output_attentions", make_tokens(70), output_attentions=True)


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "sinks"),
        ({"is_causal": False}, "not causal"),
        ({"dropout": 0.1}, "dropout"),
        ({"position_bias": torch.zeros(1)}, "position bias"),
    ],
)
def test_keywords_of_the_attention_call(option, match, attached):
    """What no tiny model passes, at the function that transformers calls."""
    q, k = torch.zeros(1, 4, 8, 16), torch.zeros(1, 2, 8, 16)
    module = attached.model.layers[0].self_attn
    mask = sp_mask(batch_size=1, q_length=8, kv_length=8)
    assert sp_attention(module, q, k, k, mask)[0].shape == (1, 8, 4, 16)
    with pytest.raises(UnsupportedError, match=match):
        sp_attention(module, q, k, k, mask, **option)


def test_keys_of_another_length_than_the_mask(attached):
    module = attached.model.layers[0].self_attn
    q, k = torch.zeros(1, 4, 8, 16), torch.zeros(1, 2, 12, 16)
    with pytest.raises(UnsupportedError, match="cross attention"):
        sp_attention(module, q, k, k, sp_mask(batch_size=1, q_length=8, kv_length=8))
    with pytest.raises(UnsupportedError, match="without a mask"):
        sp_attention(module, q, k, k, None)
    with pytest.raises(UnsupportedError, match="head size"):
        sp_attention(
            module,
            q,
            k[:, :, :8],
            torch.zeros(1, 2, 8, 24),
            sp_mask(batch_size=1, q_length=8, kv_length=8),
        )
