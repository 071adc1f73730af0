"""A bounded run of the fuzzer, and whether it would see what it looks for."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of the child process")


@pytest.fixture(scope="session")
def fuzz(corpus):
    return corpus.load("fuzz")


@pytest.fixture(scope="session")
def mutate(corpus):
    return corpus.load("mutate")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "fuzz.py"), *options],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_some_mutants_of_every_kind(fuzz):
    done = run("--count", "400", "--seed", "7", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    for target in fuzz.TARGETS:
        mutants, refused, equal, forged, findings = map(int, rows[target][1:6])
        assert mutants == refused + equal + forged > 0
        assert findings == 0
    assert int(rows["all"][1]) >= 400


@pytest.mark.parametrize(
    ("kind", "start", "says"),
    [
        ("crash", 0, "broken-crash 1: child ended with -6"),
        ("hang", 0, "broken-hang 1: not done after"),
        ("memory", 5, "broken-memory 6: MemoryError"),
        ("error", 5, "broken-error 6: KeyError"),
        ("miss", 0, "broken-miss 1: AssertionError: 'accepted as something else'"),
    ],
)
def test_the_fuzzer_sees(fuzz, kind, start, says):
    """One of three mutants trips the defect; the two others are counted all the same."""
    jobs = [(f"broken-{kind}", start, 3)]
    outcome = fuzz.run_jobs(jobs, 1, 4.0 if kind == "hang" else 60.0)[f"broken-{kind}"]
    (finding,) = outcome.findings
    assert finding.startswith(says)
    assert (outcome.mutants, outcome.refused) == (3, 2)


def test_mutants_follow_their_seed_and_differ(mutate):
    text = (HERE / "base" / "minimal.json").read_bytes()
    first = [mutate.mutate_json_text(random.Random(f"a/{n}"), text) for n in range(60)]
    again = [mutate.mutate_json_text(random.Random(f"a/{n}"), text) for n in range(60)]
    assert first == again
    assert len({*first} - {text}) > 50
    shard = (HERE / "base" / "shard.npz").read_bytes()
    made = {mutate.mutate_archive(random.Random(n), shard) for n in range(30)}
    assert len(made) > 25
