"""Which slots of a sampled block mass have the same stride."""

from __future__ import annotations

from itertools import groupby

from sp_runtime.errors import UsageError


def stride_runs(stride: int | tuple[int, ...], slots: int) -> list[tuple[int, int, int]]:
    """(stride, start, stop) of the slots side by side that have the same.

    stride: of all slots, or of each. Raises UsageError for one under 1 and for a wrong number.
    """
    given = (stride,) if isinstance(stride, int) else stride
    if min(given, default=1) < 1:
        raise UsageError(f"stride {min(given)} is under 1")
    strides = given * slots if isinstance(stride, int) else given
    if len(strides) != slots:
        raise UsageError(f"{len(strides)} strides for {slots} heads")
    runs: list[tuple[int, int, int]] = []
    start = 0
    for each, same in groupby(strides):
        stop = start + len(list(same))
        runs.append((each, start, stop))
        start = stop
    return runs
