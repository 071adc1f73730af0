"""The benchmarks' rebuilt peer under Triton's interpreter, against float64; see its script."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")


def test_the_pointer_peer_computes_the_listed_blocks(reported) -> None:
    found = reported("pointer_peer_run.py", interpreted=True)
    assert [line["length"] for line in found] == [512, 450]
    assert all(line["finite"] and line["error"] <= line["bound"] for line in found), found
