"""What a series of measured times is reported as."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeStats:
    """Milliseconds of repeated runs: median, 20th and 80th percentile, and how many there were."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    runs: int


def time_stats(milliseconds: Sequence[float]) -> TimeStats:
    """The statistics of at least one run; a run that took no finite time is a defect."""
    assert milliseconds
    assert all(math.isfinite(ms) for ms in milliseconds)
    return TimeStats(
        median_ms=percentile(milliseconds, 50),
        p20_ms=percentile(milliseconds, 20),
        p80_ms=percentile(milliseconds, 80),
        runs=len(milliseconds),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the closest ranks, as `numpy.percentile` does by default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def tflops(operations: int, milliseconds: float) -> float:
    """10^12 operations a second."""
    return operations / milliseconds / 1e9
