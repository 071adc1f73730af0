"""A hub on the loopback interface, for code in this process and for the commands."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")
TESTS = Path(__file__).parents[1]


def _load(name):
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def token():
    return _load("fake_hub").TOKEN


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A FakeHub that huggingface_hub of this process talks to, with an empty cache."""
    from huggingface_hub import constants

    with _load("fake_hub").serve() as served:
        url = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served


@pytest.fixture
def offline(monkeypatch):
    """offline(): from now on the network is not asked."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def command(hub, tmp_path):
    """command("sp-profile", ..., HF_TOKEN=...): a console script beside that hub."""

    def run(program, *arguments, **variables):
        cleared = ("HF_TOKEN", "HF_HUB_OFFLINE", "COLUMNS")
        kept = {name: value for name, value in os.environ.items() if name not in cleared}
        places = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        return subprocess.run(
            [str(Path(sys.executable).with_name(program)), *map(str, arguments)],
            env={**kept, **places, **variables}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny random model on disk."""
    return _load("tiny_models").save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def golden():
    """A whole profile with its signature."""
    return TESTS / "golden" / "profile-1.0"


@pytest.fixture
def profile_folder(golden, tmp_path):
    """A copy of it that may be changed."""
    return Path(shutil.copytree(golden, tmp_path / "profile"))
