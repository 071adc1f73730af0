"""The fingerprint: stable against bookkeeping, sensitive to what changes attention."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from sp_runtime.errors import ProfileMismatchError, UnsupportedError
from sp_runtime.fingerprint import (
    HASHED_KEYS,
    ModelFingerprint,
    compare,
    fingerprint_config,
    require_match,
)

BASE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
}


def config(**changes):
    return SimpleNamespace(**{**BASE, **changes})


def fingerprint(**changes) -> ModelFingerprint:
    return fingerprint_config(config(**changes))


def test_fields():
    found = fingerprint()
    assert (found.num_layers, found.num_heads, found.num_kv_heads, found.head_dim) == (4, 4, 2, 16)
    assert found.layer_types == ("full_attention",) * 4
    assert found.full_layers == (0, 1, 2, 3)
    assert found.rope == '{"rope_theta":10000,"rope_type":"default"}'
    assert len(found.config_sha256) == 64
    assert found.weights_sha256 is None


@pytest.mark.parametrize(
    "change",
    [
        {"_name_or_path": "/models/x"},
        {"transformers_version": "5.99"},
        {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
        {"quantization_config": {"bits": 4}},
        {"use_cache": False},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"vocab_size": 32001},
        {"a_key_of_the_future": 1},
        {"attention_bias": None},
        {"rope_theta": 10000},
        {"rope_scaling": None},
        {"rope_scaling": {"type": "default"}},
        {"partial_rotary_factor": 1.0},
        {"sliding_window": None},
        {"sliding_window": 1024},
        {"sliding_window": 128, "use_sliding_window": False},
        {"head_dim": 16},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    ],
    ids=str,
)
def test_bookkeeping_does_not_change_it(change):
    assert fingerprint(**change) == fingerprint()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_hidden_layers": 5}, "num_layers"),
        ({"num_attention_heads": 8}, "num_heads"),
        ({"num_key_value_heads": 4}, "num_kv_heads"),
        ({"num_key_value_heads": None}, "num_kv_heads"),
        ({"head_dim": 32}, "head_dim"),
        ({"rope_theta": 500000.0}, "rope"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope"),
        ({"partial_rotary_factor": 0.5}, "rope"),
        ({"max_position_embeddings": 2048}, "max_position_embeddings"),
        ({"sliding_window": 128}, "layer_types"),
        ({"model_type": "qwen2"}, "model_type"),
        ({"attention_bias": True}, "config_sha256"),
        ({"intermediate_size": 128}, "config_sha256"),
        ({"query_pre_attn_scalar": 24}, "config_sha256"),
    ],
    ids=str,
)
def test_what_changes_attention_changes_it(change, field):
    differing = {difference.field for difference in compare(fingerprint(), fingerprint(**change))}
    assert {field, "config_sha256"} <= differing


@pytest.mark.parametrize("key", HASHED_KEYS)
def test_every_listed_key_is_hashed(key):
    assert fingerprint(**{key: 3}).config_sha256 != fingerprint(**{key: 5}).config_sha256


def test_window_length_is_part_of_it_only_where_a_layer_slides():
    assert fingerprint(sliding_window=128) != fingerprint(sliding_window=256)
    full = {"layer_types": ["full_attention"] * 4}
    assert fingerprint(sliding_window=128, **full) == fingerprint(sliding_window=256, **full)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sliding_window": 128}, "ssss"),
        ({"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 3}, "fffs"),
        ({"sliding_window": 128, "use_sliding_window": False, "max_window_layers": 0}, "ffff"),
        ({"sliding_window": 128, "sliding_window_pattern": 2}, "sfsf"),
        (
            {"sliding_window": 128, "layer_types": ["full_attention", "sliding_attention"] * 2},
            "fsfs",
        ),
        ({"sliding_window": 1024, "layer_types": ["sliding_attention"] * 4}, "ffff"),
        ({"sliding_window": 1023}, "ssss"),
    ],
    ids=str,
)
def test_layer_types(change, expected):
    names = {"s": "sliding_attention", "f": "full_attention"}
    assert fingerprint(**change).layer_types == tuple(names[letter] for letter in expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layer_types": ["full_attention", "linear_attention"] * 2}, "linear_attention"),
        ({"layer_types": ["full_attention"] * 3}, "3 types for 4 layers"),
        ({"num_attention_heads": None}, "num_attention_heads = None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings = 'long'"),
    ],
    ids=str,
)
def test_other_configs_are_refused_by_name(change, named):
    with pytest.raises(UnsupportedError, match=named):
        fingerprint(**change)


def test_float32_noise_of_a_model_file_does_not_change_it():
    noisy = fingerprint(rope_theta=999999.98, attn_scale=0.10000000149011612)
    assert noisy == fingerprint(rope_theta=1000000, attn_scale=0.1)


def test_order_of_rope_keys_does_not_change_it():
    forward = {"rope_type": "llama3", "factor": 8.0, "long_factor": [1.0, 2.5]}
    backward = dict(reversed(forward.items()))
    assert list(forward) != list(backward)
    assert fingerprint(rope_scaling=forward) == fingerprint(rope_scaling=backward)
    assert '"long_factor":[1,2.5]' in fingerprint(rope_scaling=forward).rope


def test_rope_of_each_layer_type():
    nested = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    found = fingerprint(rope_theta=None, rope_parameters=nested)
    assert '"sliding_attention":{"rope_theta":10000,' in found.rope
    nested["sliding_attention"]["rope_theta"] = 1e5
    assert fingerprint(rope_theta=None, rope_parameters=nested).rope != found.rope


def test_a_multimodal_config_is_its_text_part():
    text = config()
    outer = SimpleNamespace(model_type="vision", get_text_config=lambda decoder: text)
    assert fingerprint_config(outer) == fingerprint_config(text)


def test_real_config_does_not_depend_on_how_it_was_made():
    transformers = pytest.importorskip("transformers")
    made = transformers.Qwen3Config(num_hidden_layers=2, dtype="float16")
    read = transformers.Qwen3Config.from_dict(made.to_dict())
    read.architectures = ["Qwen3ForCausalLM"]
    assert fingerprint_config(made) == fingerprint_config(read)
    assert fingerprint_config(made).architecture == "Qwen3"


class TestRequireMatch:
    ours = dataclasses.replace(fingerprint(), weights_sha256="a" * 64)

    def test_equal(self):
        require_match(self.ours, self.ours)

    @pytest.mark.parametrize("side", ["expected", "found"])
    def test_unknown_weights_are_not_compared(self, side):
        unknown = dataclasses.replace(self.ours, weights_sha256=None)
        pair = (unknown, self.ours) if side == "expected" else (self.ours, unknown)
        require_match(*pair)
        assert compare(*pair) == ()

    def test_other_weights(self):
        other = dataclasses.replace(self.ours, weights_sha256="b" * 64)
        with pytest.raises(ProfileMismatchError, match="weights_sha256") as caught:
            require_match(self.ours, other)
        assert "fine-tune" in str(caught.value)
        require_match(self.ours, other, allow_weights=True)

    def test_both_sides_are_shown_and_the_difference_marked(self):
        other = dataclasses.replace(self.ours, num_layers=7, rope="{}")
        with pytest.raises(ProfileMismatchError) as caught:
            require_match(self.ours, other, allow_weights=True)
        rows = {line.split()[0]: line for line in str(caught.value).splitlines() if line.strip()}
        assert rows["num_layers"].split() == ["num_layers", "4", "7", "differs"]
        assert rows["rope"].endswith("differs")
        assert rows["head_dim"].split() == ["head_dim", "16", "16"]
        assert {field.name for field in dataclasses.fields(ModelFingerprint)} <= set(rows)
