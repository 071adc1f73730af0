"""`sp-run bench` as a real command on CPU, at sizes that say nothing about speed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sp_cli.run_main import cli
from sp_cli.runner import run

Command = Callable[..., Any]
PROFILE = Path(__file__).parents[2] / "profiles" / "smollm2-135m"
SMALL = ("--device", "cpu", "--head-dim", "64", "--heads", "2", "--kv-heads", "1", "--repeat", "1")
NUMBER = {"type": "number"}
TIMES = {
    "type": "object",
    "required": ["median_ms", "p20_ms", "p80_ms", "runs"],
    "additionalProperties": NUMBER,
}
FACTS = {
    "type": "object",
    "required": ["device", "capability", "python", "sparse_prefill", "packages", "timer"],
}
KERNEL_ROW = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "kernel", "detail", "kind", "status", "problem", "mask", "shape", "requested_density",
        "density", "blocks", "check", "times", "host_ms", "tflops", "ratio", "peak_bytes",
        "extra_bytes", "roofline", "environment",
    ],
    "properties": {
        "kernel": {"type": "string"},
        "detail": {"type": "string"},
        "kind": {"enum": ["own", "peer"]},
        "status": {"enum": ["ok", "wrong", "failed", "unavailable"]},
        "problem": {"type": "string"},
        "mask": {"type": "string"},
        "shape": {"type": "object", "required": ["length", "heads", "kv_heads", "head_dim"]},
        "requested_density": NUMBER,
        "density": NUMBER,
        "blocks": {"type": "integer"},
        "check": {"type": ["object", "null"]},
        "times": {"anyOf": [TIMES, {"type": "null"}]},
        "host_ms": {"type": ["number", "null"]},
        "tflops": {"type": ["number", "null"]},
        "ratio": {"type": ["number", "null"]},
        "peak_bytes": {"type": ["integer", "null"]},
        "extra_bytes": {"type": ["integer", "null"]},
        "roofline": {"type": ["object", "null"]},
        "environment": FACTS,
    },
}  # fmt: skip
DOCUMENT = {
    "type": "object",
    "required": ["schema", "schema_version", "command", "rows"],
    "properties": {"rows": {"type": "array", "minItems": 1, "items": {"type": "object"}}},
}


def test_kernel_on_a_cpu_says_so(command: Command) -> None:
    done = command("sp-run", "bench", "kernel", "--length", "512", *SMALL, "--peer", "none")
    assert done.code == 0, done.err
    assert "no GPU" in done.err
    assert "reference" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    # Densities under that of the forced blocks give one and the same mask, which is shown once.
    assert done.out.count("random masks") == 2


def test_kernel_document(command: Command, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    target = tmp_path / "kernel.json"
    done = command(
        *("sp-run", "bench", "kernel", "--length", "300", *SMALL, "--block-size", "64"),
        *("--density", "0.7", "--mask", "pivot", "--mask", "planted", "--roofline", "--mass"),
        *("--json", "-o", target),
    )
    assert done.code == 0, done.err
    document = done.document()
    assert document == json.loads(target.read_text())
    assert document["schema"] == "sp.bench.kernel"
    jsonschema.validate(document, DOCUMENT)
    for row in document["rows"]:
        jsonschema.validate(row, KERNEL_ROW)
    own = [row for row in document["rows"] if row["kind"] == "own"]
    assert [row["mask"] for row in own] == ["pivot", "pivot-even", "planted"]
    assert own[0]["blocks"] == own[1]["blocks"]
    assert all(row["check"]["error"] <= row["check"]["bound"] for row in own)
    assert all(row["roofline"]["operations"] == row["blocks"] * 4 * 64**3 for row in own)
    peers = {row["kernel"]: row for row in document["rows"] if row["kind"] == "peer"}
    assert {row["status"] for row in peers.values()} == {"unavailable"}
    assert document["ceilings"]["matmul_tflops"] > 0
    assert [row["status"] for row in document["mass"]] == ["ok"]
    assert "--roofline" in document["command"]
    assert document["settings"]["density"] == [0.7]
    assert document["settings"]["heads"] == document["rows"][0]["shape"]["heads"]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "kernel.json"
    target.write_text("precious")
    words = ["bench", "kernel", "--length", "512", *SMALL, "--peer", "none", "-o"]
    assert run(cli, [*words, str(target)]) == 2
    assert run(cli, [*words, str(tmp_path / "kernel.txt")]) == 2
    assert target.read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("kernel", "--mask", "banana"), "unknown masks"),
        (("kernel", "--density", "1.5"), "density 1.5"),
        (("kernel", "--peer", "banana"), "unknown peer"),
        (("kernel", "--block-size", "32"), "block size 32"),
        (("kernel", "--heads", "3", "--kv-heads", "2"), "multiple"),
        (("kernel", "--tune"), "needs a CUDA GPU"),
        (("kernel", "--portable"), "triton"),
        (("kernel", "--mask", "recorded:nowhere"), "no profile"),
        (("layer", "--method", "banana"), "banana"),
        (("layer", "--method", "recorded:nowhere"), "no profile"),
        (("layer", "--method", f"recorded:{PROFILE}"), "recorded at block size 64, not 128"),
        (("model", "--hidden", "0"), "hidden"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(cli, ["bench", words[0], "--length", "256", *SMALL, *words[1:]])
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "error: " in each]
    assert code == 2, line
    assert message in line


def test_a_wrong_kernel_ends_with_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sp_runtime.kernels.reference import ReferenceKernels

    right = ReferenceKernels.attention

    def wrong(self: ReferenceKernels, *args: Any, **options: Any) -> Any:
        out, lse = right(self, *args, **options)
        return out * 1.05, lse

    monkeypatch.setattr(ReferenceKernels, "attention", wrong)
    words = ["bench", "kernel", "--length", "512", *SMALL, "--density", "0.9", "--json"]
    assert run(cli, words) == 5
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["status"], row["tflops"], row["times"]) == ("wrong", None, None)


def test_layer_document(command: Command) -> None:
    done = command(
        *("sp-run", "bench", "layer", "--length", "512", "--length", "1024", *SMALL),
        *("--block-size", "64", "--layers", "2", "--json"),
        *("--method", "vertical_slash:min_tokens=1:min_budget=64:gamma=0.8"),
        *("--method", "share:paper:delta=1.01:min_tokens=1", "--method", "plan:min_tokens=1"),
        *("--method", f"recorded:{PROFILE}"),
    )
    assert done.code == 0, done.err
    document = done.document()
    assert document["schema"] == "sp.bench.layer"
    rows = document["rows"]
    assert [row["shape"]["length"] for row in rows] == [512] * 4 + [1024] * 4
    for row in rows:
        assert row["status"] == "ok"
        assert 0 < row["density"] <= 1
        assert row["parts"]["attention_ms"] > 0
        assert 0 < row["overhead"] < 1
        ratio = row["dense"]["times"]["median_ms"] / row["times"]["median_ms"]
        assert row["speedup"] == pytest.approx(ratio)
        assert row["device_parts"] is row["graph_ms"] is None  # there is no device
    assert rows[4]["density"] < 1
    assert rows[5]["parts"]["mass_ms"] > 0  # the paper's rule makes pivots
    recorded = rows[7]
    assert recorded["parts"]["estimate_ms"] == 0  # nothing is estimated
    assert 0 < recorded["density"] < 1
    assert [each["method"] for each in document["crossovers"]] == [
        row["method"] for row in rows[:4]
    ]


def test_model_document(command: Command) -> None:
    done = command(
        *("sp-run", "bench", "model", "--length", "1088", *SMALL, "--block-size", "64", "--json"),
        *("--layers", "2", "--hidden", "64", "--intermediate", "64", "--vocabulary", "64"),
        *("--method", "vertical_slash:min_budget=64:gamma=0.8", "--method", "streaming:window=64"),
        *("--method", f"recorded:{PROFILE}"),
    )
    assert done.code == 0, done.err
    dense, sparse, streaming, recorded = done.document()["rows"]
    assert (dense["method"], dense["density"], dense["speedup"]) == ("dense (sdpa)", 1.0, None)
    assert 0 < sparse["density"] < 1
    assert 0 < streaming["density"] < 1
    assert 0 < recorded["density"] < 1
    assert recorded["estimation"] == 0
    for row in (dense, sparse, streaming, recorded):
        parts = row["parts"]
        assert all(value >= 0 for value in parts.values())
        assert parts["mlp_ms"] > 0
        assert row["ttft"]["runs"] == 1
    assert dense["parts"]["index_ms"] == 0 < sparse["parts"]["index_ms"]
    assert dense["planted_columns"] is not None
