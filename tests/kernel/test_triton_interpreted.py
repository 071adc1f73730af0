"""Every Triton kernel against float64 under Triton's interpreter, on CPU, in float16 and float32.

bfloat16 is left to the GPU: the interpreter multiplies its bit patterns.
"""

from __future__ import annotations

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
def test_kernels_agree_with_float64(arch, reported):
    """Odd lengths, query offsets, GQA, batches, padded head_dim; buffers start as NaN."""
    found = reported("interpreted_run.py", arch, interpreted=True)
    assert {line["check"] for line in found} >= CHECKS
    bad = [line for line in found if not line["error"] <= line["bound"]]
    assert not bad, "\n".join(map(str, bad))
