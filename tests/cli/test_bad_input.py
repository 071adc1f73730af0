"""What a user gets wrong: an exit code, one line, a hint, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
SPARSE = ("--method", "vertical_slash", "--block-size", "64", "--device", "cpu")

BAD_PROMPTS = {
    "missing": (None, "no such file"),
    "empty": (b" \n", "empty"),
    "not-utf8": (b"caf\xe9 au lait", "byte 3"),
    "binary": (b"\x7fELF\x00\x01", "NUL at byte 4"),
}


@pytest.mark.parametrize(("content", "says"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_bad_prompt_file(
    content: bytes | None, says: str, command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bad.txt"
    if content is not None:
        file.write_bytes(content)
    done = command("sp-run", "prefill", "--model", tiny_model, *SPARSE, file)
    assert done.code == 2
    assert "bad.txt" in done.error_line()
    assert says in done.error_line()
    assert "hint: " in done.err
    assert done.out == ""


def test_broken_json_line_is_named(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "three.jsonl"
    file.write_text('{"text": "one"}\n{"text": broken\n{"text": "three"}\n')
    done = command("sp-run", "prefill", "--model", tiny_model, *SPARSE, "--json", file)
    assert done.code == 2
    assert "three.jsonl:2" in done.document()["error"]["message"]


def test_keep_going_runs_the_other_prompts(
    command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "four.jsonl"
    rows = ['{"text": "one"}', '{"text": broken', '{"text": "three"}']
    file.write_text("\n".join([*rows, json.dumps({"text": "long " * 1000})]) + "\n")
    done = command(
        *("sp-run", "prefill", "--model", tiny_model, *SPARSE, "--json", "--keep-going"), file
    )
    assert done.code == 1
    document = done.document()
    assert [result["prompt"][-2:] for result in document["results"]] == [":1", ":3"]
    messages = [error["message"] for error in document["errors"]]
    assert "four.jsonl:2" in messages[0]
    assert "four.jsonl:4" in messages[1]
    assert "context of 4096" in messages[1]


def test_prompt_longer_than_the_context(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("word " * 1000)
    done = command("sp-run", "prefill", "--model", tiny_model, *SPARSE, file)
    assert done.code == 2
    assert "context of 4096" in done.error_line()


@pytest.mark.parametrize("name", ["no-such-alias", "./no/such/folder", "missing.gguf"])
def test_unknown_model(name: str, command: Command, prompt: Path) -> None:
    done = command("sp-run", "prefill", "--model", name, *SPARSE, prompt)
    assert done.code == 2
    assert name in done.error_line()


def test_truncated_gguf(command: Command, tmp_path: Path, prompt: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x10" * 40)
    done = command("sp-profile", "calibrate", "--model", file, "-o", tmp_path / "run")
    assert done.code == 4
    assert "cut.gguf" in done.error_line()
    assert not (tmp_path / "run").exists()


def test_truncated_profile(
    command: Command, tiny_profile: Path, tiny_model: Path, tmp_path: Path, prompt: Path
) -> None:
    shutil.copytree(tiny_profile, tmp_path / "cut")
    file = tmp_path / "cut" / "profile.json"
    file.write_bytes(file.read_bytes()[:-500])
    for arguments in (
        ("sp-profile", "show", tmp_path / "cut"),
        ("sp-run", "prefill", "--model", tiny_model, "--profile", tmp_path / "cut", prompt),
    ):
        done = command(*arguments)
        assert done.code == 4
        assert "profile.json" in done.error_line()


def test_missing_profile(command: Command, tmp_path: Path) -> None:
    done = command("sp-profile", "show", tmp_path / "nothing", "--json")
    assert done.code == 2
    assert done.document()["error"]["code"] == "USAGE"


def test_profile_of_another_model_shows_both(
    command: Command, tiny_profile: Path, other_model: Path, prompt: Path
) -> None:
    done = command("sp-run", "prefill", "--model", other_model, "--profile", tiny_profile, prompt)
    assert done.code == 3
    assert "another model" in done.error_line()
    rows = [line.split() for line in done.err.splitlines()]
    assert ["num_layers", "2", "3", "differs"] in rows
    assert ["head_dim", "64", "64"] in rows


@pytest.mark.parametrize("gamma", ["0", "1.5", "-1", "nan"])
def test_gamma_out_of_range(gamma: str, command: Command, tiny_model: Path, prompt: Path) -> None:
    done = command("sp-run", "prefill", "--model", tiny_model, *SPARSE, "--gamma", gamma, prompt)
    assert done.code == 2
    assert "(0, 1]" in done.error_line()


def test_gamma_out_of_range_in_calibration(
    command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    done = command(
        *("sp-profile", "calibrate", "--model", tiny_model, "--gamma", "1.01"),
        *("-o", tmp_path / "run"),
    )
    assert done.code == 2
    assert "(0, 1]" in done.error_line()
    assert not (tmp_path / "run").exists()


def test_block_size_that_the_kernel_lacks(command: Command, tiny_model: Path, prompt: Path) -> None:
    done = command(
        *("sp-run", "prefill", "--model", tiny_model, "--method", "vertical_slash"),
        *("--block-size", "96", "--min-tokens", "16", prompt),
    )
    assert done.code == 2
    assert "block size 96" in done.error_line()


def test_share_without_a_profile(command: Command, tiny_model: Path, prompt: Path) -> None:
    done = command("sp-run", "prefill", "--model", tiny_model, prompt)
    assert done.code == 2
    assert "profile" in done.error_line()


def test_cluster_refuses_an_existing_folder(
    command: Command, tiny_run: Path, tiny_profile: Path
) -> None:
    before = (tiny_profile / "profile.json").read_bytes()
    done = command("sp-profile", "cluster", tiny_run, "-o", tiny_profile)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert (tiny_profile / "profile.json").read_bytes() == before


def test_calibrate_refuses_a_folder_of_another_run(
    command: Command, tiny_run: Path, tiny_model: Path, prompt: Path
) -> None:
    done = command(
        "sp-profile", "calibrate", "--model", tiny_model, "--prompts", prompt, "-o", tiny_run
    )
    assert done.code == 2
    assert "another configuration" in done.error_line()


def test_calibrate_refuses_a_folder_with_other_files(
    command: Command, tiny_model: Path, prompt: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    done = command(
        "sp-profile", "calibrate", "--model", tiny_model, "--prompts", prompt, "-o", tmp_path
    )
    assert done.code == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_own_and_built_in_prompts_exclude_each_other(
    command: Command, tiny_model: Path, prompt: Path, tmp_path: Path
) -> None:
    done = command(
        *("sp-profile", "calibrate", "--model", tiny_model, "--prompts", prompt),
        *("--task", "json_kv", "-o", tmp_path / "run"),
    )
    assert done.code == 2
    assert "--prompts" in done.error_line()


@pytest.mark.parametrize("name", ["results.csv", "nowhere/results.jsonl"])
def test_bad_result_file(
    name: str, command: Command, tiny_model: Path, prompt: Path, tmp_path: Path
) -> None:
    done = command(
        "sp-run", "prefill", "--model", tiny_model, *SPARSE, prompt, "-o", tmp_path / name
    )
    assert done.code == 2
    assert list(tmp_path.iterdir()) == []


def test_existing_result_file_is_kept(
    command: Command, tiny_model: Path, prompt: Path, tmp_path: Path
) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("old")
    done = command("sp-run", "prefill", "--model", tiny_model, *SPARSE, prompt, "-o", file)
    assert done.code == 2
    assert "--overwrite" in done.err
    assert file.read_text() == "old"


@pytest.mark.parametrize("arguments", [("--bogus",), ("--enable", "some"), ("--distance", "2")])
def test_bad_cluster_options(
    arguments: tuple[str, ...], command: Command, tiny_run: Path, tmp_path: Path
) -> None:
    done = command("sp-profile", "cluster", tiny_run, "-o", tmp_path / "p", *arguments)
    assert done.code == 2
    assert done.error_line()
    assert not (tmp_path / "p").exists()
