"""Shared examples and the corpus, loaded by path: test folders are no packages."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def load(name: str, folder: Path) -> ModuleType:
    """A module of a test folder, once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def examples() -> ModuleType:
    """tests/profile_examples.py."""
    return load("profile_examples", HERE.parent)


@pytest.fixture(scope="session")
def corpus() -> ModuleType:
    """make_corpus.py: cases(), path_of(kind, name), make(kind, name)."""
    return load("make_corpus", HERE)
