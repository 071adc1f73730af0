"""Hostile profile.json files: how each is made from base.json, and what its refusal must say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Make = Callable[[bytes], bytes]
DEEP = 2000
LONG = "9" * 5000


def field(*path: str | int, to: Any) -> Make:
    """One value replaced."""

    def make(base: bytes) -> bytes:
        document = json.loads(base)
        _parent(document, path)[path[-1]] = to
        return _dump(document)

    return make


def fields(*changes: tuple[tuple[str | int, ...], Any]) -> Make:
    """Several values replaced."""

    def make(base: bytes) -> bytes:
        for path, to in changes:
            base = field(*path, to=to)(base)
        return base

    return make


def without(*path: str | int) -> Make:
    """One value taken out."""

    def make(base: bytes) -> bytes:
        document = json.loads(base)
        del _parent(document, path)[path[-1]]
        return _dump(document)

    return make


def text(old: str, new: str) -> Make:
    """The first occurrence of some text replaced, whatever becomes of the JSON."""

    def make(base: bytes) -> bytes:
        assert old.encode() in base, old
        return base.replace(old.encode(), new.encode(), 1)

    return make


def raw(data: bytes) -> Make:
    return lambda base: data


def around(before: bytes = b"", after: bytes = b"") -> Make:
    return lambda base: before + base + after


def _parent(document: Any, path: tuple[str | int, ...]) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def _dump(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _file(name: str) -> Make:
    return field("files", 0, "name", to=name)


def patterns(*path: str | int, to: Any) -> Make:
    """Valid head patterns with one value replaced."""
    shapes = [
        {"layer": layer, "head": head, "kind": "a_shape", "vertical": 64, "slash": 64, "score": 0.5}
        for layer in (0, 1)
        for head in (0, 1)
    ]
    windows = [
        {"layer": shape["layer"], "head": shape["head"], "alpha": 64, "beta": 0.5, "mass": 0.5}
        for shape in shapes
    ]
    table = {"source": "search", "density": 0.5, "sink": 64, "heads": windows}
    found = {"minference": {"source": "search", "heads": shapes}, "moa": table}
    _parent(found, path)[path[-1]] = to
    return field("head_patterns", to=found)


HEADS = ("plan", "heads")
JSON_CASES: dict[str, tuple[Make, str]] = {
    # Not one JSON document
    "empty": (raw(b""), "not valid JSON"),
    "white-space": (raw(b" \n"), "not valid JSON"),
    "nul-bytes": (raw(b"\0" * 64), "not valid JSON"),
    "not-json": (raw(b"profile"), "not valid JSON"),
    "single-quotes": (raw(b"{'schema': 'sp.profile'}"), "not valid JSON"),
    "trailing-comma": (raw(b'{"schema":"sp.profile",}'), "not valid JSON"),
    "comment": (around(after=b"\n// x"), "not valid JSON"),
    "trailing-text": (around(after=b" x"), "not valid JSON"),
    "two-documents": (lambda base: base + base, "not valid JSON"),
    "truncated": (lambda base: base[: len(base) // 2], "not valid JSON"),
    "truncated-in-key": (lambda base: base[:3], "not valid JSON"),
    "top-level-array": (raw(b"[]"), "document:"),
    "top-level-null": (raw(b"null"), "document:"),
    "top-level-number": (raw(b"1"), "document:"),
    "top-level-string": (raw(b'"sp.profile"'), "document:"),
    "empty-object": (raw(b"{}"), "schema:"),
    "pickle": (raw(b"\x80\x04\x95\x10\0\0\0\0\0\0\0."), "is not UTF-8"),
    "png": (raw(b"\x89PNG\r\n\x1a\n\0\0"), "is not UTF-8"),
    "gzip": (raw(b"\x1f\x8b\x08\0\0\0\0\0\0\x03"), "is not UTF-8"),
    "utf16": (lambda base: base.decode().encode("utf-16"), "is not UTF-8"),
    "utf16-without-mark": (lambda base: base.decode().encode("utf-16-le"), "not valid JSON"),
    "byte-order-mark": (around(before=b"\xef\xbb\xbf"), "byte order mark"),
    "not-utf8": (lambda base: base.replace(b"example", b"ex\xe4mple"), "is not UTF-8"),
    "overlong-utf8": (lambda base: base.replace(b"example", b"\xc0\xafx"), "is not UTF-8"),
    # Nesting and size
    "deep-arrays": (raw(b"[" * 4000 + b"]" * 4000), "nested deeper"),
    "deep-objects": (raw(b'{"":' * DEEP + b"1" + b"}" * DEEP), "nested deeper"),
    "deep-mixed": (raw(b'[{"a":' * 20 + b"[]" + b"}]" * 20), "nested deeper"),
    "deep-unclosed": (raw(b"[" * 4000), "nested deeper"),
    "deep-in-unknown-field": (
        text('"schema":', '"x":' + "[" * 33 + "]" * 33 + ',"schema":'),
        "nested deeper",
    ),
    "deep-in-string": (field("model_name", to="[" * 100), "checksum:"),
    "string-long": (field("model_name", to="a" * 70_000), "model_name:"),
    "key-long": (text('"schema":', f'"{"k" * 70_000}":1,"schema":'), "document:"),
    # Keys
    "duplicate-key": (text('"schema":', '"schema":"sp.profile","schema":'), "key 'schema'"),
    "duplicate-nested-key": (text('"seed":1', '"seed":1,"seed":1'), "duplicate key 'seed'"),
    "duplicate-escaped-key": (text('"seed":1', '"seed":1,"\\u0073eed":2'), "key 'seed'"),
    "unknown-field": (field("colour", to="blue"), "document:"),
    "unknown-dunder-field": (field("model", "__class__", to="x"), "model:"),
    "unknown-field-in-plan": (field(*HEADS, 0, "code", to="print(1)"), "plan.heads[0]:"),
    "field-missing": (without("model", "head_dim"), "model.head_dim:"),
    "checksum-missing": (without("checksum"), "checksum:"),
    "schema-missing": (without("schema"), "schema:"),
    # Numbers
    "nan": (text('"gamma":0.9', '"gamma":NaN'), "NaN is not JSON"),
    "infinity": (text('"gamma":0.9', '"gamma":Infinity'), "Infinity is not JSON"),
    "minus-infinity": (text('"gamma":0.9', '"gamma":-Infinity'), "-Infinity is not JSON"),
    "float-overflow": (text('"gamma":0.9', '"gamma":1e999'), "too large"),
    "float-long": (text('"gamma":0.9', f'"gamma":0.{LONG}'), "too large or too long"),
    "integer-as-gamma-huge": (text('"gamma":0.9', f'"gamma":{LONG}'), "too large"),
    "seed-over-53-bits": (field("calibration", "seed", to=1 << 53), "too large"),
    "seed-exponent": (text('"seed":1', '"seed":1e3'), "calibration.seed:"),
    "hexadecimal": (text('"gamma":0.9', '"gamma":0x1'), "not valid JSON"),
    "plus-sign": (text('"gamma":0.9', '"gamma":+1'), "not valid JSON"),
    "leading-zero": (text('"seed":1', '"seed":01'), "not valid JSON"),
    "gamma-zero": (text('"gamma":0.9', '"gamma":0'), "calibration.gamma:"),
    "gamma-subnormal-negative": (text('"gamma":0.9', '"gamma":-5e-324'), "calibration.gamma:"),
    "tokens-negative": (
        field("calibration", "prompts", 0, "tokens", to=-1),
        "calibration.prompts[0].tokens:",
    ),
    "tokens-huge": (
        field("calibration", "prompts", 0, "tokens", to=(1 << 53) - 1),
        "calibration.prompts[0].tokens:",
    ),
    # Types
    "bool-as-integer": (field("model", "num_layers", to=True), "model.num_layers:"),
    "integer-as-bool": (field("clusters", 0, "enabled", to=1), "clusters[0].enabled:"),
    "string-as-number": (field("calibration", "gamma", to="0.9"), "calibration.gamma:"),
    "float-as-integer": (field("model", "num_layers", to=2.0), "model.num_layers:"),
    "null-as-string": (field("model_name", to=None), "model_name:"),
    "model-list": (field("model", to=[]), "model:"),
    "clusters-null": (field("clusters", to=None), "clusters:"),
    "clusters-object": (field("clusters", to={}), "clusters:"),
    "lender-object": (field(*HEADS, 2, "lender", to={"layer": 0}), "plan.heads[2].lender:"),
    "lender-floats": (field(*HEADS, 2, "lender", to=[0.0, 0]), "plan.heads[2].lender[0]:"),
    "lender-triple": (field(*HEADS, 2, "lender", to=[0, 0, 0]), "plan.heads[2].lender:"),
    # Text
    "control-character": (text("example/tiny", "a\nb"), "not valid JSON"),
    "terminal-escape": (field("model_name", to="\x1b[2J"), "model_name:"),
    "bidi-override": (field("model_name", to="a\u202eb"), "model_name:"),
    "lone-surrogate": (field("model_name", to="\ud800"), "model_name:"),
    "sha256-short": (
        field("calibration", "prompts", 0, "sha256", to="ab"),
        "calibration.prompts[0].sha256:",
    ),
    "sha256-unicode-digits": (
        field("calibration", "prompts", 0, "sha256", to="\u0661" * 64),
        "calibration.prompts[0].sha256:",
    ),
    # Versions
    "schema-other": (field("schema", to="sp.profiles"), "schema:"),
    "schema-object": (field("schema", to={}), "schema:"),
    "major-newer": (field("schema_version", to="2.0"), "schema_version:"),
    "major-older": (field("schema_version", to="0.9"), "schema_version:"),
    "major-huge": (field("schema_version", to="99999999.0"), "schema_version:"),
    "version-number": (field("schema_version", to=1.0), "schema_version:"),
    "version-long": (field("schema_version", to="1." + "9" * 400), "schema_version:"),
    "version-unicode-digits": (field("schema_version", to="\u0661.0"), "schema_version:"),
    # Model and calibration
    "layers-zero": (
        fields((("model", "num_layers"), 0), (("model", "layer_types"), [])),
        "model.num_layers:",
    ),
    "layers-many": (field("model", "num_layers", to=10**12), "model.num_layers:"),
    "heads-many": (field("model", "num_heads", to=10**12), "model.num_heads:"),
    "layer-types-short": (field("model", "layer_types", to=["full_attention"]), "layer_types:"),
    "layer-type-unknown": (field("model", "layer_types", 0, to="linear"), "layer_types[0]:"),
    "block-size-odd": (field("calibration", "block_size", to=65), "calibration.block_size:"),
    "dtype-unknown": (field("calibration", "dtype", to="int8"), "calibration.dtype:"),
    "version-twice": (
        field("calibration", "versions", to=[["torch", "1"], ["torch", "2"]]),
        "calibration.versions[1][0]:",
    ),
    # Clusters
    "anchor-not-a-member": (field("clusters", 0, "anchor", to=[0, 1]), "clusters[0].anchor:"),
    "cluster-empty": (field("clusters", 0, "members", to=[]), "clusters[0].members:"),
    "cluster-id-negative": (field("clusters", 0, "id", to=-1), "clusters[0].id:"),
    "cluster-id-twice": (field("clusters", 1, "id", to=0), "clusters[1].id:"),
    "members-duplicate": (
        field("clusters", 0, "members", to=[[0, 0], [0, 0]]),
        "clusters[0].members[1]:",
    ),
    "members-unsorted": (
        field("clusters", 0, "members", to=[[1, 0], [0, 0]]),
        "clusters[0].members[1]:",
    ),
    "members-in-two-clusters": (
        field("clusters", 1, "members", to=[[0, 0]]),
        "clusters[1].members[0]:",
    ),
    "head-of-sliding-layer": (
        field("model", "layer_types", 0, to="sliding_attention"),
        "clusters[0].members[0]:",
    ),
    # Plan
    "assignment-unknown": (field(*HEADS, 3, "assignment", to="guess"), "heads[3].assignment:"),
    "gamma-above-one": (field(*HEADS, 3, "gamma", to=1.001), "plan.heads[3].gamma:"),
    "head-out-of-range": (field(*HEADS, 3, "head", to=2), "plan.heads[3]:"),
    "layer-out-of-range": (field(*HEADS, 3, "layer", to=2), "plan.heads[3]:"),
    "layer-negative": (field(*HEADS, 0, "layer", to=-1), "plan.heads[0]:"),
    "head-without-plan": (without(*HEADS, 3), "plan.heads:"),
    "plan-unsorted": (
        fields(((*HEADS, 0, "head"), 1), ((*HEADS, 1, "head"), 0)),
        "plan.heads[1]:",
    ),
    "head-planned-twice": (field(*HEADS, 1, "head", to=0), "plan.heads[1]:"),
    "lender-itself": (field(*HEADS, 2, "lender", to=[1, 0]), "plan.heads[2].lender:"),
    "lender-same-layer": (field(*HEADS, 2, "lender", to=[1, 1]), "plan.heads[2].lender:"),
    "lender-out-of-range": (field(*HEADS, 2, "lender", to=[9, 9]), "plan.heads[2].lender:"),
    "lender-that-lends-nothing": (
        field(*HEADS, 0, "assignment", to="vertical_slash"),
        "plan.heads[2].lender:",
    ),
    "lender-of-dense": (field(*HEADS, 0, "lender", to=[0, 1]), "plan.heads[0].lender:"),
    "lender-cycle": (
        fields(((*HEADS, 0, "assignment"), "borrow"), ((*HEADS, 0, "lender"), [1, 0])),
        "plan.heads[0].lender:",
    ),
    "stride-zero": (field(*HEADS, 1, "stride", to=0), "plan.heads[1].stride:"),
    "window-on-dense": (field(*HEADS, 0, "window", to=64), "plan.heads[0].window:"),
    # Head patterns
    "patterns-list": (field("head_patterns", to=[]), "head_patterns:"),
    "patterns-empty": (field("head_patterns", to={}), "head_patterns.minference:"),
    "pattern-kind-unknown": (
        patterns("minference", "heads", 0, "kind", to="guess"),
        "head_patterns.minference.heads[0].kind:",
    ),
    "pattern-head-twice": (
        patterns("minference", "heads", 1, "head", to=0),
        "head_patterns.minference.heads[1]:",
    ),
    "pattern-head-missing": (
        patterns("moa", "heads", to=[]),
        "head_patterns.moa.heads:",
    ),
    "pattern-head-out-of-range": (
        patterns("moa", "heads", 3, "layer", to=7),
        "head_patterns.moa.heads[3]:",
    ),
    "pattern-window-huge": (
        patterns("moa", "heads", 0, "alpha", to=1 << 40),
        "head_patterns.moa.heads[0].alpha:",
    ),
    "pattern-window-empty": (
        patterns("moa", "heads", 0, to={"layer": 0, "head": 0, "alpha": 0, "beta": 0, "mass": 0}),
        "head_patterns.moa.heads[0]:",
    ),
    "pattern-slash-zero": (
        patterns("minference", "heads", 0, "slash", to=0),
        "head_patterns.minference.heads[0].slash:",
    ),
    "pattern-density-zero": (patterns("moa", "density", to=0), "head_patterns.moa.density:"),
    # Operating points
    "points-empty": (field("points", to=[]), "points:"),
    "points-without-default": (field("points", 0, "name", to="other"), "points:"),
    "point-twice": (
        lambda base: field("points", to=json.loads(base)["points"] * 2)(base),
        "points[1].name:",
    ),
    "point-method-unknown": (
        field("points", 0, "point", "method", to="guess"),
        "points[0].point.method:",
    ),
    "point-budget-crossed": (field("points", 0, "point", "max_budget", to=1), "points[0].point:"),
    "point-name-path": (field("points", 0, "name", to="../default"), "points[0].name:"),
    # Files
    "file-name-parent": (_file("../heads.parquet"), "files[0].name:"),
    "file-name-absolute": (_file("/etc/passwd"), "files[0].name:"),
    "file-name-backslash": (_file("..\\heads.parquet"), "files[0].name:"),
    "file-name-drive": (_file("C:heads.parquet"), "files[0].name:"),
    "file-name-dots": (_file(".."), "files[0].name:"),
    "file-name-hidden": (_file(".profile"), "files[0].name:"),
    "file-name-empty": (_file(""), "files[0].name:"),
    "file-name-itself": (_file("profile.json"), "files[0].name:"),
    "file-name-long": (_file("a" * 129), "files[0].name:"),
    "file-name-nul": (_file("heads\0"), "files[0].name:"),
    "file-name-newline": (_file("heads.parquet\n"), "files[0].name:"),
    "file-twice": (_file("similarity.parquet"), "files[1].name:"),
    "file-bytes-negative": (field("files", 0, "bytes", to=-1), "files[0].bytes:"),
    # Valid, and not what was written
    "plan-altered": (field(*HEADS, 3, "gamma", to=0.8), "profile_id:"),
    "profile-id-altered": (field("profile_id", to="0" * 64), "profile_id:"),
    "evidence-altered": (field("clusters", 0, "evidence", "recall_mean", to=1.0), "checksum:"),
    "file-hash-altered": (field("files", 0, "sha256", to="0" * 64), "checksum:"),
}
