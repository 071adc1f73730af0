"""The benchmarks' rebuilt peer under Triton's interpreter, against float64; see its script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_the_pointer_peer_computes_the_listed_blocks() -> None:
    """In a child process, as Triton reads TRITON_INTERPRET on import."""
    script = Path(__file__).with_name("pointer_peer_run.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["length"] for line in found] == [512, 450]
    assert all(line["finite"] and line["error"] <= line["bound"] for line in found), found
