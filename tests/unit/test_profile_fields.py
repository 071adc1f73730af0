"""What profile.json may not hold: every refusal names the field."""

import json

import pytest

from sp_runtime import block_index, profile_rules


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
def test_refused_field_is_named(refusal, changed, path, value, field):
    assert refusal(changed(path, value)).startswith(f"profile.json: {field}:")


def test_every_field_is_required(refusal, document):
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


def test_too_many_heads_are_refused_before_they_are_listed(refusal, document):
    document["model"] |= {"num_layers": 4096, "num_heads": 4096, "num_kv_heads": 1}
    document["model"]["layer_types"] = ["full_attention"] * 4096
    assert refusal(document).startswith("profile.json: model.num_heads:")


def test_head_without_plan_is_named(refusal, document):
    del document["plan"]["heads"][5]
    assert refusal(document) == "profile.json: plan.heads: these heads have no plan: [[2, 1]]"


def test_block_sizes_agree_with_the_kernels():
    assert profile_rules.BLOCK_SIZES == block_index.BLOCK_SIZES
