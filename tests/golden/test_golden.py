"""Golden profiles of every released version of the schema load for ever, with equal ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from sp_profile.artefact import read_heads, read_masks, read_similarity
from sp_profile.verify import verify_folder
from sp_runtime.operating_point import METHODS
from sp_runtime.profile import (
    ASSIGNMENTS,
    SCHEMA_VERSION,
    SHAPE_KINDS,
    compute_profile_id,
    load_profile,
    parse_profile,
    profile_to_json,
)

HERE = Path(__file__).parent
# Never change one of these: profiles in the world carry ids that are made the same way.
IDS = {
    "profile-1.0": "982461ed969bf4050a955eb5bf8df381feeb1fed70586d9f61c9dc0dac15a8d7",
    "profile-1.0-imported": "5d974f81d12b99e7c6482b41ff64dbcc11a80f8b2578a6c663dfe040458230ba",
    "profile-1.0-plans": "fbf439e52fbb8a5a3b64a21d54498ccf515b6339ee4f9a4a7ae8c13ffc325055",
}
SHIPPED = {
    "smollm2-135m": "3565ef5d3e283133bc414d24fbf11e1cd14a08fd7be2488c8072c4e61f84af3d",
    "smollm2-135m-32k": "059f20636c93ab9e43e8591a74888ceed9618dde12c67550ca9a15be295a54a3",
}


def folders() -> list[Path]:
    return sorted(path for path in HERE.iterdir() if path.is_dir() and path.name[0] not in "._")


def test_every_golden_profile_is_known_and_the_current_version_has_one():
    assert {path.name for path in folders()} == set(IDS)
    assert f"profile-{SCHEMA_VERSION}" in IDS


@pytest.mark.parametrize("name", IDS)
def test_it_loads_with_an_equal_id(name):
    profile = load_profile(HERE / name)
    assert profile.profile_id == compute_profile_id(profile) == IDS[name]
    assert parse_profile(profile_to_json(profile).encode("ascii")) == profile


@pytest.mark.parametrize("name", IDS)
def test_it_is_whole(name):
    profile = load_profile(HERE / name)
    report = verify_folder(HERE / name, profile)
    assert report.findings == ()
    if profile.files:
        assert read_heads(HERE / name, profile).num_rows == 12
        assert len(read_similarity(HERE / name, profile).mean) == 66
        assert sum(len(group) for group in read_masks(HERE / name, profile)) == 36
        assert len(report.checks) == 10


def test_every_part_of_the_format_occurs():
    profile = load_profile(HERE / "profile-1.0")
    assert {plan.assignment for plan in profile.plan.heads} == set(ASSIGNMENTS)
    assert {named.point.method for named in profile.points} == set(METHODS)
    assert {shape.kind for shape in profile.head_patterns.minference.heads} == set(SHAPE_KINDS)
    assert profile.head_patterns.moa is not None
    assert {cluster.anchor is None for cluster in profile.clusters} == {True, False}
    assert {cluster.enabled for cluster in profile.clusters} == {True, False}
    assert set(profile.model.layer_types) == {"full_attention", "sliding_attention"}
    assert {named.point.drift is None for named in profile.points} == {True, False}
    assert {named.point.max_budget is None for named in profile.points} == {True, False}


def test_named_plans_are_as_they_were_written():
    profile = load_profile(HERE / "profile-1.0-plans")
    fast, safe = profile.plans
    assert (fast.name, fast.plan.target_recall, fast.plan.min_length) == ("fast", 0.95, 300)
    assert safe.plan == profile.plan
    assert profile.plan_of(profile.point("fast")) == fast.plan
    lenders = {head.ref: head.lender for head in fast.plan.heads if head.lender is not None}
    assert lenders[0, 3] == (0, 1)  # of its own layer
    assert profile.point("safe").drift_widen == 1.5
    assert profile.point("safe").local_blocks == 1


def test_its_signature_is_still_accepted():
    signing = pytest.importorskip("sp_profile.signing")
    pytest.importorskip("minisign")
    key = str(HERE / "minisign.pub")
    assert signing.load_signed_profile(HERE / "profile-1.0", key).profile_id == IDS["profile-1.0"]


@pytest.mark.parametrize("name", SHIPPED)
def test_ids_of_the_shipped_profiles_stay(name):
    assert load_profile(HERE.parents[1] / "profiles" / name).profile_id == SHIPPED[name]
