"""Nothing that reads files can run code from them: no way to do so is in the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("sp_runtime", "sp_profile", "cli")
MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
    *("code", "codeop", "runpy", "imp"),
}
CALLS = {"eval", "exec", "compile", "__import__"}
# np.load may stay away altogether: shards are read member by member.
METHODS = {
    ("torch", "load"),
    ("np", "load"),
    ("numpy", "load"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("np", "fromregex"),
}


def violations(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        else:
            names = []
        found += [f"{node.lineno}: imports {name}" for name in names if name in MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in CALLS:
            found.append(f"{node.lineno}: calls {called.id}")
        if (
            isinstance(called, ast.Attribute)
            and isinstance(called.value, ast.Name)
            and (called.value.id, called.attr) in METHODS
        ):
            found.append(f"{node.lineno}: calls {called.value.id}.{called.attr}")
        for keyword in node.keywords:
            is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if keyword.arg in ("allow_pickle", "shell") and is_true:
                found.append(f"{node.lineno}: {keyword.arg}=True")
    return found


FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_way_to_run_code(package):
    found = {
        str(path.relative_to(ROOT)): lines
        for path in FILES
        if path.is_relative_to(ROOT / package) and (lines := violations(path.read_text("utf-8")))
    }
    assert found == {}
    assert len(FILES) > 100


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "exec(open('x').read())",
        "np.load('x')",
        "f(allow_pickle=True)",
        "subprocess.run('x', shell=True)",
    ],
)
def test_the_scan_would_see_it(source):
    assert violations(source)


def test_the_scan_lets_models_be_evaluated():
    assert violations("model.eval()\nre.compile('x')\ntorch.compile(f)") == []
