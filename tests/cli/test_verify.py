"""`sp-profile verify`, `sign` and `migrate`: what they find, say and exit with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sp_cli.profile_main import cli
from sp_cli.runner import run as run_command

from sp_profile.card import profile_card
from sp_profile.verify import VerifyLimits, judge_model
from sp_profile.verify_types import HeadRecall, ModelCheck, PromptCheck
from sp_runtime.errors import UsageError
from sp_runtime.profile import HeadRef, Profile, load_profile, profile_to_json

GOLDEN = Path(__file__).parents[1] / "golden" / "profile-1.0"
Call = Callable[..., "Done"]


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    def failed(self) -> set[str]:
        """The names of the checks that fell short, from the JSON document."""
        return {check["name"] for check in json.loads(self.out)["checks"] if not check["passed"]}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """call("verify", ...): `sp-profile` in this process, since a new one takes seconds."""

    def run(*words: str | Path) -> Done:
        capsys.readouterr()
        code = run_command(cli, [str(word) for word in words], "sp-profile")
        found = capsys.readouterr()
        return Done(code, found.out, found.err)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden profile."""
    shutil.copytree(GOLDEN, tmp_path / "profile")
    return tmp_path / "profile"


def resealed(folder: Path, **changes: Any) -> Profile:
    """profile.json written anew with the hashes of the tables as they are, as a forger would."""
    profile = load_profile(folder)
    files = tuple(
        dataclasses.replace(
            file,
            sha256=hashlib.sha256((folder / file.name).read_bytes()).hexdigest(),
            bytes=(folder / file.name).stat().st_size,
        )
        for file in profile.files
    )
    profile = dataclasses.replace(profile, files=files, **changes)
    (folder / "profile.json").write_text(profile_to_json(profile))
    return profile


def cell(folder: Path, name: str, column: str, row: int, value: Any) -> None:
    """One value of a table replaced, metadata kept."""
    table = pq.read_table(folder / name)
    place = table.schema.get_field_index(column)
    values = table.column(column).to_pylist()
    values[row] = value
    field = table.schema.field(place)
    table = table.set_column(place, field, pa.array(values, type=field.type))
    rows = pq.read_metadata(folder / name).row_group(0).num_rows
    pq.write_table(table, folder / name, row_group_size=rows, write_page_checksum=True)


def test_a_whole_profile_passes(call: Call) -> None:
    done = call("verify", GOLDEN)
    assert done.code == 0, done.out
    assert done.out.splitlines()[-1] == "passed"
    assert max(map(len, done.out.splitlines())) <= 80
    document = json.loads(call("verify", GOLDEN / "profile.json", "--json").out)
    assert document["schema"] == "sp.verify"
    assert document["passed"]
    assert document["model"] is None
    assert len(document["checks"]) == 10


def test_files_of_no_part_are_named(call: Call, folder: Path) -> None:
    (folder / "setup.py").write_text("print(1)")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs")
    done = call("verify", folder, "--json")
    assert done.code == 5
    assert done.failed() == {"folder"}
    assert "'setup.py'" in done.out
    assert "gitattributes" not in done.out


def test_a_card_of_another_profile_is_found(call: Call, folder: Path) -> None:
    card = profile_card(load_profile(folder))
    (folder / "README.md").write_text(card.replace(load_profile(folder).profile_id, "0" * 64))
    done = call("verify", folder, "--json")
    assert done.code == 5
    assert done.failed() == {"README.md"}


@pytest.mark.parametrize(
    ("name", "column", "row", "value", "failed"),
    [
        ("heads.parquet", "density", 3, 0.9, {"heads: densities"}),
        ("heads.parquet", "jaccard_anchor", 4, 0.9, {"heads: anchors"}),
        ("similarity.parquet", "min", 5, 0.9, {"similarity.parquet"}),
        (
            "similarity.parquet",
            "mean",
            3,
            0.9,
            {"similarity.parquet", "clusters: Jaccard", "heads: anchors"},
        ),
        (
            "masks.parquet",
            "bits",
            0,
            None,
            {"similarity.parquet", "heads: densities"},
        ),
    ],
)
def test_forged_measurements_contradict_the_other_tables(
    call: Call, folder: Path, name: str, column: str, row: int, value: Any, failed: set[str]
) -> None:
    """Every hash and checksum is right, and every value in range."""
    if value is None:
        bits = pq.read_table(folder / name).column(column)[row].as_py()
        value = b"\xff" * (len(bits) - 1) + b"\0"
    cell(folder, name, column, row, value)
    resealed(folder)
    done = call("verify", folder, "--json")
    assert done.code == 5
    assert done.failed() == failed


def test_forged_evidence_contradicts_the_tables(call: Call, folder: Path) -> None:
    first, *others = load_profile(folder).clusters
    evidence = dataclasses.replace(first.evidence, jaccard_core_mean=0.99)
    resealed(folder, clusters=(dataclasses.replace(first, evidence=evidence), *others))
    done = call("verify", folder, "--json")
    assert done.code == 5
    assert done.failed() == {"clusters: Jaccard"}


def test_a_table_of_another_profile_is_found(call: Call, folder: Path) -> None:
    table = pq.read_table(folder / "similarity.parquet").replace_schema_metadata({})
    pq.write_table(table, folder / "similarity.parquet", write_page_checksum=True)
    resealed(folder)
    done = call("verify", folder, "--json")
    assert done.code == 5
    assert done.failed() == {"tables: profile_id"}


def test_damage_is_no_finding_but_an_error(call: Call, folder: Path) -> None:
    (folder / "masks.parquet").write_bytes(b"")
    done = call("verify", folder)
    assert done.code == 4
    assert "masks.parquet" in done.err
    assert call("verify", folder / "none").code == 2


