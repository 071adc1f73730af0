"""What the fault tests share: the faults, and a model to interrupt."""

import pytest


@pytest.fixture(scope="session")
def faults(helper):
    """tests/fault/faults.py."""
    return helper("fault/faults")


@pytest.fixture(scope="session")
def tiny_model(helper, tmp_path_factory):
    """The folder of a tiny random model with its tokenizer."""
    return helper("tiny_models").save_model(tmp_path_factory.mktemp("tiny"), context=1024)
