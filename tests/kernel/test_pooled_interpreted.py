"""The kernels of the query-aware choice against float64 under Triton's interpreter, on CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CHECKS = {
    "pool",
    "pooled_row",
    "query_aware",
    "query_aware-onto",
    "query_aware-repeats",
    "query_aware-united",
    "query_aware-whole",
}


@pytest.mark.slow
def test_kernels_choose_what_the_definitions_choose():
    """Odd lengths, query offsets, batches, some heads, gamma 0; buffers start wild."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("pooled_run.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["check"] for line in lines} == CHECKS
    assert not [line for line in lines if not line["passed"]]
