"""profile.json: round trip, identity, schema versions, and the rules between its parts."""

import dataclasses
import hashlib
import importlib.resources
import json
import os
import subprocess
import sys
import typing

import pytest

from sp_runtime import block_index, profile_rules
from sp_runtime import operating_point as op
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.profile import (
    ASSIGNMENTS,
    HeadRef,
    NamedPoint,
    Profile,
    PromptRecord,
    compute_profile_id,
    load_profile,
    parse_profile,
    profile_to_json,
    with_profile_id,
)
from sp_runtime.strict_json import encode


@pytest.fixture
def document(examples):
    return json.loads(profile_to_json(examples.make_profile()))


def set_at(document, path, value):
    """Set `plan.heads[3].lender`-like paths: keys and indices, in a list."""
    *parents, last = path
    for key in parents:
        document = document[key]
    document[last] = value


def refusal(document):
    with pytest.raises(CorruptArtefactError) as caught:
        parse_profile(json.dumps(document).encode())
    return caught.value.message


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


# -- identity


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: {"model_name": "other/name"}, id="name"),
        pytest.param(
            lambda p: {"producer": dataclasses.replace(p.producer, version="9")}, id="producer"
        ),
        pytest.param(
            lambda p: {"calibration": dataclasses.replace(p.calibration, device="NVIDIA H100")},
            id="device",
        ),
        pytest.param(
            lambda p: {"calibration": dataclasses.replace(p.calibration, versions=())},
            id="versions",
        ),
        pytest.param(
            lambda p: {
                "calibration": dataclasses.replace(
                    p.calibration, prompts=p.calibration.prompts[::-1]
                )
            },
            id="prompt-order",
        ),
        pytest.param(lambda p: {"clusters": p.clusters[::-1]}, id="cluster-order"),
        pytest.param(
            lambda p: {
                "clusters": tuple(
                    dataclasses.replace(
                        c, id=c.id + 7, evidence=dataclasses.replace(c.evidence, saving=0.5)
                    )
                    for c in p.clusters
                )
            },
            id="cluster-labels-and-evidence",
        ),
        pytest.param(lambda p: {"points": p.points[::-1]}, id="point-order"),
        pytest.param(
            lambda p: {
                "plan": dataclasses.replace(
                    p.plan,
                    recall_floor=p.plan.recall_floor + 1e-5,
                    heads=tuple(dataclasses.replace(h, recall=0.5, cost=0.7) for h in p.plan.heads),
                )
            },
            id="measured-and-rounding",
        ),
    ],
)
def test_identity_ignores(examples, change):
    profile = examples.make_profile()
    assert compute_profile_id(dataclasses.replace(profile, **change(profile))) == profile.profile_id


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda p: {"model": dataclasses.replace(p.model, weights_sha256=None)}, id="weights"
        ),
        pytest.param(
            lambda p: {"calibration": dataclasses.replace(p.calibration, dtype="bfloat16")},
            id="dtype",
        ),
        pytest.param(
            lambda p: {"calibration": dataclasses.replace(p.calibration, gamma=0.901)}, id="gamma"
        ),
        pytest.param(
            lambda p: {
                "calibration": dataclasses.replace(
                    p.calibration, prompts=(PromptRecord(sha256="a" * 64, tokens=301),)
                )
            },
            id="prompts",
        ),
        pytest.param(
            lambda p: {
                "clusters": (dataclasses.replace(p.clusters[0], enabled=False), p.clusters[1])
            },
            id="enabled",
        ),
        pytest.param(
            lambda p: {
                "clusters": (dataclasses.replace(p.clusters[0], anchor=None), p.clusters[1])
            },
            id="anchor",
        ),
        pytest.param(
            lambda p: {
                "plan": dataclasses.replace(
                    p.plan,
                    heads=tuple(
                        dataclasses.replace(h, lender=h.lender and HeadRef(0, 0))
                        for h in p.plan.heads
                    ),
                )
            },
            id="lender",
        ),
        pytest.param(lambda p: {"points": p.points[:1]}, id="points"),
    ],
)
def test_identity_holds(examples, change):
    profile = examples.make_profile()
    assert compute_profile_id(dataclasses.replace(profile, **change(profile))) != profile.profile_id


