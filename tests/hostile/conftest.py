"""The corpus of hostile files, shared by the tests of this folder."""

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def corpus(helper: Callable[[str], ModuleType]) -> ModuleType:
    """make_corpus.py: cases(), path_of(kind, name), make(kind, name)."""
    return helper("hostile/make_corpus")
