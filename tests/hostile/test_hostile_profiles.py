"""Hostile profiles: a corpus of named files, size bombs, path tricks, damage at every byte."""

import dataclasses
import json
import os
import subprocess
import sys
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

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected.json").read_text("utf-8"))
RELAXED = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


# -- profile.json


def test_corpus_is_complete():
    assert {path.stem for path in (HERE / "corpus").iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_corpus_file_is_refused_by_name(name):
    path = HERE / "corpus" / f"{name}.json"
    started = time.perf_counter()
    with pytest.raises(CorruptArtefactError) as caught:
        parse_profile(path.read_bytes(), str(path))
    assert time.perf_counter() - started < 2
    assert caught.value.message.startswith(f"{path}: ")
    assert EXPECTED[name] in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 300
    assert caught.value.message.isprintable()


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


CHILD = """
import dataclasses, hashlib, random, sys
from pathlib import Path
from sp_profile.artefact import read_heads, read_masks, read_similarity
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import load_profile
folder, name, seed, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
profile = load_profile(folder)
original = (folder / name).read_bytes()
scratch = Path(sys.argv[5])
columns = lambda found: (found.mean, found.min, found.spread, found.core_mean)
reader = {
    "heads.parquet": lambda *at: read_heads(*at).to_pylist(),
    "similarity.parquet": lambda *at: [column.tolist() for column in columns(read_similarity(*at))],
    "masks.parquet": lambda *at: list(read_masks(*at)),
}[name]
draw = random.Random(seed)
expected = reader(folder, profile)
refused = altered = 0
for _ in range(count):
    content = bytearray(original)
    for _ in range(draw.randint(1, 3)):
        # Half of the damage in the footer, where the structure is.
        low = 0 if draw.random() < 0.5 else len(content) * 3 // 4
        content[draw.randrange(low, len(content))] = draw.randrange(256)
    (scratch / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    files = tuple(
        dataclasses.replace(file, sha256=digest) if file.name == name else file
        for file in profile.files
    )
    try:
        found = reader(scratch, dataclasses.replace(profile, files=files))
        altered += found != expected
    except CorruptArtefactError:
        refused += 1
print(refused, altered)
"""


@pytest.mark.parametrize("name", sorted(READERS))
def test_damage_behind_a_corrected_hash_is_a_typed_error(published, tmp_path, name):
    # A child process, so that a crash of the parser would be seen as one.
    command = [sys.executable, "-c", CHILD, str(published[0]), name, "7", "300", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, altered = map(int, done.stdout.split())
    assert refused > 200
    assert altered == 0  # what passes is what was written: the damage hit unused bytes
