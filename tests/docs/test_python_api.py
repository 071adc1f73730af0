"""The code of docs/python-api.md runs as it stands, and prints what the page says it prints.

The names on the page are a hub's: one on the loopback interface serves a tiny model and a profile
of it under them, so that every download goes through huggingface_hub and transformers.
"""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python-api.md"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>\w+)[^>]*-->\n)?```python\n(?P<code>.*?)```"
    r"(?:\n\n```text\n(?P<output>.*?)```)?",
    re.DOTALL,
)
MARK = "--- end of a block ---"
# Before the page: nothing may be drawn into the output, and the tiny model is random.
BEFORE = "import transformers\ntransformers.utils.logging.disable_progress_bar()\n"


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks():
    found = list(BLOCK.finditer(PAGE.read_text("utf-8")))
    return [(each["code"], each["output"] or "") for each in found if each["mark"] != "skip"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which profiles/smollm2-135m is a profile of the tiny model at `model`."""
    from sp_profile.calibrate import calibrate
    from sp_profile.calibration_config import CalibrationConfig
    from sp_profile.cluster import build_profile
    from sp_profile.cluster_types import ClusterConfig

    folder = tmp_path_factory.mktemp("page")
    model = load("tiny_models").save_model(folder / "model")
    config = CalibrationConfig(
        model=str(model), tasks=("json_kv",), samples=2, block_size=64, lengths=(1024,),
        min_budget=128,
    )  # fmt: skip
    calibrate(config, folder / "run")
    settings = ClusterConfig(min_tokens=256, min_cluster_size=2)
    build_profile(folder / "run", folder / "profiles" / "smollm2-135m", settings)
    return folder, model


def test_the_page_runs_from_top_to_bottom(place):
    folder, model = place
    script = BEFORE + f"\nprint({MARK!r})\n".join(code for code, _ in blocks())
    with load("fake_hub").serve() as hub:
        hub.add(MODEL, model)
        hub.add("you/smollm2-135m-profile", folder / "profiles" / "smollm2-135m")
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf")}
        kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder, env={**kept, **variables}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split(MARK + "\n")
    assert len(printed) == len(blocks())
    checker = doctest.OutputChecker()
    for (code, wanted), got in zip(blocks(), printed, strict=True):
        assert checker.check_output(wanted, got, doctest.ELLIPSIS), f"{code}\nprinted\n{got}"


def test_the_page_names_every_public_name():
    import sp_runtime

    text = PAGE.read_text("utf-8")
    errors = [n for n in sp_runtime.__all__ if isinstance(getattr(sp_runtime, n), type)]
    named = {n for n in sp_runtime.__all__ if n not in errors or "Error" not in n} - {"__version__"}
    assert {name for name in named if f"`{name}`" not in text} == set()


def test_most_of_the_page_is_run():
    assert len(blocks()) >= len(list(BLOCK.finditer(PAGE.read_text("utf-8")))) - 1 >= 10
