"""Every selection kernel against its torch definition under Triton's interpreter, on CPU."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

CHECKS = {
    "borrow_roles",
    "build_index",
    "close_rows",
    "gamma_mask-False",
    "gamma_mask-True",
    "gamma_mask-forced",
    "gamma_mask-spread",
    "gamma_mask-stored",
    "keep_pivots",
    "lend",
    "row_order",
    "share_roles",
    "unite",
    "vertical_slash-False",
    "vertical_slash-True",
    "vertical_slash-least",
    "vertical_slash-stored",
}


@pytest.mark.slow
def test_kernels_choose_what_the_definitions_choose(reported):
    """Odd lengths, query offsets, batches, ties, rows without mass; buffers start wild."""
    lines = reported("selection_run.py", interpreted=True)
    assert {line["check"] for line in lines} == CHECKS
    assert not [line for line in lines if not line["passed"]]
