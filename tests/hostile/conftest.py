"""Shared examples, loaded by path: test folders are no packages."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def examples() -> ModuleType:
    """tests/profile_examples.py."""
    path = Path(__file__).parents[1] / "profile_examples.py"
    spec = importlib.util.spec_from_file_location("profile_examples", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
