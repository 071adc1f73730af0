"""--public-key: a profile that its author has not signed runs on nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sp_profile.eval.request import EvalRequest
from sp_runtime.errors import UsageError

minisign = pytest.importorskip("minisign")
Command = Callable[..., Any]
GOLDEN = Path(__file__).parents[1] / "golden" / "profile-1.0"
KEY = GOLDEN.parent / "minisign.pub"


@pytest.fixture(scope="module")
def foreign_key() -> str:
    return minisign.KeyPair.generate().public_key.to_base64().decode()


@pytest.fixture
def run(command: Command, tiny_model: Path, prompt: Path, tmp_path: Path) -> Callable[..., Any]:
    """run("prefill" or "eval", profile, key): a finished command of `sp-run`."""

    def call(name: str, profile: Path, key: str | Path) -> Any:
        rest = (prompt,) if name == "prefill" else ("--length", "512", "-o", tmp_path / "out")
        given = ("--model", tiny_model, "--profile", profile, "--public-key", key, "--json")
        return command("sp-run", name, *given, *rest)

    return call


def test_a_signed_profile_goes_on_to_the_next_check(run: Any) -> None:
    """The golden profile is of another model, which is found only after the signature."""
    done = run("prefill", GOLDEN, KEY)
    assert done.code == 3, done.err
    assert done.document()["error"]["code"] == "PROFILE_MISMATCH"


@pytest.mark.parametrize("name", ["prefill", "eval"])
def test_another_key_is_refused(run: Any, foreign_key: str, name: str) -> None:
    done = run(name, GOLDEN, foreign_key)
    assert done.code == 4, done.err
    assert "signature is not of this profile and key" in done.document()["error"]["message"]


def test_an_unsigned_profile_is_refused(run: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "profile"))
    (folder / "profile.json.minisig").unlink()
    done = run("prefill", folder, KEY)
    assert done.code == 4, done.err
    assert "not signed" in done.document()["error"]["message"]


def test_a_key_without_a_profile_is_usage(command: Command, tiny_model: Path, prompt: Path) -> None:
    given = ("--model", tiny_model, "--method", "dense", "--public-key", KEY)
    done = command("sp-run", "prefill", *given, prompt)
    assert done.code == 2
    assert done.error_line() == "error: --public-key is about a profile"
    with pytest.raises(UsageError, match="--public-key is about a profile"):
        EvalRequest(model="m", public_key=str(KEY))
