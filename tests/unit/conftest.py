"""Shared examples of the unit tests."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sp_profile.artefact import write_profile
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import Profile, parse_profile, profile_to_json

Helper = Callable[[str], ModuleType]


@pytest.fixture(scope="session")
def plans(helper: Helper) -> ModuleType:
    """tests/unit/plan_examples.py."""
    return helper("unit/plan_examples")


@pytest.fixture
def write(examples: ModuleType) -> Callable[..., Profile]:
    """write(folder): publish the example, or changes of it, there; the published profile."""

    def write(folder: Path, *, profile: Profile | None = None, **options: Any) -> Profile:
        profile = profile or examples.make_profile()
        parts = {
            "heads": examples.head_rows(profile),
            "similarity": examples.similarity(profile),
            "masks": examples.mask_rows(profile),
        }
        return write_profile(folder, profile, **{**parts, **options})

    return write


@pytest.fixture
def document(examples: ModuleType) -> Any:
    """The example's profile.json, as a tree that may be changed."""
    return json.loads(profile_to_json(examples.make_profile()))


@pytest.fixture
def changed(document: Any) -> Callable[[list[Any], Any], Any]:
    """changed(["plan", "heads", 3, "lender"], value): that document with another value there."""

    def change(path: list[Any], value: Any) -> Any:
        *parents, last = path
        node = document
        for key in parents:
            node = node[key]
        node[last] = value
        return document

    return change


@pytest.fixture(scope="session")
def refusal() -> Callable[[Any], str]:
    """refusal(document): what the reader says when it refuses it."""

    def refuse(document: Any) -> str:
        with pytest.raises(CorruptArtefactError) as caught:
            parse_profile(json.dumps(document).encode())
        return caught.value.message

    return refuse
