"""Fields that came after the first profiles: optional to read, left out at their default."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import (
    HeadPatterns,
    NamedPoint,
    Profile,
    compute_profile_id,
    load_profile,
    parse_profile,
    profile_to_json,
    with_profile_id,
)
from sp_runtime.strict_json import OPTIONAL, plain

SHIPPED = sorted((Path(__file__).parents[2] / "profiles").glob("*/profile.json"))


def parsed(profile: Profile) -> Profile:
    return parse_profile(profile_to_json(with_profile_id(profile)).encode("ascii"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.parent.name)
def test_shipped_profiles_are_written_again_byte_for_byte(file: Path) -> None:
    profile = load_profile(file)
    assert profile_to_json(profile) == file.read_text("ascii")
    assert profile.point().top_k == OperatingPoint().top_k
    assert profile.head_patterns is None


def test_fields_at_their_default_stay_out(examples) -> None:
    profile = examples.make_profile()
    document = json.loads(profile_to_json(profile))
    assert "head_patterns" not in document
    assert "plans" not in document
    assert set(document["plan"]) == {"recall_floor", "heads"}
    optional = {
        field.name for field in dataclasses.fields(OperatingPoint) if field.metadata.get("optional")
    }
    assert {"top_k", "last_rows", "local_blocks", "drift_widen", "plan"} <= optional
    for named in document["points"]:
        assert not optional & set(named["point"])
    # Spelled out at their default they mean the same profile.
    for named in document["points"]:
        named["point"]["top_k"] = OperatingPoint().top_k
    points = tuple(
        NamedPoint(name=p["name"], point=OperatingPoint(**p["point"])) for p in document["points"]
    )
    assert compute_profile_id(dataclasses.replace(profile, points=points)) == profile.profile_id


def test_other_values_are_written_and_enter_the_identity(examples) -> None:
    profile = examples.make_profile()
    point = dataclasses.replace(profile.points[0].point, top_k=512)
    changed = dataclasses.replace(
        profile, points=(NamedPoint(name="default", point=point), profile.points[1])
    )
    assert compute_profile_id(changed) != profile.profile_id
    assert parsed(changed).point().top_k == 512


def test_head_patterns_survive_and_enter_the_identity(examples) -> None:
    profile = examples.make_profile()
    patterns = examples.head_patterns(profile.model)
    with_both = with_profile_id(dataclasses.replace(profile, head_patterns=patterns))
    assert parsed(with_both) == with_both
    ids = {profile.profile_id, with_both.profile_id}
    for changes in ({"moa": None}, {"minference": None}):
        other = dataclasses.replace(patterns, **changes)
        ids.add(compute_profile_id(dataclasses.replace(profile, head_patterns=other)))
    sink = dataclasses.replace(patterns, moa=dataclasses.replace(patterns.moa, sink=65))
    ids.add(compute_profile_id(dataclasses.replace(profile, head_patterns=sink)))
    assert len(ids) == 5
    # What was measured is no part of it.
    table = patterns.minference
    scored = tuple(dataclasses.replace(head, score=0.1) for head in table.heads)
    measured = HeadPatterns(
        minference=dataclasses.replace(table, source="elsewhere", heads=scored), moa=patterns.moa
    )
    again = dataclasses.replace(profile, head_patterns=measured)
    assert compute_profile_id(again) == with_both.profile_id


def test_a_plan_is_whole_or_empty(examples) -> None:
    profile = examples.make_profile()
    empty = dataclasses.replace(profile.plan, heads=())
    assert parsed(dataclasses.replace(profile, plan=empty)).plan.heads == ()
    partial = dataclasses.replace(profile.plan, heads=profile.plan.heads[:-1])
    with pytest.raises(CorruptArtefactError, match="these heads have no plan"):
        parsed(dataclasses.replace(profile, plan=partial))


def test_named_plans_survive_and_enter_the_identity(examples) -> None:
    profile = examples.make_profile()
    two = with_profile_id(examples.with_named_plans(profile))
    assert parsed(two) == two
    ids = {profile.profile_id, two.profile_id}
    for changes in ({"target_recall": 0.9}, {"min_length": None}, {"recall_floor": 0.1}):
        fast, *rest = two.plans
        fast = dataclasses.replace(fast, plan=dataclasses.replace(fast.plan, **changes))
        ids.add(compute_profile_id(dataclasses.replace(two, plans=(fast, *rest))))
    points = tuple(
        dataclasses.replace(named, point=dataclasses.replace(named.point, plan=""))
        for named in two.points
    )
    ids.add(compute_profile_id(dataclasses.replace(two, points=points)))
    assert len(ids) == 6


def test_a_point_names_its_plan(examples) -> None:
    profile = examples.with_named_plans(examples.make_profile())
    assert profile.plan_of(OperatingPoint()) is profile.plan
    assert profile.plan_of(profile.point("fast")) is profile.plans[0].plan
    with pytest.raises(UsageError, match="has no plan 'slow'") as error:
        profile.plan_of(OperatingPoint(plan="slow"))
    assert error.value.hint == "it has fast, safe"
    with pytest.raises(UsageError, match="has no plan 'slow'") as error:
        examples.make_profile().plan_of(OperatingPoint(plan="slow"))
    assert "own plan only" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("points", 0, "point", "plan"), "slow", "'slow' is none of the profile's plans"),
        (("plans", 0, "name"), "safe", "appears twice"),
        (("plans", 0, "name"), "a b", "is no plain name"),
        (("plans", 0, "plan", "heads"), [], "heads: is empty"),
        (("plans", 0, "plan", "heads", 0, "gamma"), 0, r"plans\[0\].plan.heads\[0\].gamma: 0.0"),
        (("plans", 0, "plan", "recall_floor"), 2, "plan.recall_floor: 2.0 is not in"),
        (("plans", 0, "plan", "target_recall"), 0, r"target_recall: 0.0 is not in \(0, 1\]"),
        (("plans", 0, "plan", "min_length"), 0, r"min_length: 0 is not in"),
        (("plans", 0, "plan", "heads", 3, "lender"), [0, 0], "a dense head lends later only"),
        (("plans", 0, "plan", "heads", 3, "lender"), [0, 2], "is streaming, which lends nothing"),
        (("plans", 0, "plan", "heads", 3, "lender"), [0, 3], "is borrow, which lends nothing"),
        (("plans", 0, "plan", "heads", 3, "lender"), [2, 0], "layer 2 is not before 0"),
        (("plan", "target_recall"), 1.5, r"plan.target_recall: 1.5 is not in \(0, 1\]"),
    ],
)
def test_named_plans_are_checked(examples, path, value, message) -> None:
    profile = examples.with_named_plans(examples.make_profile())
    refuse(profile, path, value, message)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("minference", "heads", 0, "kind"), "dense", "is not one of a_shape"),
        (("minference", "heads", 0, "slash"), 0, r"heads\[0\].slash: 0 is not in"),
        (("minference", "heads", 0, "vertical"), -1, r"heads\[0\].vertical: -1 is not in"),
        (("minference", "heads", 1, "vertical"), 0, r"heads\[1\].vertical: 0 is not in"),
        (("minference", "heads", 2, "slash"), 5, "is 0 for block_sparse"),
        (("minference", "heads", 0, "score"), -0.5, "score"),
        (("minference", "heads", 0, "layer"), 1, "no head of a full-attention layer"),
        (("minference", "heads", 1, "head"), 0, "must ascend"),
        (("minference", "heads", 0, "extra"), 0, "unknown field"),
        (("minference", "heads"), [], "these heads have no pattern"),
        (("moa", "density"), 0, r"density: 0.0 is not in \(0, 1\]"),
        (("moa", "sink"), -1, "sink: -1 is not in"),
        (("moa", "heads", 0, "beta"), 1.5, "beta: 1.5 is not in"),
        (("moa", "heads", 3, "alpha"), -1, "alpha: -1 is not in"),
        (("moa", "heads", 0, "alpha"), 0, "is an empty window"),
        (("moa", "heads", 0, "mass"), 2.0, "mass"),
        (("moa", "heads"), None, "expected a list"),
        (("moa",), 3, "expected an object"),
        (("moe",), None, "unknown field 'moe'"),
    ],
)
def test_head_patterns_are_checked(examples, path, value, message) -> None:
    profile = examples.make_profile()
    profile = dataclasses.replace(profile, head_patterns=examples.head_patterns(profile.model))
    refuse(profile, ("head_patterns", *path), value, message)


def refuse(profile: Profile, path: tuple, value: object, message: str) -> None:
    """The profile with one value of its document replaced is refused with this message."""
    document = json.loads(profile_to_json(with_profile_id(profile)))
    *parents, last = path
    at = document
    for key in parents:
        at = at[key]
    at[last] = value
    with pytest.raises(CorruptArtefactError, match=message):
        parse_profile(json.dumps(document).encode("ascii"))


def test_an_optional_table_must_still_be_named(examples) -> None:
    profile = examples.make_profile()
    profile = dataclasses.replace(profile, head_patterns=examples.head_patterns(profile.model))
    document = json.loads(profile_to_json(with_profile_id(profile)))
    del document["head_patterns"]["moa"]
    with pytest.raises(CorruptArtefactError, match=r"head_patterns.moa: missing"):
        parse_profile(json.dumps(document).encode("ascii"))


def test_plain_leaves_out_only_optional_defaults() -> None:
    @dataclasses.dataclass(frozen=True)
    class Inner:
        old: int = 1
        new: int = dataclasses.field(default=2, metadata=OPTIONAL)

    assert plain({"a": (Inner(), Inner(new=3))}) == {"a": [{"old": 1}, {"old": 1, "new": 3}]}
