"""The published JSON Schema and the dataclasses say the same, in both directions."""

from __future__ import annotations

import copy
import dataclasses
import importlib.resources
import importlib.util
import json
import types
import typing
from pathlib import Path

import pytest
from hypothesis import given

from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import HeadRef, Profile, parse_profile, profile_to_json

jsonschema = pytest.importorskip("jsonschema")

HERE = Path(__file__).parent
# Small, so that thousands of variants of it take seconds.
SMALL = json.loads((HERE.parent / "hostile" / "base" / "minimal.json").read_text("ascii"))
REFS = [{"layer": layer, "head": head} for layer in (0, 1) for head in (0, 1)]
SMALL["head_patterns"] = {
    "minference": {
        "source": "search",
        "heads": [{**r, "kind": "a_shape", "vertical": 9, "slash": 9, "score": 0.5} for r in REFS],
    },
    "moa": {
        "source": "search",
        "density": 0.5,
        "sink": 64,
        "heads": [{**ref, "alpha": 64, "beta": 0.5, "mass": 0.5} for ref in REFS],
    },
}
SCHEMA = json.loads(
    (importlib.resources.files("sp_profile") / "schema" / "profile-1.0.schema.json").read_text()
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def load_strategies():
    path = HERE.parent / "property" / "test_profile_roundtrip.py"
    spec = importlib.util.spec_from_file_location("profile_strategies", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STRATEGIES = load_strategies()


def resolved(node: dict) -> dict:
    if "$ref" in node:
        return SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def agrees(hint: object, node: dict) -> bool:
    """Whether a field's type hint and its schema allow the same JSON types, all the way down."""
    node = resolved(node)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not type(None))
        first, second = node["oneOf"]
        return second == {"type": "null"} and agrees(inner, first)
    if origin is typing.Literal:
        return tuple(node["enum"]) == args
    if hint is HeadRef:
        return node == SCHEMA["$defs"]["HeadRef"]
    if origin is tuple and args[1:] == (Ellipsis,):
        return node["type"] == "array" and agrees(args[0], node["items"])
    if origin is tuple:
        parts = zip(args, node["prefixItems"], strict=True)
        return node["items"] is False and all(agrees(arg, part) for arg, part in parts)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        if hint is Profile:
            hints["checksum"] = str
        properties = node["properties"]
        return list(hints) == list(properties) and all(
            agrees(inner, properties[name]) for name, inner in hints.items()
        )
    if "const" in node:
        return isinstance(node["const"], hint)
    if "enum" in node:
        return all(isinstance(value, hint) for value in node["enum"])
    return node["type"] == JSON_TYPES[hint]


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_type_agrees_all_the_way_down():
    assert agrees(Profile, SCHEMA)


def test_a_disagreement_would_be_seen():
    node = copy.deepcopy(SCHEMA["$defs"]["HeadPlan"])
    hint = typing.get_type_hints(Profile)["plan"]
    assert agrees(hint, SCHEMA["$defs"]["Plan"])
    for broken in (
        {**node, "properties": {**node["properties"], "extra": {"type": "string"}}},
        {**node, "properties": {**node["properties"], "recall": {"type": "integer"}}},
        {**node, "properties": {k: v for k, v in node["properties"].items() if k != "cost"}},
    ):
        heads = typing.get_type_hints(hint)["heads"]
        assert not agrees(typing.get_args(heads)[0], broken)


@pytest.mark.parametrize(
    "path",
    [
        *sorted(HERE.glob("profile-*/profile.json")),
        *sorted((HERE.parents[1] / "profiles").glob("*/profile.json")),
    ],
    ids=lambda path: path.parent.name,
)
def test_golden_and_shipped_profiles_validate(path):
    VALIDATOR.validate(json.loads(path.read_text("ascii")))


@given(profile=STRATEGIES.profiles())
def test_what_the_writer_writes_validates(profile):
    VALIDATOR.validate(json.loads(profile_to_json(profile)))


def leaves(node: object, path: tuple = ()):
    """(path, value) of every number, text and list of a document, one of each like path."""
    if isinstance(node, dict):
        for key, item in node.items():
            yield from leaves(item, (*path, key))
    elif isinstance(node, list):
        yield path, node
        for number, item in enumerate(node[:1]):
            yield from leaves(item, (*path, number))
    elif node is not None:
        yield path, node


WRONG = [None, True, -1, 1e9, "x y", [], {}]


def test_what_the_schema_refuses_the_reader_refuses():
    """So the schema is never stricter: a tool that validates with it turns nothing good away."""
    tried = 0
    for path, value in leaves(SMALL):
        for wrong in WRONG:
            if wrong == value:
                continue
            document = copy.deepcopy(SMALL)
            parent = document
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = wrong
            if VALIDATOR.is_valid(document):
                continue
            tried += 1
            with pytest.raises(CorruptArtefactError) as caught:
                parse_profile(json.dumps(document).encode())
            # Not for its checksum or id alone: a rule of the field itself speaks.
            message = caught.value.message
            identity = path[0] in ("profile_id", "checksum")
            assert identity or not message.startswith(
                ("profile.json: checksum:", "profile.json: profile_id:")
            ), (path, wrong)
    assert tried > 300
