"""The kernels of the query-aware choice against float64 under Triton's interpreter, on CPU."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

CHECKS = {
    "pool",
    "pooled_row",
    "query_aware",
    "query_aware-onto",
    "query_aware-repeats",
    "query_aware-ties",
    "query_aware-united",
    "query_aware-whole",
}


@pytest.mark.slow
def test_kernels_choose_what_the_definitions_choose(reported):
    """Odd lengths, query offsets, batches, some heads, gamma 0, ties; buffers start wild."""
    lines = reported("pooled_run.py", interpreted=True)
    assert {line["check"] for line in lines} == CHECKS
    assert not [line for line in lines if not line["passed"]]