def test_identity_is_frozen(examples):
    # Profiles in the world carry ids of this form: a change here orphans all of them.
    assert examples.make_profile().profile_id == (
        "f219c5ddfc98711405d75cc65b20a725e07f832676eeb05447e08d025cee3455"
    )


# -- fields


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (["producer", "name"], 3, "producer.name"),
        (["producer", "name"], "a\nb", "producer.name"),
        (["model", "num_layers"], True, "model.num_layers"),
        (["model", "num_layers"], 5, "model.layer_types"),
        (["model", "num_layers"], 4.0, "model.num_layers"),
        (["model", "num_heads"], -4, "model.num_heads"),
        (["model", "num_heads"], 5000, "model.num_heads"),
        (["model", "num_layers"], 4000, "model.layer_types"),
        (["model", "num_kv_heads"], 3, "model.num_kv_heads"),
        (["model", "layer_types", 1], "linear_attention", "model.layer_types[1]"),
        (["model", "config_sha256"], "C" * 64, "model.config_sha256"),
        (["model", "weights_sha256"], "", "model.weights_sha256"),
        (["calibration", "prompts", 0, "tokens"], 0, "calibration.prompts[0].tokens"),
        (["calibration", "prompts", 1, "sha256"], "a" * 64, "calibration.prompts[1].sha256"),
        (["calibration", "gamma"], 0, "calibration.gamma"),
        (["calibration", "gamma"], None, "calibration.gamma"),
        (["calibration", "gamma"], "0.9", "calibration.gamma"),
        (["calibration", "block_size"], 96, "calibration.block_size"),
        (["calibration", "dtype"], "int8", "calibration.dtype"),
        (["calibration", "seed"], -1, "calibration.seed"),
        (["calibration", "chat_template"], 0, "calibration.chat_template"),
        (["calibration", "versions", 0], ["torch"], "calibration.versions[0]"),
        (["calibration", "versions", 1, 0], "torch", "calibration.versions[1][0]"),
        (["clustering", "threshold"], 1.5, "clustering.threshold"),
        (["clusters", 1, "id"], 0, "clusters[1].id"),
        (["clusters", 0, "members"], [], "clusters[0].members"),
        (["clusters", 0, "members"], [[2, 0], [0, 0]], "clusters[0].members[1]"),
        (["clusters", 0, "members"], [[0, 0], [0, 0]], "clusters[0].members[1]"),
        (["clusters", 0, "members", 1], [1, 0], "clusters[0].members[1]"),
        (["clusters", 0, "members", 1], [0, 4], "clusters[0].members[1]"),
        (["clusters", 0, "members", 1], [0, -1], "clusters[0].members[1]"),
        (["clusters", 0, "members", 1], [0, 1, 2], "clusters[0].members[1]"),
        (["clusters", 1, "members", 0], [0, 0], "clusters[1].members[0]"),
        (["clusters", 0, "anchor"], [0, 1], "clusters[0].anchor"),
        (["clusters", 0, "evidence", "recall_mean"], -0.1, "clusters[0].evidence.recall_mean"),
        (["clusters", 0, "evidence"], {}, "clusters[0].evidence.jaccard_mean"),
        (["plan", "recall_floor"], 2, "plan.recall_floor"),
        (["plan", "heads", 3, "assignment"], "guess", "plan.heads[3].assignment"),
        (["plan", "heads", 3, "assignment"], ["dense"], "plan.heads[3].assignment"),
        (["plan", "heads", 3, "layer"], 1, "plan.heads[3]"),
        (["plan", "heads", 3, "head"], 2, "plan.heads[3]"),
        (["plan", "heads", 3, "gamma"], 1.1, "plan.heads[3].gamma"),
        (["plan", "heads", 3, "window"], 64, "plan.heads[3].window"),
        (["plan", "heads", 2, "window"], None, "plan.heads[2].window"),
        (["plan", "heads", 1, "stride"], 65, "plan.heads[1].stride"),
        (["plan", "heads", 3, "lender"], [0, 0], "plan.heads[3].lender"),
        (["plan", "heads", 4, "lender"], None, "plan.heads[4].lender"),
        (["plan", "heads", 4, "lender"], [2, 1], "plan.heads[4].lender"),
        (["plan", "heads", 4, "lender"], [3, 1], "plan.heads[4].lender"),
        (["plan", "heads", 4, "lender"], [0, 3], "plan.heads[4].lender"),
        (["plan", "heads", 8, "lender"], [2, 0], "plan.heads[8].lender"),
        (["plan", "heads", 8, "lender"], [1, 0], "plan.heads[8].lender"),
        (["plan", "heads", 3, "cost"], -1, "plan.heads[3].cost"),
        (["points", 0, "name"], "other", "points"),
        (["points", 1, "name"], "default", "points[1].name"),
        (["points", 1, "name"], "a b", "points[1].name"),
        (["points", 1, "point", "gamma"], 2, "points[1].point"),
        (["points", 1, "point", "stride"], 8.5, "points[1].point.stride"),
        (["files"], [{"name": "../x", "sha256": "a" * 64, "bytes": 1}], "files[0].name"),
        (["files"], [{"name": "/etc/passwd", "sha256": "a" * 64, "bytes": 1}], "files[0].name"),
        (["files"], [{"name": "..", "sha256": "a" * 64, "bytes": 1}], "files[0].name"),
        (["files"], [{"name": "a\\b", "sha256": "a" * 64, "bytes": 1}], "files[0].name"),
        (["files"], [{"name": "profile.json", "sha256": "a" * 64, "bytes": 1}], "files[0].name"),
        (["files"], [{"name": "heads.parquet", "sha256": "a" * 64, "bytes": -1}], "files[0].bytes"),
        (["model", "extra"], 1, "model"),
        (["profile_id"], "f" * 64, "profile_id"),
        (["calibration", "seed"], 2, "profile_id"),
        (["clusters", 0, "evidence", "reason"], "altered", "checksum"),
        (["checksum"], None, "checksum"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else None,
)
def test_refused_field_is_named(document, path, value, field):
    set_at(document, path, value)
    assert refusal(document).startswith(f"profile.json: {field}:")


