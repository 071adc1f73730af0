"""Mutants of profile.json and of its signature, and what the runtime relies on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import mutate
from fuzz import GOLDEN, Check

from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import (
    Profile,
    compute_profile_id,
    parse_profile,
    profile_to_json,
    with_profile_id,
)
from sp_runtime.strict_json import decode, encode, parse


def profile_damage(scratch: Path) -> Check:
    text = (GOLDEN / "profile.json").read_bytes()
    expected = parse_profile(text)

    def check(draw: random.Random) -> str:
        found = parse_profile(mutate.mutate_json_text(draw, text))
        assert found == expected, "accepted as something else"
        return "equal"

    return check


def profile_forgery(scratch: Path) -> Check:
    text = (GOLDEN / "profile.json").read_bytes()
    expected = parse_profile(text)

    def check(draw: random.Random) -> str:
        document = mutate.mutate_tree(draw, json.loads(text), most=3)
        found = parse_profile(sealed(document))
        assert found.profile_id == compute_profile_id(found), "wrong id accepted"
        again = parse_profile(profile_to_json(found).encode())
        assert again == found, "not read back as it was written"
        assert_rules(found)
        says_same = content(found) == content(expected)
        assert says_same == (found.profile_id == expected.profile_id), "the id does not tell"
        return "equal" if found == expected else "forged"

    return check


def sealed(document: Any) -> bytes:
    """The document with id and checksum recomputed, where it can be read at all."""
    if isinstance(document, dict):
        document.pop("checksum", None)
        try:
            newer = document.get("schema_version") not in ("1.0", None)
            bare = parse(json.dumps(document).encode(), "x")
            profile = decode(Profile, bare, "x", ignore_unknown=newer)
            document["profile_id"] = with_profile_id(profile).profile_id
            document["checksum"] = hashlib.sha256(encode(document).encode()).hexdigest()
        except (CorruptArtefactError, ValueError, TypeError, AttributeError):
            pass  # the reader refuses it for that; what sealing needs is no part of the reader
    return json.dumps(document).encode("utf-8", "surrogatepass")


def content(profile: Profile) -> Any:
    """What a profile says, by field; written apart from `compute_profile_id`."""

    def near(value: Any) -> Any:
        if isinstance(value, float):
            return round(value * 1000)
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return value
        if isinstance(value, int):
            return value * 1000
        if isinstance(value, dict):
            return tuple(sorted((key, near(item)) for key, item in value.items()))
        return tuple(near(item) for item in value)

    calibration = dataclasses.asdict(profile.calibration)
    prompts = sorted((p["sha256"], p["tokens"]) for p in calibration.pop("prompts"))
    del calibration["versions"], calibration["device"]
    heads = [dataclasses.asdict(plan) for plan in profile.plan.heads]
    patterns = profile.head_patterns
    shapes = patterns.minference if patterns is not None else None
    windows = patterns.moa if patterns is not None else None
    return near(
        {
            "model": dataclasses.asdict(profile.model),
            "prompts": prompts,
            "settings": calibration,
            "clustering": profile.clustering and dataclasses.asdict(profile.clustering),
            "clusters": sorted((c.members, c.anchor or (), c.enabled) for c in profile.clusters),
            "floor": profile.plan.recall_floor,
            "plan": [{k: v for k, v in h.items() if k not in ("recall", "cost")} for h in heads],
            "points": {p.name: dataclasses.asdict(p.point) for p in profile.points},
            "has_patterns": (patterns is not None, shapes is not None, windows is not None),
            "shapes": shapes
            and [(s.layer, s.head, s.kind, s.vertical, s.slash) for s in shapes.heads],
            "windows": windows
            and (windows.sink, [(w.layer, w.head, w.alpha, w.beta) for w in windows.heads]),
        }
    )


def assert_rules(profile: Profile) -> None:
    """What the runtime relies on, written apart from `check_profile`."""
    model = profile.model
    heads = {
        (layer, head)
        for layer, kind in enumerate(model.layer_types)
        if kind == "full_attention"
        for head in range(model.num_heads)
    }
    planned = [(plan.layer, plan.head) for plan in profile.plan.heads]
    assert planned == sorted(set(planned)), "heads planned twice"
    assert set(planned) in (heads, set()), "heads without a plan"
    by_head = {plan.ref: plan for plan in profile.plan.heads}
    for plan in profile.plan.heads:
        assert 0 < plan.gamma <= 1
        if plan.lender is not None:
            assert plan.lender.layer < plan.layer, "lender of a later layer"
            assert by_head[plan.lender].assignment in ("dense", "sampled")
    members = [member for cluster in profile.clusters for member in cluster.members]
    assert len(members) == len(set(members)), "a head in two clusters"
    assert set(members) <= heads
    for cluster in profile.clusters:
        assert cluster.anchor is None or cluster.anchor in cluster.members
    assert any(named.name == "default" for named in profile.points)
    for file in profile.files:
        assert os.sep not in file.name
        assert not file.name.startswith(".")


def signature_damage(scratch: Path) -> Check:
    """Signed profiles of which profile.json (valid in itself) or the signature was changed."""
    from sp_profile.signing import load_signed_profile

    folder = scratch / "profile"
    shutil.copytree(GOLDEN, folder)
    key = str(GOLDEN.parent / "minisign.pub")
    signature, text = folder / "profile.json.minisig", folder / "profile.json"
    valid, signed = signature.read_bytes(), text.read_bytes()
    expected = load_signed_profile(folder, key)

    def check(draw: random.Random) -> str:
        signature.write_bytes(valid)
        text.write_bytes(signed)
        if draw.random() < 0.5:
            signature.write_bytes(mutate.mutate_bytes(draw, valid))
        else:
            text.write_bytes(sealed(mutate.mutate_tree(draw, json.loads(signed))))
        assert load_signed_profile(folder, key) == expected, "accepted as something else"
        return "equal"

    return check
