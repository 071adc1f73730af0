"""Models by the names people type: revisions, the cache, offline, near names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from sp_profile.model_source import base_model, resolve_model
from sp_profile.models import load_config, load_model, load_tokenizer
from sp_runtime.errors import CorruptArtefactError, UsageError


def test_names_with_a_revision():
    source = resolve_model("org/tiny@v1.2")
    assert (source.kind, source.hub_id, source.revision) == ("hub", "org/tiny", "v1.2")
    assert source.public_name == "org/tiny"
    assert resolve_model("org/tiny", revision="v1.2").revision == "v1.2"
    assert resolve_model("org/tiny@v1.2", revision="v1.2").revision == "v1.2"
    with pytest.raises(UsageError, match="names a revision"):
        resolve_model("org/tiny@v1.2", revision="main")


def test_a_folder_of_that_name_wins(folder, tmp_path, monkeypatch):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "tiny").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/tiny").kind == "folder"


@pytest.mark.parametrize(
    ("name", "near"), [("smollm-135m", True), ("smollm2_135m", True), ("gpt", False)]
)
def test_a_near_alias_is_suggested(name, near):
    with pytest.raises(UsageError) as caught:
        resolve_model(name)
    assert ("did you mean smollm2-135m?" in caught.value.hint) is near
    assert "owner/name" in caught.value.hint


def test_the_base_model_of_a_card():
    assert base_model("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base_model("org/tiny") == "org/tiny"
    assert base_model("my folder") is None


def test_a_model_of_a_revision_is_the_folders(hub, folder):
    repo = hub.add("org/tiny")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    repo.commit("v1", files, "files")
    source = resolve_model("org/tiny@v1")
    found, expected = load_config(source), load_config(resolve_model(str(folder)))
    assert found.fingerprint == expected.fingerprint
    model = load_model(source, "float32", torch.device("cpu"))
    assert sum(weight.numel() for weight in model.parameters()) > 0
    assert load_tokenizer(source)("The sky")["input_ids"]
    with pytest.raises(UsageError, match="org/tiny has no revision 'v2'"):
        load_config(resolve_model("org/tiny@v2"))


def test_offline_after_one_download(hub, folder, offline):
    hub.add("org/tiny", folder)
    online = load_config(resolve_model("org/tiny"))
    load_tokenizer(resolve_model("org/tiny"))
    offline()
    hub.requests.clear()
    assert load_config(resolve_model("org/tiny")).fingerprint == online.fingerprint
    assert load_tokenizer(resolve_model("org/tiny"))("The sky")["input_ids"]
    assert hub.requests == []


def test_offline_and_never_fetched_names_the_command(hub, offline):
    offline()
    with pytest.raises(UsageError) as caught:
        load_config(resolve_model("org/tiny@v1"))
    assert "HF_HUB_OFFLINE is set" in caught.value.message
    assert caught.value.hint.endswith("hf download org/tiny --revision v1")
    assert hub.requests == []


def test_offline_with_the_config_alone_says_what_is_missing(hub, folder, offline):
    """A config that was fetched is no reason to look for weights that were not."""
    hub.add("org/tiny", folder)
    load_config(resolve_model("org/tiny"), identify_weights=False)
    offline()
    assert load_config(resolve_model("org/tiny"), identify_weights=False).config is not None
    with pytest.raises(UsageError, match="not in the hub's cache, or not whole") as caught:
        load_model(resolve_model("org/tiny"), "float32", torch.device("cpu"))
    assert "hf download org/tiny" in caught.value.hint


def test_a_private_model_says_how_to_sign_in(hub, folder, monkeypatch, token):
    hub.add("org/tiny", folder, private=True)
    with pytest.raises(UsageError, match="no repository org/tiny that you may read") as caught:
        load_config(resolve_model("org/tiny"))
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", token)
    assert load_config(resolve_model("org/tiny")).fingerprint.num_layers == 2


def test_altered_weights_in_the_cache_are_corrupt(hub, folder):
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    weights = files["model.safetensors"][:-100]
    hub.add("org/cut").commit("main", {**files, "model.safetensors": weights}, "cut")
    with pytest.raises(CorruptArtefactError, match=r"model\.safetensors"):
        load_config(resolve_model("org/cut"))


def remote_code(folder, target):
    """The model as one whose config names Python code of the repository, which leaves a mark."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    config["model_type"] = "a_type_of_its_own"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig"}
    (target / "config.json").write_text(json.dumps(config))
    mark = target / "ran"
    (target / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import LlamaConfig\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'a_type_of_its_own'\n"
    )
    return mark


def test_code_of_a_repository_runs_only_when_it_is_trusted(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = remote_code(folder, tmp_path / "own")
    script = (
        "import pathlib, sys\n"
        "from sp_profile.models import load_config, resolve_model\n"
        "from sp_runtime.errors import SpError\n"
        "source = resolve_model(sys.argv[1])\n"
        "try:\n"
        "    load_config(source)\n"
        "except SpError as error:\n"
        "    print(error.hint)\n"
        "print(pathlib.Path(sys.argv[2]).exists())\n"
        "load_config(source, trust_remote_code=True)\n"
        "print(pathlib.Path(sys.argv[2]).exists())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "own"), str(mark)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hint, before, after = done.stdout.splitlines()
    assert "--trust-remote-code" in hint
    assert (before, after) == ("False", "True")


def test_trust_is_off_by_default_and_recorded(folder, tmp_path):
    from sp_profile.calibrate import calibrate
    from sp_profile.calibration_config import CalibrationConfig
    from sp_profile.card import profile_card
    from sp_profile.cluster import build_profile
    from sp_profile.cluster_types import ClusterConfig
    from sp_runtime.profile import load_profile

    profiles = {}
    for trusted in (False, True):
        more = {"trust_remote_code": True} if trusted else {}
        config = CalibrationConfig(
            model=str(folder), tasks=("json_kv",), lengths=(1024,), block_size=64,
            min_budget=128, **more,
        )  # fmt: skip
        place = tmp_path / str(trusted)
        assert calibrate(config, place / "run").config.trust_remote_code is trusted
        build_profile(place / "run", place / "profile", ClusterConfig(min_tokens=256))
        profiles[trusted] = load_profile(place / "profile")
        assert profiles[trusted].calibration.trust_remote_code is trusted
        said = '"trust_remote_code": true' in (place / "profile" / "profile.json").read_text()
        assert said is trusted
        assert ("ran code of its repository" in profile_card(profiles[trusted])) is trusted
    assert profiles[True].profile_id == profiles[False].profile_id


def test_the_command_says_so_too(command, golden, folder, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("The sky is blue. " * 40)
    words = ("sp-run", "prefill", "--method", "dense", prompt)
    missing = command(*words, "--model", "org/tiny@v1", HF_HUB_OFFLINE="1")
    assert missing.returncode == 2
    said = missing.stderr.splitlines()
    assert said[0].startswith("error: model 'org/tiny@v1' cannot be fetched: org/tiny is not in")
    assert said[1].endswith("hf download org/tiny --revision v1")
    assert len(said) == 2


def test_a_command_takes_the_names_of_a_hub_for_model_and_profile(
    hub, command, folder, golden, tmp_path
):
    """The golden profile is of another model, which is found once both are here."""
    hub.add("org/tiny", folder)
    hub.add("org/prof", golden)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("The sky is blue. " * 40)
    done = command(
        *("sp-run", "prefill", "--model", "org/tiny@main", "--profile", "org/prof@main", prompt),
    )
    assert done.returncode == 3, done.stderr
