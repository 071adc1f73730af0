"""Publishing a profile: verified first, the artefact's files only, and what the hub refuses."""

from __future__ import annotations

import json

import pytest
import yaml

from sp_profile.hub import plan_push, push
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.profile import load_profile

FILES = {
    "README.md",
    "heads.parquet",
    "masks.parquet",
    "profile.json",
    "profile.json.minisig",
    "similarity.parquet",
}


@pytest.fixture
def signed_in(monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)


def test_what_is_pushed_is_loaded(hub, signed_in, golden):
    plan = plan_push(golden, "me/prof", license="apache-2.0", base_model="org/model")
    done = push(plan, private=True)
    repo = hub.repos["me/prof"]
    assert done.url == f"{hub.endpoint}/me/prof"
    assert done.commit == repo.branches["main"]
    assert repo.private
    assert repo.files().keys() == FILES
    assert load_profile("me/prof") == load_profile(golden)
    for name in FILES - {"README.md"}:
        assert repo.files()[name] == (golden / name).read_bytes()


def test_the_card_is_made_from_the_profile(hub, signed_in, golden):
    push(plan_push(golden, "me/prof@v1", license="apache-2.0", base_model="org/model"))
    card = hub.repos["me/prof"].files("v1")["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    profile = load_profile(golden)
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "org/model"
    assert front["library_name"] == "sparse-prefill"
    assert "sparse-attention" in front["tags"]
    assert front["profile_id"] == profile.profile_id
    assert 'load_profile("me/prof@v1")' in card
    assert "license" not in plan_push(golden, "me/prof").files[1].content.decode().split("---")[1]


def test_only_files_of_the_profile_are_uploaded(hub, signed_in, profile_folder):
    (profile_folder / "notes about prompts.txt").write_text("private")
    plan = plan_push(profile_folder, "me/prof")
    assert plan.left_out == ("notes about prompts.txt",)
    assert plan.findings == ()
    push(plan)
    assert hub.repos["me/prof"].files().keys() == FILES


def test_what_an_older_profile_left_goes_and_the_rest_stays(hub, signed_in, profile_folder):
    repo = hub.add("me/prof", profile_folder)
    repo.commit("main", {**repo.files(), "mine.txt": b"kept", ".gitattributes": b""}, "mine")
    (profile_folder / "profile.json.minisig").unlink()
    done = push(plan_push(profile_folder, "me/prof"))
    assert done.removed == ("profile.json.minisig",)
    kept = (FILES - {"profile.json.minisig"}) | {"mine.txt", ".gitattributes"}
    assert repo.files().keys() == kept


def test_branch_and_folder(hub, signed_in, golden):
    hub.add("me/prof")
    done = push(plan_push(golden, "hf://me/prof/cpu", branch="next", message="the first"))
    repo = hub.repos["me/prof"]
    assert done.url.endswith("/me/prof/tree/next/cpu")
    assert repo.files("next").keys() == {f"cpu/{name}" for name in FILES}
    assert repo.files("main") == {}
    assert repo.messages[-1] == "the first"
    assert load_profile("me/prof@next/cpu") == load_profile(golden)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_how_to_sign_in(hub, golden, status):
    hub.add("me/prof")
    hub.status["me/prof"] = status
    with pytest.raises(UsageError, match=f"cannot be written: the hub answers {status}") as caught:
        push(plan_push(golden, "me/prof"))
    assert "hf auth login" in caught.value.hint


def test_without_a_token(hub, golden):
    with pytest.raises(UsageError, match="cannot be written"):
        push(plan_push(golden, "me/prof"))
    assert "me/prof" not in hub.repos


def test_a_hub_that_fails(hub, signed_in, golden):
    hub.add("me/prof")
    hub.status["me/prof"] = 500
    with pytest.raises(UsageError, match=r"me/prof cannot be written: .*500"):
        push(plan_push(golden, "me/prof"))


def test_offline(hub, signed_in, golden, offline):
    offline()
    with pytest.raises(UsageError, match="offline"):
        push(plan_push(golden, "me/prof"))
    assert hub.requests == []


def test_private_is_not_promised_of_a_public_repository(hub, signed_in, golden):
    repo = hub.add("me/prof")
    with pytest.raises(UsageError, match="exists and is public"):
        push(plan_push(golden, "me/prof"), private=True)
    assert repo.files() == {}


def test_a_damaged_profile_is_not_pushed(hub, signed_in, profile_folder):
    plan = plan_push(profile_folder, "me/prof")
    table = profile_folder / "heads.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptArtefactError, match=r"heads\.parquet"):
        plan_push(profile_folder, "me/prof")
    with pytest.raises(CorruptArtefactError, match="has changed"):
        push(plan)  # verified before the damage
    assert hub.requests == []


@pytest.mark.parametrize("target", ["prof", "./me/prof", "me/prof/x", "me/pr of"])
def test_targets_that_are_none(golden, target):
    with pytest.raises(UsageError, match="names no repository"):
        plan_push(golden, target)


def test_a_folder_without_a_profile(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "me" / "prof"):
        with pytest.raises(UsageError, match="no profile at"):
            plan_push(path, "me/prof")


def test_the_command(hub, command, golden, token):
    done = command("sp-profile", "push", golden, "me/prof", "--json", HF_TOKEN=token)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert (document["schema"], document["pushed"]) == ("sp.push", True)
    assert {file["name"] for file in document["files"]} == FILES
    assert document["load"] == 'load_profile("me/prof")'
    assert token not in done.stdout
    checked = command("sp-profile", "verify", "me/prof", "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["passed"] is True


def test_a_dry_run_sends_nothing(hub, command, golden):
    done = command("sp-profile", "push", golden, "me/prof", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "nothing was sent to me/prof" in done.stdout
    assert hub.requests == []


def test_the_command_refuses_with_the_right_exit_code(hub, command, golden):
    refused = command("sp-profile", "push", golden, "me/prof")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: me/prof cannot be written: the hub answers 401")
    assert "Traceback" not in refused.stderr


def test_the_card_lists_every_plan(golden):
    from sp_profile.card import profile_card

    profile = load_profile(golden.with_name("profile-1.0-plans"))
    card = profile_card(profile)
    assert profile.plans
    for named in profile.plans:
        assert f"| {named.name} | a " in card
    assert "Further plans" not in profile_card(load_profile(golden))
