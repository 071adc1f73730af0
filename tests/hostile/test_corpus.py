"""The corpus of named hostile files: each is refused, by name, with bounded time and memory."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sp_profile.artefact import read_heads, read_masks, read_similarity, verify_files
from sp_profile.shard import read_shard
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import Profile, load_profile, parse_profile

HERE = Path(__file__).parent
BASE = HERE / "base"
SECONDS = 2.0
READERS = {
    "heads.parquet": read_heads,
    "similarity.parquet": read_similarity,
    "masks.parquet": lambda folder, profile: list(read_masks(folder, profile)),
}


def cases_of(module: str, table: str) -> list[str]:
    spec = importlib.util.spec_from_file_location(module, HERE / f"{module}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    spec.loader.exec_module(loaded)
    return sorted(getattr(loaded, table))


PROFILES = cases_of("json_cases", "JSON_CASES")
TABLES = cases_of("table_cases", "TABLE_CASES")
SHARDS = cases_of("shard_cases", "SHARD_CASES")


def refusal(read, name: str) -> str:
    """The message of the typed error that `read` raises in time."""
    started = time.perf_counter()
    with pytest.raises(CorruptArtefactError) as caught:
        read()
    assert time.perf_counter() - started < SECONDS
    message = caught.value.message
    assert message.startswith(name)
    assert len(message) < len(name) + 300
    assert message.isprintable()
    return message


def test_every_case_is_a_file_and_every_file_a_case(corpus):
    for kind, names in corpus.cases().items():
        found = {path.name for path in corpus.path_of(kind, "x").parent.iterdir()}
        assert found == {corpus.path_of(kind, name).name for name in names}
    assert len(PROFILES) + len(TABLES) + len(SHARDS) >= 260


def test_the_valid_files_are_valid():
    assert load_profile(BASE / "profile").plan.heads
    assert parse_profile((BASE / "minimal.json").read_bytes()).plan.heads
    assert read_shard(BASE / "shard.npz").num_heads == 6
    profile = load_profile(BASE / "profile")
    verify_files(BASE / "profile", profile)
    for read in READERS.values():
        read(BASE / "profile", profile)


@pytest.mark.parametrize("name", PROFILES)
def test_profile_is_refused(corpus, name):
    path = corpus.path_of("profiles", name)
    data = path.read_bytes()
    assert data == corpus.make("profiles", name)
    expected = corpus.load("json_cases").JSON_CASES[name][1]
    assert expected in refusal(lambda: parse_profile(data, str(path)), f"{path}: ")


def with_table(folder: Path, case_path: Path, table: str) -> Profile:
    """The valid profile with one table replaced, and its hash corrected."""
    for file in (BASE / "profile").iterdir():
        shutil.copyfile(file, folder / file.name)
    data = case_path.read_bytes()
    (folder / table).write_bytes(data)
    profile = load_profile(folder)
    digest = hashlib.sha256(data).hexdigest()
    files = tuple(
        dataclasses.replace(file, sha256=digest, bytes=len(data)) if file.name == table else file
        for file in profile.files
    )
    return dataclasses.replace(profile, files=files)


@pytest.mark.parametrize("name", TABLES)
def test_table_is_refused(corpus, name, tmp_path):
    case = corpus.load("table_cases").TABLE_CASES[name]
    profile = with_table(tmp_path, corpus.path_of("tables", name), case.table)
    message = refusal(lambda: READERS[case.table](tmp_path, profile), case.table)
    assert case.match in message
    # With the hash as it was published, no byte of it reaches the parser.
    with pytest.raises(CorruptArtefactError, match=r"sha256|bytes, "):
        READERS[case.table](tmp_path, load_profile(tmp_path))


@pytest.mark.parametrize("name", SHARDS)
def test_shard_is_refused(corpus, name):
    path = corpus.path_of("shards", name)
    expected = corpus.load("shard_cases").SHARD_CASES[name][1]
    assert expected in refusal(lambda: read_shard(path), f"{path}: ")


CHILD = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_corpus, make_corpus
from sp_profile.artefact import read_heads
from sp_profile.shard import read_shard
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import load_profile, parse_profile
scratch, room = Path(sys.argv[2]), int(sys.argv[3])
valid = load_profile(test_corpus.BASE / "profile")
for read in test_corpus.READERS.values():
    read(test_corpus.BASE / "profile", valid)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
before, refused, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0.0
for kind, names in make_corpus.cases().items():
    for name in names:
        path = make_corpus.path_of(kind, name)
        started = time.process_time()
        try:
            if kind == "profiles":
                parse_profile(path.read_bytes())
            elif kind == "shards":
                read_shard(path)
            else:
                table = make_corpus.load("table_cases").TABLE_CASES[name].table
                test_corpus.READERS[table](scratch, test_corpus.with_table(scratch, path, table))
        except CorruptArtefactError:
            refused += 1
        slowest = max(slowest, time.process_time() - started)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"refused": refused, "slowest": slowest, "grown_kib": after - before}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc of Linux")
def test_the_whole_corpus_within_limits(tmp_path):
    room = 512 << 20
    command = [sys.executable, "-c", CHILD, str(HERE), str(tmp_path), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["refused"] == len(PROFILES) + len(TABLES) + len(SHARDS)
    assert found["slowest"] < SECONDS
    assert found["grown_kib"] < 128 << 10
