"""profile.json: round trip, lookups, schema versions, and where it is looked for."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import pytest

from sp_runtime import operating_point as op
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.profile import (
    HeadRef,
    NamedPoint,
    load_profile,
    parse_profile,
    profile_to_json,
)
from sp_runtime.strict_json import encode


def test_round_trip_is_equal(examples):
    profile = examples.make_profile()
    assert parse_profile(profile_to_json(profile).encode("ascii")) == profile


def test_unclustered_model_round_trips(examples):
    profile = examples.make_profile(clusters=(), clustering=None)
    assert parse_profile(profile_to_json(profile).encode("ascii")) == profile


def test_whole_number_floats_keep_the_identity(examples):
    point = op.OperatingPoint(gamma=1, tau=0)  # a user's ints come back as floats
    profile = examples.make_profile(points=(NamedPoint(name="default", point=point),))
    assert parse_profile(profile_to_json(profile).encode("ascii")) == profile


def test_lookups(examples):
    profile = examples.make_profile()
    assert profile.point().min_budget == 128
    assert profile.point("paper").rule == "paper"
    assert profile.clusters_by_head()[HeadRef(2, 1)].id == 1
    assert profile.plan_by_head()[HeadRef(2, 0)].lender == HeadRef(0, 0)
    with pytest.raises(UsageError, match="no operating point 'fast'"):
        profile.point("fast")


# -- versions


def resealed(document):
    document.pop("checksum")
    document["checksum"] = hashlib.sha256(encode(document).encode()).hexdigest()
    return json.dumps(document).encode()


def test_newer_minor_with_unknown_fields_loads(examples, document):
    document["schema_version"] = "1.7"
    document["model"]["colour"] = "blue"
    document["plan"]["heads"][0]["note"] = {"a": [1]}
    found = parse_profile(resealed(document))
    expected = dataclasses.replace(examples.make_profile(), schema_version="1.7")
    assert found == expected


def test_unknown_fields_of_a_newer_minor_are_under_the_checksum(document):
    document["schema_version"] = "1.7"
    document["colour"] = "blue"
    data = resealed(document).replace(b"blue", b"blew")
    with pytest.raises(CorruptArtefactError, match="checksum"):
        parse_profile(data)


@pytest.mark.parametrize("version", ["2.0", "10.1"])
def test_newer_major_is_refused_with_an_upgrade_hint(document, version):
    document["schema_version"] = version
    with pytest.raises(CorruptArtefactError, match="schema_version") as caught:
        parse_profile(json.dumps(document).encode())
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("version", ["1", "1.0.0", "01.0", "1.-1", "", 1.0, None, "1.0\n"])
def test_odd_versions_are_refused(refusal, document, version):
    document["schema_version"] = version
    assert "schema_version" in refusal(document)


def test_another_schema_is_refused(refusal, document):
    document["schema"] = "other"
    assert refusal(document).startswith("profile.json: schema:")


# -- files


def test_folder_and_file_load_alike(tmp_path, examples):
    profile = examples.make_profile()
    (tmp_path / "profile.json").write_text(profile_to_json(profile))
    assert load_profile(tmp_path) == load_profile(str(tmp_path / "profile.json")) == profile


def test_missing_profile_says_what_to_give(tmp_path):
    for path in (tmp_path, tmp_path / "gone", tmp_path / "gone" / "profile.json"):
        with pytest.raises(UsageError, match="no profile at") as caught:
            load_profile(path)
        assert "profile.json" in caught.value.hint


def test_loading_needs_neither_torch_nor_anything_heavy(tmp_path, examples):
    (tmp_path / "profile.json").write_text(profile_to_json(examples.make_profile()))
    code = (
        "import sys; from sp_runtime.profile import load_profile; load_profile(sys.argv[1]);"
        "heavy = {'torch', 'numpy', 'pyarrow', 'transformers'} & set(sys.modules);"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ)
