"""Every Triton kernel against float64 under Triton's interpreter, on CPU, in float16 and float32.

bfloat16 is left to the GPU: the interpreter multiplies its bit patterns. The kernels run in a child
process, as Triton reads TRITON_INTERPRET on import and the rest of the suite must not run with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CHECKS = {
    "attention",
    "build_index",
    "layout",
    "lse",
    "mass-1",
    "sampled-5",
    "sampled-16",
    "sampled-100",
    "slash",
    "vertical",
}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm80", "sm90"])
def test_kernels_agree_with_float64(arch):
    """Odd lengths, query offsets, GQA, batches, padded head_dim; buffers start as NaN."""
    script = Path(__file__).with_name("interpreted_run.py")
    done = subprocess.run(
        [sys.executable, str(script), arch],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["check"] for line in found} >= CHECKS
    bad = [line for line in found if not line["error"] <= line["bound"]]
    assert not bad, "\n".join(map(str, bad))
