"""Hostile profiles beside the corpus: size bombs, path tricks, damage at every byte."""

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp_profile.artefact import (
    read_heads,
    read_masks,
    read_similarity,
    verify_files,
    write_profile,
)
from sp_runtime import strict_json
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.profile import FileRecord, load_profile, parse_profile, profile_to_json

RELAXED = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


# -- profile.json


def test_every_truncation_is_refused(examples):
    data = profile_to_json(examples.make_profile()).encode().rstrip(b"\n")
    for length in range(len(data)):
        with pytest.raises(CorruptArtefactError):
            parse_profile(data[:length])
    parse_profile(data)


@settings(RELAXED, max_examples=200)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_harmless(examples, data):
    profile = examples.make_profile()
    content = bytearray(profile_to_json(profile).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse_profile(bytes(content))
    except CorruptArtefactError:
        return
    assert found == profile


@settings(RELAXED, max_examples=200)
@given(content=st.binary(max_size=200) | st.text('[]{}",:\\0 tfn', max_size=60).map(str.encode))
def test_arbitrary_bytes_are_refused(content):
    with pytest.raises(CorruptArtefactError):
        parse_profile(content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(RELAXED, max_examples=100)
@given(data=st.data(), value=json_values)
def test_replaced_values_are_refused_or_equal(examples, data, value):
    profile = examples.make_profile()
    document = json.loads(profile_to_json(profile))
    parent, key = None, None
    node = document
    while isinstance(node, (dict, list)) and node and (parent is None or data.draw(st.booleans())):
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, data.draw(st.sampled_from(list(keys)))
        node = node[key]
    parent[key] = value
    try:
        found = parse_profile(json.dumps(document).encode("utf-8"))
    except CorruptArtefactError:
        return
    assert found == profile


@pytest.mark.parametrize(
    "unit",
    ["[],", '"",', '"\\\\",', "{},", '{"a":[', "1,", "9", "\\", '"', '"a":1,', " ", "]"],
    ids=lambda unit: f"many {unit}",
)
def test_large_documents_are_refused_quickly(unit):
    data = ("[" + unit * ((16 << 20) // len(unit))).encode()
    started = time.perf_counter()
    with pytest.raises(CorruptArtefactError):
        strict_json.parse(data, "large")
    assert time.perf_counter() - started < 10


def test_brackets_inside_strings_are_no_depth():
    text = json.dumps(["[" * 100, '\\"[{' * 50, "\\" * 9, "]"])
    assert strict_json.parse(text.encode(), "x") == json.loads(text)


def test_depth_limit_is_exact():
    def nested(depth):
        return b"[" * depth + b"]" * depth

    strict_json.parse(nested(strict_json.MAX_DEPTH), "x")
    with pytest.raises(CorruptArtefactError, match="nested deeper than 32"):
        strict_json.parse(nested(strict_json.MAX_DEPTH + 1), "x")


# -- paths


def test_oversized_file_is_refused_unread(tmp_path):
    with open(tmp_path / "profile.json", "wb") as file:
        file.truncate(strict_json.MAX_BYTES + 1)
    with pytest.raises(CorruptArtefactError, match="larger than"):
        load_profile(tmp_path)


def test_cycle_of_symlinks_is_named(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(CorruptArtefactError, match="cycle of symlinks"):
        load_profile(tmp_path / "a")
    (tmp_path / "profile.json").symlink_to(tmp_path / "profile.json")
    with pytest.raises(CorruptArtefactError, match="cycle of symlinks"):
        load_profile(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path, kind):
    path = tmp_path / "profile.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CorruptArtefactError, match="not a regular file"):
        load_profile(tmp_path)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000], ids=["nul", "too long"])
def test_impossible_paths_are_usage_errors(path):
    with pytest.raises(UsageError):
        load_profile(path)


# -- Parquet


@pytest.fixture(scope="module")
def published(examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "profile"
    profile = examples.make_profile()
    return folder, write_profile(
        folder,
        profile,
        heads=examples.head_rows(profile),
        similarity=examples.similarity(profile),
        masks=examples.mask_rows(profile),
    )


def copied(published, tmp_path, name, content):
    """A copy of the published folder in which one file has other content."""
    folder, profile = published
    for record in profile.files:
        (tmp_path / record.name).unlink(missing_ok=True)
        os.link(folder / record.name, tmp_path / record.name)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(content)
    return tmp_path, profile


READERS = {
    "heads.parquet": read_heads,
    "similarity.parquet": read_similarity,
    "masks.parquet": lambda folder, profile: list(read_masks(folder, profile)),
}


@pytest.mark.parametrize("name", sorted(READERS))
def test_flipped_table_bytes_are_refused_before_they_are_parsed(published, tmp_path, name):
    original = (published[0] / name).read_bytes()
    for place in range(0, len(original), max(1, len(original) // 200)):
        content = bytearray(original)
        content[place] ^= 1 << (place % 8)
        folder, profile = copied(published, tmp_path, name, bytes(content))
        with pytest.raises(CorruptArtefactError, match=f"{name}: sha256"):
            READERS[name](folder, profile)
        with pytest.raises(CorruptArtefactError, match=name):
            verify_files(folder, profile)


@pytest.mark.parametrize("name", sorted(READERS))
@pytest.mark.parametrize("how", ["parent", "absolute", "chain", "folder"])
def test_symlinks_out_of_the_folder_are_refused(published, tmp_path, name, how):
    (tmp_path / "profile").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    folder, profile = copied(published, tmp_path / "profile", name, b"")
    path = folder / name
    path.unlink()
    (outside / name).write_bytes((published[0] / name).read_bytes())
    if how == "parent":
        path.symlink_to(Path("..") / "outside" / name)
    elif how == "absolute":
        path.symlink_to(outside / name)
    elif how == "chain":
        (folder / "inner").symlink_to(outside / name)
        path.symlink_to("inner")
    else:
        (folder / "linked").symlink_to(outside)
        path.symlink_to(Path("linked") / name)
    with pytest.raises(CorruptArtefactError, match="leads out of the profile's folder"):
        READERS[name](folder, profile)
    with pytest.raises(CorruptArtefactError, match="leads out of the profile's folder"):
        verify_files(folder, profile)


def test_symlinks_inside_the_folder_are_followed(published, tmp_path):
    folder, profile = copied(published, tmp_path, "heads.parquet", b"")
    (folder / "heads.parquet").unlink()
    (folder / "other").write_bytes((published[0] / "heads.parquet").read_bytes())
    (folder / "heads.parquet").symlink_to("other")
    assert read_heads(folder, profile).num_rows == 12


@pytest.mark.parametrize("below", ["", "profiles/tiny"])
def test_the_cache_of_a_hub_is_read(published, tmp_path, below):
    repository = tmp_path / "models--example--tiny"
    folder = repository / "snapshots" / ("0" * 40) / below
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in published[0].iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (folder / file.name).symlink_to(os.path.relpath(blob, folder))
    assert read_heads(folder, load_profile(folder)).num_rows == 12
    # Not so a link to anywhere else in such a cache.
    elsewhere = repository / "refs"
    elsewhere.mkdir()
    (elsewhere / "heads.parquet").write_bytes((published[0] / "heads.parquet").read_bytes())
    (folder / "heads.parquet").unlink()
    (folder / "heads.parquet").symlink_to(elsewhere / "heads.parquet")
    with pytest.raises(CorruptArtefactError, match="leads out of the profile's folder"):
        read_heads(folder, load_profile(folder))


@pytest.mark.parametrize("name", sorted(READERS))
@pytest.mark.parametrize("change", ["truncated", "empty", "longer", "missing", "fifo", "cycle"])
def test_wrong_table_files_are_refused(published, tmp_path, name, change):
    original = (published[0] / name).read_bytes()
    folder, profile = copied(published, tmp_path, name, original)
    path = folder / name
    path.unlink()
    if change == "fifo":
        os.mkfifo(path)
    elif change == "cycle":
        path.symlink_to(path)
    elif change != "missing":
        content = {"truncated": original[:-1], "empty": b"", "longer": original + b"\0"}[change]
        path.write_bytes(content)
    with pytest.raises(CorruptArtefactError, match=name):
        READERS[name](folder, profile)
    with pytest.raises(CorruptArtefactError, match=name):
        verify_files(folder, profile)


def test_table_larger_than_its_rows_need_is_refused_unread(published, tmp_path):
    folder, profile = copied(published, tmp_path, "heads.parquet", b"")
    with open(folder / "heads.parquet", "wb") as file:
        file.truncate(8 << 30)
    record = FileRecord(name="heads.parquet", sha256="0" * 64, bytes=8 << 30)
    profile = dataclasses.replace(profile, files=(record,))
    with pytest.raises(CorruptArtefactError, match="more than its"):
        read_heads(folder, profile)
