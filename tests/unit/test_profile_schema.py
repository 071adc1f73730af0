"""The published JSON Schema of profile.json beside the reader and the dataclasses."""

import dataclasses
import importlib.resources
import json
import typing

import pytest

from sp_runtime import operating_point as op
from sp_runtime import profile_rules
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.profile import (
    ASSIGNMENTS,
    Profile,
    profile_to_json,
)


@pytest.fixture(scope="module")
def schema():
    path = importlib.resources.files("sp_profile") / "schema" / "profile-1.0.schema.json"
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def validator(schema):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_schema_accepts_what_the_writer_writes(validator, document, examples):
    validator.validate(document)
    validator.validate(json.loads(profile_to_json(examples.make_profile(clustering=None))))


def test_schema_describes_the_dataclasses(schema):
    def visit(cls, node, seen):
        fields = dataclasses.fields(cls)
        extra = ["checksum"] if cls is Profile else []
        assert list(node["properties"]) == [field.name for field in fields] + extra
        needed = [field.name for field in fields if not field.metadata.get("optional")]
        assert node["required"] == needed + extra
        assert node["additionalProperties"] is False
        seen.add(cls)
        for hint in typing.get_type_hints(cls).values():
            for inner in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(inner) and inner not in seen:
                    visit(inner, schema["$defs"][inner.__name__], seen)
        return seen

    seen = visit(Profile, schema, set())
    assert {ModelFingerprint, op.OperatingPoint} < seen


def test_schema_knows_the_same_names(schema):
    definitions = schema["$defs"]
    point = definitions["OperatingPoint"]["properties"]
    calibration = definitions["Calibration"]["properties"]
    layer_types = definitions["ModelFingerprint"]["properties"]["layer_types"]["items"]
    for node, known in (
        (definitions["HeadPlan"]["properties"]["assignment"], ASSIGNMENTS),
        (point["method"], op.METHODS),
        (point["rule"], op.RULES),
        (calibration["block_size"], profile_rules.BLOCK_SIZES),
        (calibration["dtype"], profile_rules.DTYPES),
        (layer_types, profile_rules.LAYER_TYPES),
    ):
        assert tuple(node["enum"]) == known


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["model", "num_layers"], 0),
        (["model", "extra"], 1),
        (["calibration", "gamma"], 0),
        (["calibration", "block_size"], 96),
        (["clusters", 0, "members", 1], [0]),
        (["clusters", 0, "members", 1], [0, 1, 2]),
        (["plan", "heads", 3, "assignment"], "guess"),
        (["plan", "heads", 3, "lender"], "0.0"),
        (["points", 0, "point", "min_tokens"], 0),
        (["files"], [{"name": "../x", "sha256": "a" * 64, "bytes": 1}]),
        (["checksum"], None),
        (["schema_version"], "2.0"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else None,
)
def test_schema_refuses_what_the_reader_refuses(refusal, validator, changed, path, value):
    document = changed(path, value)
    assert not validator.is_valid(document)
    refusal(document)