def test_every_field_is_required(document):
    def walk(node, path):
        if isinstance(node, dict):
            for key in node:
                yield [*path, key]
                yield from walk(node[key], [*path, key])
        elif isinstance(node, list):
            for number, item in enumerate(node):
                yield from walk(item, [*path, number])

    paths = list(walk(document, []))
    assert len(paths) > 200
    for *parents, last in paths:
        copy = json.loads(json.dumps(document))
        node = copy
        for key in parents:
            node = node[key]
        del node[last]
        assert last in refusal(copy)


def test_too_many_heads_are_refused_before_they_are_listed(document):
    document["model"] |= {"num_layers": 4096, "num_heads": 4096, "num_kv_heads": 1}
    document["model"]["layer_types"] = ["full_attention"] * 4096
    assert refusal(document).startswith("profile.json: model.num_heads:")


def test_head_without_plan_is_named(document):
    del document["plan"]["heads"][5]
    assert refusal(document) == "profile.json: plan.heads: these heads have no plan: [[2, 1]]"


def test_block_sizes_agree_with_the_kernels():
    assert profile_rules.BLOCK_SIZES == block_index.BLOCK_SIZES


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
def test_odd_versions_are_refused(document, version):
    document["schema_version"] = version
    assert "schema_version" in refusal(document)


def test_another_schema_is_refused(document):
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


# -- the published JSON Schema


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
def test_schema_refuses_what_the_reader_refuses(validator, document, path, value):
    set_at(document, path, value)
    assert not validator.is_valid(document)
    refusal(document)


def test_id_is_filled_in(examples):
    profile = dataclasses.replace(examples.make_profile(), profile_id="")
    assert with_profile_id(profile) == examples.make_profile()