def test_options_about_a_model_need_one(call: Call) -> None:
    for words in (("--length", "1024"), ("--samples", "2"), ("--point", "paper")):
        done = call("verify", GOLDEN, *words)
        assert done.code == 2
        assert "--model" in done.err


# -- with a model


def test_held_out_prompts_on_a_model(
    command: Callable[..., Any], tiny_model: Path, tiny_profile: Path
) -> None:
    words = ("--model", tiny_model, "--task", "niah_noise", "--length", "1024", "--json")
    done = command("sp-profile", "verify", tiny_profile, *words, "--min-top1", "0")
    document = done.document()
    assert done.code in (0, 5), done.err
    assert (done.code == 0) == document["passed"]
    found = document["model"]
    (prompt,) = found["prompts"]
    assert (prompt["task"], prompt["path"]) == ("niah_noise", "sparse")
    assert 1016 <= prompt["tokens"] <= 1024  # no word of the filling is one token of this tokenizer
    assert 0 < prompt["density"] <= 1
    assert prompt["kl_mean"] >= 0
    plan = load_profile(tiny_profile).plan
    assert found["recall_floor"] == plan.recall_floor
    assert [head["head"] for head in found["recall"]] == [[*h.ref] for h in plan.heads]
    assert all(0 < head["recall"] <= 1 for head in found["recall"])
    names = [check["name"] for check in document["checks"]]
    model_checks = ["agreement: KL", "agreement: top-1", "answers", "recall of the plan"]
    assert names[-4:] == model_checks


def test_another_model_is_refused_before_it_is_run(call: Call, other_model: Path) -> None:
    done = call("verify", GOLDEN, "--model", other_model, "--length", "1024")
    assert done.code == 3


def test_lengths_that_are_computed_densely_are_refused(call: Call, tiny_model: Path) -> None:
    done = call("verify", GOLDEN, "--model", tiny_model, "--length", "400")
    assert done.code == 2
    assert "densely" in done.err


def prompt_check(**changes: Any) -> PromptCheck:
    fields: dict[str, Any] = {
        "prompt": "niah-1024-0",
        "task": "niah",
        "tokens": 1024,
        "path": "sparse",
        "density": 0.3,
        "kl_mean": 0.1,
        "kl_last": 0.1,
        "top1": 0.9,
        "dense_right": True,
        "sparse_right": True,
    }
    return PromptCheck(**{**fields, **changes})


def recalls(*values: float) -> tuple[HeadRecall, ...]:
    return tuple(
        HeadRecall(head=HeadRef(0, n), assignment="dense", promised=0.9, recall=value)
        for n, value in enumerate(values)
    )


@pytest.mark.parametrize(
    ("prompts", "recall", "failed"),
    [
        ((prompt_check(),), recalls(0.9, 0.86), set()),
        ((prompt_check(kl_mean=0.2), prompt_check(kl_mean=0.31)), (), {"agreement: KL"}),
        ((prompt_check(top1=0.7), prompt_check(top1=0.89)), (), {"agreement: top-1"}),
        ((prompt_check(sparse_right=False),), (), {"answers"}),
        ((prompt_check(dense_right=False, sparse_right=False),), (), set()),
        ((prompt_check(),), recalls(0.95, 0.84), {"recall of the plan"}),
    ],
)
def test_limits_decide(
    prompts: tuple[PromptCheck, ...], recall: tuple[HeadRecall, ...], failed: set[str]
) -> None:
    floor = 0.9 if recall else None
    found = ModelCheck(point="default", prompts=prompts, recall_floor=floor, recall=recall)
    checks = judge_model(found, VerifyLimits())
    assert {check.name for check in checks if not check.passed} == failed


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(UsageError):
        VerifyLimits(min_top1=1.5)
    with pytest.raises(UsageError):
        VerifyLimits(max_kl=-0.1)


# -- signatures and migration


def test_sign_and_verify(call: Call, folder: Path, tmp_path: Path) -> None:
    minisign = pytest.importorskip("minisign")
    pair = minisign.KeyPair.generate()
    key, public = tmp_path / "secret.key", pair.public_key.to_base64().decode()
    key.write_bytes(bytes(pair.secret_key) + b"\n")
    assert call("verify", folder, "--public-key", public).code == 4  # signed by another key
    done = call("sign", folder, "--key", key)
    assert done.code == 0, done.err
    assert done.out == f"signature {folder / 'profile.json.minisig'}\n"
    done = call("verify", folder, "--public-key", public, "--json")
    assert done.code == 0
    assert json.loads(done.out)["signed"] is True
    (folder / "profile.json.minisig").unlink()
    done = call("verify", folder, "--public-key", public)
    assert done.code == 4
    assert "not signed" in done.err
    assert call("verify", folder).code == 0


def test_the_password_of_a_key_comes_from_a_file(call: Call, folder: Path, tmp_path: Path) -> None:
    minisign = pytest.importorskip("minisign")
    secret = minisign.KeyPair.generate().secret_key
    secret.encrypt("open sesame", opslimit=1 << 15, memlimit=1 << 24)
    (tmp_path / "secret.key").write_bytes(bytes(secret) + b"\n")
    (tmp_path / "password").write_text("open sesame\n")
    words = ("--key", tmp_path / "secret.key", "--password-file")
    assert call("sign", folder, *words, tmp_path / "password").code == 0
    (tmp_path / "password").write_text("wrong\n")
    assert call("sign", folder, *words, tmp_path / "password").code == 2


def test_there_is_nothing_to_migrate(call: Call) -> None:
    done = call("migrate", GOLDEN, "--json")
    assert done.code == 0
    document = json.loads(done.out)
    assert (document["schema"], document["steps"], document["written"]) == ("sp.migrate", [], None)
    assert "nothing to migrate" in call("migrate", GOLDEN).out
