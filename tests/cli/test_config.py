"""`--config`, the environment and `--show-config`: what wins, what is refused, what is kept."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sp_cli import profile_main, run_main
from sp_cli.config_file import Setting, Settings
from sp_cli.runner import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Capture = pytest.CaptureFixture[str]
PREFILL = ("prefill", "x.txt", "--model", "m")


@pytest.fixture
def settled(tmp_path: Path, capsys: Capture) -> Callable[..., dict[str, tuple[Any, str, str]]]:
    """settled(words, file=TOML): (value, source, where) of each setting by its key."""

    def resolve(*words: str, file: str = "") -> dict[str, tuple[Any, str, str]]:
        config = tmp_path / "own.toml"
        config.write_text(file)
        program = run_main if words[0] in ("prefill", "eval", "bench") else profile_main
        words = (*words, "--config", str(config), "--show-config", "--json")
        code = run(program.cli, words)
        captured = capsys.readouterr()
        assert code == 0, captured.err
        rows = json.loads(captured.out)["settings"]
        return {row["name"]: (row["value"], row["source"], row["where"]) for row in rows}

    return resolve


@pytest.fixture
def refused(tmp_path: Path, capsys: Capture) -> Callable[..., tuple[str, str]]:
    """refused(TOML, words): (message, hint) of the usage error."""

    def error(file: str | bytes, *words: str) -> tuple[str, str]:
        config = tmp_path / "own.toml"
        config.write_bytes(file if isinstance(file, bytes) else file.encode())
        command = (*(words or PREFILL), "--config", str(config), "--show-config", "--json")
        assert run(run_main.cli, command) == 2
        found = json.loads(capsys.readouterr().out)["error"]
        assert found["code"] == "USAGE"
        assert str(config) in found["message"]
        return found["message"], found["hint"]

    return error


def test_flag_over_environment_over_file_over_default(
    settled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SP_RUN_PREFILL_TAU", "0.2")
    monkeypatch.setenv("SP_RUN_PREFILL_GAMMA", "0.2")
    file = "gamma = 0.3\ntau = 0.3\nphi = 0.3\ndtype = 'bfloat16'"
    found = settled(*PREFILL, "--gamma", "0.1", file=file)
    assert found["gamma"] == (0.1, "flag", "")
    assert found["tau"] == (0.2, "environment", "SP_RUN_PREFILL_TAU")
    assert found["phi"] == (0.3, "file", str(tmp_path / "own.toml"))
    assert found["dtype"][0] == "bfloat16"
    assert found["repeat"] == (1, "default", "")
    assert found["delta"] == (None, "default", "")


def test_lists_and_switches_from_the_environment(
    settled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SP_PROFILE_CALIBRATE_LENGTH", "1024,2048 4096")
    monkeypatch.setenv("SP_PROFILE_CALIBRATE_KEEP_GOING", "1")
    monkeypatch.setenv("SP_PROFILE_CALIBRATE_CHAT_TEMPLATE", "false")
    found = settled("calibrate", "--model", "m", "-o", "run", file="task = ['json_kv', 'a,b']")
    assert found["length"][0] == [1024, 2048, 4096]
    assert found["keep-going"][0] is True
    assert found["chat-template"][0] is False
    assert found["task"][0] == ["json_kv", "a", "b"]


def test_one_file_serves_several_commands(settled: Callable[..., Any]) -> None:
    file = (
        'model = "m"\ndistance = 0.4\n[cluster]\nrecall-floor = 0.8\n'
        "[prefill]\ngamma = 0.7\n[bench.kernel]\nlength = 512\n"
    )
    assert settled("prefill", "x.txt", file=file)["gamma"][0] == 0.7
    cluster = settled("cluster", "run", "-o", "p", file=file)
    assert (cluster["distance"][0], cluster["recall-floor"][0]) == (0.4, 0.8)
    assert settled("bench", "kernel", file=file)["length"][0] == [512]


REFUSED = {
    "unknown key": ("gama = 0.5", "'gama'", "gamma"),
    "nothing near": ("zzzzzz = 1", "'zzzzzz'", "--help"),
    "unknown table": ("[prefil]\ngamma = 0.5", "[prefil]", "prefill"),
    "another command's key": ("[calibrate]\nlenght = 5", "'calibrate.lenght'", "length"),
    "text for a number": ("gamma = 'x'", "gamma = 'x'", "mass"),
    "a fraction": ("repeat = 1.5", "not a whole number", "runs"),
    "a switch for a number": ("repeat = true", "not a whole number", "runs"),
    "a number for a switch": ("keep-going = 1", "not true or false", "prompt"),
    "a list": ("gamma = [0.5]", "not a number", "mass"),
    "not finite": ("gamma = nan", "not a number", "mass"),
    "a choice": ("dtype = 'float8'", "'float8' is not one of", "weights"),
    "how it talks": ("json = true", "'json'", "--help"),
    "itself": ("config = 'x'", "'config'", "--help"),
    "no TOML": ("gamma =", "not TOML", "block-size"),
    "not UTF-8": (b"a = '\xff'", "UTF-8", "save"),
    "too large": (b"#" * (1 << 20) + b"\n", "over", "configuration"),
}


@pytest.mark.parametrize(("file", "says", "hints"), REFUSED.values(), ids=REFUSED)
def test_refused_files(
    file: str | bytes, says: str, hints: str, refused: Callable[..., tuple[str, str]]
) -> None:
    message, hint = refused(file)
    assert says in message
    assert hints in hint


def test_a_file_that_is_not_there(capsys: Capture) -> None:
    assert run(run_main.cli, (*PREFILL, "--config", "/no/such.toml")) == 2
    assert "/no/such.toml" in capsys.readouterr().err


def test_unknown_variables_of_this_command_are_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("SP_RUN_EVAL_GAMA", "1")  # another command's: not looked at
    monkeypatch.setenv("SP_RUN_PREFILL_GAMA", "1")
    assert run(run_main.cli, PREFILL) == 2
    error = capsys.readouterr().err
    assert "SP_RUN_PREFILL_GAMA" in error
    assert "did you mean SP_RUN_PREFILL_GAMMA?" in error


def test_what_is_shown_is_a_file_that_gives_the_same(
    tmp_path: Path, capsys: Capture, settled: Callable[..., Any]
) -> None:
    words = ("eval", "-o", str(tmp_path / "out"), "--model", 'a "quoted" \\ name')
    words = (*words, "--method", "plan,flexprefill:gamma={0.8,0.9}", "--length", "512,1024")
    assert run(run_main.cli, (*words, "--show-config")) == 0
    text = capsys.readouterr().out
    assert "# flag" in text
    assert "# unset: " in text
    again = settled("eval", file=text)
    direct = settled(*words)
    assert {name: row[0] for name, row in again.items()} == {
        name: row[0] for name, row in direct.items()
    }


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1).map(tuple),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True), VALUES))
def test_every_value_survives_as_toml(values: dict[str, Any]) -> None:
    rows = tuple(
        Setting(name=name, value=value, source="flag", where="", is_place=False)
        for name, value in values.items()
    )
    parsed = tomllib.loads(Settings(words=("a", "b"), settings=rows).toml())["a"]["b"]
    assert parsed == {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def test_a_file_is_the_same_run_as_flags(
    command: Callable[..., Any],
    tiny_model: Path,
    tiny_run: Path,
    calibration_prompts: Path,
    tmp_path: Path,
) -> None:
    """The run of the fixture was made by flags; told by a file and a variable, it is complete."""
    config = tmp_path / "own.toml"
    config.write_text(f"min-budget = 128\n[calibrate]\nprompts = '{calibration_prompts}'\n")
    done = command(
        *("sp-profile", "calibrate", "--config", config, "-o", tiny_run, "--json"),
        SP_PROFILE_CALIBRATE_MODEL=str(tiny_model),
        SP_PROFILE_CALIBRATE_BLOCK_SIZE="64",
    )
    assert done.code == 0, done.err
    assert (done.document()["measured"], done.document()["resumed"]) == (0, 2)


def test_a_profile_keeps_its_settings_and_no_places(tiny_profile: Path, tiny_run: Path) -> None:
    text = (tiny_profile / "config.toml").read_text()
    kept = tomllib.loads(text)["cluster"]
    assert kept["min-tokens"] == 256
    assert kept["min-cluster-size"] == 2
    assert kept["distance"] == 0.5
    assert str(tiny_run.parent) not in text
    assert "output" not in kept


def test_a_signed_profile_is_replaced_with_all_that_is_beside_it(
    tiny_profile: Path, tiny_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "profile"
    shutil.copytree(tiny_profile, folder)
    (folder / "profile.json.minisig").write_text("a signature")
    words = ("cluster", str(tiny_run), "-o", str(folder), "--min-cluster-size", "3")
    assert run(profile_main.cli, words) == 2
    assert run(profile_main.cli, (*words, "--overwrite")) == 0
    assert not (folder / "profile.json.minisig").exists()
    assert "min-cluster-size = 3\n" in (folder / "config.toml").read_text()


def test_the_settings_of_a_profile_make_it_again(
    command: Callable[..., Any], tiny_profile: Path, tiny_run: Path, tmp_path: Path
) -> None:
    config = tiny_profile / "config.toml"
    done = command("sp-profile", "cluster", tiny_run, "--config", config, "-o", tmp_path / "p")
    assert done.code == 0, done.err
    stored = json.loads((tiny_profile / "profile.json").read_text())
    assert (
        json.loads((tmp_path / "p" / "profile.json").read_text())["profile_id"]
        == (stored["profile_id"])
    )
