"""A kept binary is started as Triton's JIT would start it; no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_programs_start_what_the_jit_would():
    script = Path(__file__).with_name("program_run.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    kernels = {line["check"].split()[0] for line in lines}
    assert {"hopper_kernel", "block_sparse_kernel", "fill_kernel", "unite_kernel"} <= kernels
    assert not [line for line in lines if not line["passed"]]
