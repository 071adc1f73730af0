"""Profiles out of repositories: names, revisions, offline, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.bench.recorded_masks import read_recorded
from sp_profile.diff import diff_folders
from sp_profile.diff_types import DiffThresholds
from sp_profile.verify import verify_folder
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import CorruptArtefactError, UnsupportedError, UsageError
from sp_runtime.hub import HubName, parse_hub_name
from sp_runtime.profile import load_profile
from sp_runtime.profile_source import find_profile


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("org/name", HubName(repo="org/name")),
        ("org/name@v1.2", HubName(repo="org/name", revision="v1.2")),
        ("hf://org/name", HubName(repo="org/name")),
        ("hf:/org/name/a/b", HubName(repo="org/name", subfolder="a/b")),  # as Path writes it
        ("org/name@main/a", HubName(repo="org/name", revision="main", subfolder="a")),
        ("org/name@refs/pr/3", HubName(repo="org/name", revision="refs/pr/3")),
        ("a/b/c", None),
        ("./a/b", None),
        ("/a/b", None),
        ("name", None),
        ("org/name@", None),
        ("org/name@main/../up", None),
        ("org/na me", None),
        ("org/name\n", None),
        ("", None),
    ],
)
def test_names(text, place):
    assert parse_hub_name(text) == place


words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)


@given(words, words, st.none() | words, st.just("") | words)
def test_a_place_is_written_as_it_is_read(owner, name, revision, subfolder):
    place = HubName(repo=f"{owner}/{name}", revision=revision, subfolder=subfolder)
    assert parse_hub_name(str(place)) == place


def test_a_profile_comes_from_a_repository(hub, golden):
    hub.add("org/prof", golden)
    assert load_profile("org/prof") == load_profile(golden)
    fetched = [request.split("/")[-1] for request in hub.requests if "GET /org/prof" in request]
    assert sorted(fetched) == ["profile.json", "profile.json.minisig"]


def test_a_local_folder_of_that_name_wins(hub, golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(golden, tmp_path / "org" / "prof")
    assert load_profile("org/prof") == load_profile(golden)
    assert hub.requests == []
    with pytest.raises(UsageError, match="revision belongs to a repository"):
        load_profile("org/prof", revision="main")


def test_revision_and_subfolder(hub, golden):
    repo = hub.add("org/prof")
    files = {f"deep/er/{file.name}": file.read_bytes() for file in golden.iterdir()}
    commit = repo.commit("v1", files, "files")
    expected = load_profile(golden)
    assert load_profile("org/prof@v1/deep/er") == expected
    assert load_profile("org/prof", revision=commit, subfolder="deep/er") == expected
    folder = find_profile("org/prof@v1/deep/er", tables=True).parent
    assert verify_folder(folder, load_profile(folder)).findings == ()
    with pytest.raises(UsageError, match="has no revision 'v2'"):
        load_profile("org/prof@v2")
    with pytest.raises(UsageError, match="no profile at 'org/prof'"):
        load_profile("org/prof")


def test_all_files_are_of_one_commit(hub, golden, monkeypatch):
    """A push between the two downloads does not mix two profiles."""
    import sp_runtime.profile_source as module

    repo = hub.add("org/prof", golden)
    first = module.download

    def then_pushed(place, files):
        folder = first(place, files)
        repo.commit("main", {"heads.parquet": b"another"}, "in between")
        return folder

    monkeypatch.setattr(module, "download", then_pushed)
    file = find_profile("org/prof", tables=True)
    assert (file.parent / "heads.parquet").read_bytes() == (golden / "heads.parquet").read_bytes()


def test_commands_that_read_tables_take_a_repository(hub, golden):
    hub.add("org/prof", golden)
    assert diff_folders("org/prof", golden, DiffThresholds()).identical
    profile = load_profile(golden)
    size = profile.calibration.block_size
    grid = BlockGrid(q_len=4 * size, kv_len=4 * size, block_size=size)
    ours, theirs = (
        read_recorded(f).case(grid, heads=2, device="cpu") for f in ("org/prof", golden)
    )
    assert ours.mask.equal(theirs.mask)


def test_what_was_fetched_is_read_offline(hub, golden, offline):
    hub.add("org/prof", golden)
    expected = load_profile("org/prof")
    offline()
    hub.requests.clear()
    assert load_profile("org/prof") == expected
    assert hub.requests == []
    with pytest.raises(UsageError) as caught:
        find_profile("org/prof@main", tables=True)  # its tables were never fetched
    assert "HF_HUB_OFFLINE is set" in caught.value.message
    with pytest.raises(UsageError) as caught:
        load_profile("org/other@v1")
    assert caught.value.message.startswith("no profile at org/other@v1: no such folder;")
    assert caught.value.hint.endswith("hf download org/other --revision v1")


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "not permitted"), (403, "not permitted"), (500, "cannot be read"), (404, "cannot be")],
)
def test_what_the_hub_answers_is_said(hub, golden, status, says):
    hub.add("org/prof", golden)
    hub.status["org/prof"] = status
    with pytest.raises(UsageError, match=says) as caught:
        load_profile("org/prof")
    assert caught.value.hint


def test_a_private_repository_needs_the_token(hub, golden, monkeypatch, token):
    hub.add("org/prof", golden, private=True)
    with pytest.raises(UsageError, match="no repository org/prof that you may read") as caught:
        load_profile("org/prof")
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", token)
    assert load_profile("org/prof") == load_profile(golden)


def test_no_network(hub, golden, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="org/prof cannot be read") as caught:
        load_profile("org/prof")
    assert "network" in caught.value.hint


@pytest.mark.slow
def test_a_download_that_is_cut_leaves_nothing_behind(hub, golden, monkeypatch, capfd):
    hub.add("org/prof", golden)
    hub.cut["profile.json"] = 100
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UsageError, match="cannot be read: "):
        load_profile("org/prof")
    del hub.cut["profile.json"]
    assert load_profile("org/prof") == load_profile(golden)


def test_altered_files_are_refused_by_their_hashes(hub, golden):
    files = {file.name: file.read_bytes() for file in golden.iterdir()}
    cut = hub.add("org/cut")
    cut.commit("main", {**files, "profile.json": files["profile.json"][:-40]}, "cut")
    with pytest.raises(CorruptArtefactError, match=r"profile\.json"):
        load_profile("org/cut")
    altered = hub.add("org/altered")
    altered.commit("main", {**files, "heads.parquet": files["heads.parquet"][:-9]}, "altered")
    folder = find_profile("org/altered", tables=True).parent
    with pytest.raises(CorruptArtefactError, match=r"heads\.parquet"):
        verify_folder(folder, load_profile(folder))


def test_a_signature_comes_with_its_profile(hub, golden, profile_folder):
    pytest.importorskip("minisign")
    from sp_profile.signing import load_signed_profile

    key = str(golden.parent / "minisign.pub")
    hub.add("org/prof", golden)
    assert load_signed_profile("org/prof", key) == load_profile(golden)
    (profile_folder / "profile.json.minisig").unlink()
    hub.add("org/unsigned", profile_folder)
    with pytest.raises(CorruptArtefactError, match="not signed"):
        load_signed_profile("org/unsigned", key)


def test_without_huggingface_hub_the_command_that_installs_it_is_named(monkeypatch, golden):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert load_profile(golden).profile_id
    with pytest.raises(UnsupportedError, match="huggingface_hub") as caught:
        load_profile("org/prof")
    assert caught.value.hint == "pip install 'sparse-prefill[hub]'"


def test_a_local_profile_loads_no_hub(golden):
    code = (
        "import sys, sp_runtime\n"
        f"sp_runtime.load_profile({str(golden)!r})\n"
        "print(*[m for m in ('huggingface_hub', 'torch', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == ""
