"""A kept binary is started as Triton's JIT would start it; no GPU."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")


def test_programs_start_what_the_jit_would(reported):
    lines = reported("program_run.py")
    kernels = {line["check"].split()[0] for line in lines}
    assert {"hopper_kernel", "block_sparse_kernel", "fill_kernel", "unite_kernel"} <= kernels
    assert not [line for line in lines if not line["passed"]]
