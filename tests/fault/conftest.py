"""Helpers beside the tests, loaded by path: test folders are no packages."""

import importlib.util
import sys
from pathlib import Path

import pytest


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up here
    spec.loader.exec_module(module)
    return module


HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def faults():
    """tests/fault/faults.py."""
    return load("sp_test_faults", HERE / "faults.py")


@pytest.fixture(scope="session")
def examples():
    """tests/profile_examples.py."""
    return load("sp_test_profile_examples", HERE.parent / "profile_examples.py")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a tiny random model with its tokenizer."""
    module = load("sp_test_tiny_models", HERE.parent / "tiny_models.py")
    return module.save_model(tmp_path_factory.mktemp("tiny"), context=1024)
