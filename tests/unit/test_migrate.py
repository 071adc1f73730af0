"""Migration: nothing to do for 1.x, refusals, and the chain that a later version will use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sp_profile.migrate import STEPS, Step, plan_migration, steps_from
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.profile import SCHEMA_VERSION

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["profile-1.0", "profile-1.0-imported"])
def test_there_is_nothing_to_migrate(name):
    found = plan_migration(GOLDEN / name)
    assert (found.version, found.current, found.steps) == ("1.0", SCHEMA_VERSION, ())
    assert STEPS == ()


@pytest.mark.parametrize("version", ["2.0", "0.9", "17.3"])
def test_unknown_majors_are_refused(tmp_path, version):
    document = json.loads((GOLDEN / "profile-1.0" / "profile.json").read_text())
    document["schema_version"] = version
    (tmp_path / "profile.json").write_text(json.dumps(document))
    with pytest.raises(CorruptArtefactError, match="schema_version"):
        plan_migration(tmp_path)


def test_no_profile_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError):
        plan_migration(tmp_path)


def step(major):
    return Step(major=major, what=f"{major} to {major + 1}", change=lambda document: document)


def test_steps_form_an_unbroken_chain():
    steps = (step(1), step(2), step(3))
    assert [each.what for each in steps_from(2, steps)] == ["2 to 3", "3 to 4"]
    assert steps_from(4, steps) == ()
    for broken in ((step(2), step(3)), (step(1), step(3))):
        with pytest.raises(CorruptArtefactError, match="nothing migrates"):
            steps_from(1, broken)
