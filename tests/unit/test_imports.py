"""Published files: what they become, and everything that is refused in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sp_profile.artefact import write_profile
from sp_profile.imports import import_file
from sp_runtime.errors import (
    CorruptArtefactError,
    ProfileMismatchError,
    UnsupportedError,
    UsageError,
)
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.registry import make_pattern_factory
from sp_runtime.profile import HeadRef, load_profile


@pytest.fixture(scope="module")
def model(examples) -> ModelFingerprint:
    """4 layers of 4 heads; layer 1 is a sliding one."""
    return examples.make_profile().model


def clusters(**changes: Any) -> dict[str, Any]:
    return {
        "clusters": {"10": [[2, 3], [0, 1]], "2": [[3, 0]], "-1": [[0, 0]]},
        "shared_clusters": ["10"],
        **changes,
    }


def shapes() -> list[dict[str, list[Any]]]:
    kinds = (
        ["stream_llm", 100, 800, 0.5],
        ["vertical_and_slash", 1000, 6096, 1],
        ["block_sparse", 8, 1, 0.25],
        ["vertical_and_slash", 30, 800, 0.9645951390266418],
    )
    return [{str(head): list(kinds[head]) for head in range(4)} for _ in range(4)]


@pytest.fixture
def read(tmp_path: Path, model: ModelFingerprint):
    def read(document: object, **options: Any):
        file = tmp_path / "published.json"
        file.write_text(document if isinstance(document, str) else json.dumps(document))
        return import_file(file, model=model, model_name="tiny", **options)

    return read


def test_shareprefill_becomes_clusters(read, tmp_path: Path) -> None:
    imported = read(clusters())
    assert imported.kind == "shareprefill"
    assert imported.found == (
        "2 clusters hold 3 of 12 heads",
        "1 enabled for sharing, with 2 heads",
    )
    assert any("rule plan is refused" in line for line in imported.lacks)
    profile = imported.profile
    assert [(c.id, c.members, c.enabled) for c in profile.clusters] == [
        (2, (HeadRef(3, 0),), False),
        (10, (HeadRef(0, 1), HeadRef(2, 3)), True),
    ]
    assert profile.point() == OperatingPoint(rule="release", tau=0.5)
    published = write_profile(tmp_path / "profile", profile)
    loaded = load_profile(tmp_path / "profile")
    assert loaded == published
    assert loaded.plan.heads == loaded.files == ()
    with pytest.raises(UsageError, match="no plan"):
        make_pattern_factory(OperatingPoint(rule="plan"), loaded)
    for rule in ("paper", "release"):
        make_pattern_factory(OperatingPoint(rule=rule), loaded, block_size=128)


def test_minference_becomes_head_patterns(read, tmp_path: Path) -> None:
    imported = read(shapes(), block_size=64)
    assert imported.kind == "minference"
    assert imported.found == (
        "3 heads a_shape (100, 800)",
        "3 heads block_sparse (6400, 0)",
        "3 heads vertical_slash (1000, 6096)",
        "3 heads vertical_slash (30, 800)",
    )
    write_profile(tmp_path / "profile", imported.profile)
    loaded = load_profile(tmp_path / "profile")
    table = loaded.head_patterns.minference
    assert [head.ref for head in table.heads[:5]] == [(0, 0), (0, 1), (0, 2), (0, 3), (2, 0)]
    first = [(h.kind, h.vertical, h.slash, h.score) for h in table.heads[:4]]
    assert first == [
        ("a_shape", 100, 800, 0.5),
        ("vertical_slash", 1000, 6096, 1.0),
        ("block_sparse", 6400, 0, 0.25),
        ("vertical_slash", 30, 800, 0.9645951390266418),
    ]
    assert loaded.calibration.block_size == 64
    assert loaded.point().method == "minference"
    make_pattern_factory(loaded.point(), loaded)


def test_the_kind_is_told_by_the_content_or_demanded(read) -> None:
    assert read(clusters(), kind="shareprefill").kind == "shareprefill"
    with pytest.raises(UsageError, match="is an object, so it is no minference file"):
        read(clusters(), kind="minference")
    with pytest.raises(UsageError, match="is no object, so it is no shareprefill file"):
        read(shapes(), kind="shareprefill")


def test_a_missing_file_is_a_usage_error(model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        import_file(tmp_path / "absent.json", model=model, model_name="tiny")


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ("{", CorruptArtefactError, "not valid JSON"),
        ('{"clusters": {}, "clusters": {}}', CorruptArtefactError, "duplicate key"),
        ('{"clusters": NaN, "shared_clusters": []}', CorruptArtefactError, "NaN is not JSON"),
        ("[" * 50, CorruptArtefactError, "not valid JSON"),
        ({}, CorruptArtefactError, "expected clusters and shared_clusters"),
        (clusters(more=1), CorruptArtefactError, "nothing else"),
        (clusters(clusters=[]), CorruptArtefactError, "clusters: expected an object"),
        (clusters(clusters={"x": [[0, 0]]}), CorruptArtefactError, "'x' is no number"),
        (clusters(clusters={"01": [[0, 0]]}), CorruptArtefactError, "'01' is no number"),
        (clusters(clusters={"10": []}), CorruptArtefactError, "expected a list of heads"),
        (clusters(clusters={"10": [[0]]}), CorruptArtefactError, r"expected \[layer, head\]"),
        (clusters(clusters={"10": [[0, True]]}), CorruptArtefactError, r"found \[0, True\]"),
        (clusters(clusters={"10": [[0, 1.0]]}), CorruptArtefactError, r"found \[0, 1.0\]"),
        (clusters(clusters={"10": [[0, -1]]}), CorruptArtefactError, r"found \[0, -1\]"),
        (
            clusters(clusters={"10": [[0, 0], [0, 0]]}),
            CorruptArtefactError,
            "is in cluster 10 as well",
        ),
        (
            clusters(clusters={"10": [[0, 0]], "3": [[0, 0]]}),
            CorruptArtefactError,
            "is in cluster 10 as well",
        ),
        (clusters(clusters={"10": [[0, 4]]}), ProfileMismatchError, "4 layers of 4 heads"),
        (clusters(clusters={"10": [[4, 0]]}), ProfileMismatchError, "no full-attention head"),
        (clusters(clusters={"10": [[1, 0]]}), ProfileMismatchError, "no full-attention head"),
        (clusters(shared_clusters=["ten"]), CorruptArtefactError, "shared_clusters"),
        (clusters(shared_clusters=[10, "10"]), CorruptArtefactError, "a number appears twice"),
        (clusters(shared_clusters={}), CorruptArtefactError, "expected numbers"),
        (clusters(shared_clusters=[11]), CorruptArtefactError, "there is no cluster 11"),
        (clusters(shared_clusters=[-1]), CorruptArtefactError, "expected numbers"),
        (clusters(shared_clusters=[10, 10]), CorruptArtefactError, "a number appears twice"),
    ],
)
def test_shareprefill_refusals(read, document, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        read(document)
    assert "published.json" in caught.value.message


def changed(layer: int, head: str, entry: object) -> list[dict[str, list[Any]]]:
    document = shapes()
    document[layer][head] = entry
    return document


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ("3", CorruptArtefactError, "expected a list of layers"),
        (shapes()[:3], ProfileMismatchError, "has 3 layers, the model 4"),
        ([[], {}, {}, {}], CorruptArtefactError, "layer 0: expected heads"),
        (changed(2, "4", ["stream_llm", 1, 1, 1]), ProfileMismatchError, "layer 2 has 5 heads"),
        (
            [{k: v for k, v in layer.items() if k != "1"} for layer in shapes()],
            ProfileMismatchError,
            "layer 0 has 3 heads, up to 3",
        ),
        (changed(0, "03", []), CorruptArtefactError, "'03' is no number"),
        (changed(3, "1", []), CorruptArtefactError, "layer 3, head 1: expected"),
        (changed(3, "1", ["stream_llm", 1, 1]), CorruptArtefactError, r"\[type, v, s, score\]"),
        (changed(3, "1", [1, 1, 1, 1]), CorruptArtefactError, r"\[type, v, s, score\]"),
        (changed(3, "1", ["dense", 1, 1, 1]), CorruptArtefactError, "unknown pattern 'dense'"),
        (changed(3, "1", ["stream_llm", 0, 1, 1]), CorruptArtefactError, "no token counts"),
        (changed(3, "1", ["stream_llm", 1.0, 1, 1]), CorruptArtefactError, "no token counts"),
        (changed(3, "1", ["stream_llm", True, 1, 1]), CorruptArtefactError, "no token counts"),
        (changed(3, "1", ["stream_llm", 1, 1 << 40, 1]), CorruptArtefactError, "no token counts"),
        (changed(3, "1", ["stream_llm", 1, 1, "1"]), CorruptArtefactError, "score '1'"),
        (changed(3, "1", ["stream_llm", 1, 1, -0.5]), CorruptArtefactError, "score -0.5"),
        (changed(3, "1", ["stream_llm", 1, 1, True]), CorruptArtefactError, "score True"),
        (
            changed(3, "1", ["flex_vertical_and_slash", [0.9, 4096], [0.9, 4096], 0.0]),
            UnsupportedError,
            "is FlexPrefill, which has no fixed sizes",
        ),
    ],
)
def test_minference_refusals(read, document, error, message) -> None:
    with pytest.raises(error, match=message) as caught:
        read(document)
    assert "published.json" in caught.value.message
