"""From an operating point to a pattern: the one place that knows every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sp_runtime.errors import UsageError
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Pattern
from sp_runtime.patterns.dense import DensePattern
from sp_runtime.patterns.plan import PlanPattern
from sp_runtime.patterns.plan_tables import PlanTables
from sp_runtime.patterns.query_aware import QueryAwarePattern
from sp_runtime.patterns.sampled import SampledPattern
from sp_runtime.patterns.share import SharePattern
from sp_runtime.patterns.share_tables import ShareTables, require_block_size
from sp_runtime.patterns.streaming import StreamingPattern
from sp_runtime.patterns.vertical_slash import VerticalSlashPattern

if TYPE_CHECKING:
    from sp_runtime.profile import Profile

PatternFactory = Callable[[], Pattern]


def make_pattern_factory(
    point: OperatingPoint, profile: Profile | None, *, block_size: int | None = None
) -> PatternFactory:
    """What makes a fresh pattern for every prefill chunk.

    Args:
        profile: needed by method `share` (its clusters or its plan); the other methods read
            nothing of it.
        block_size: that of the engine, to refuse a profile of another one at once instead of in
            the first layer.

    Raises:
        UsageError: method `share` without a profile, or a profile of another block size.
    """
    if point.method == "share":
        if profile is None:
            raise UsageError(
                f"method share (rule {point.rule}) needs a profile",
                hint="make one with `sp-profile calibrate` and `sp-profile cluster`, or choose "
                "a method without one, such as vertical_slash",
            )
        return _share_factory(point, profile, block_size)
    if point.method == "streaming":
        return lambda: StreamingPattern(point=point)
    if point.method == "vertical_slash":
        return lambda: VerticalSlashPattern(point=point)
    if point.method == "query_aware":
        return lambda: QueryAwarePattern(point=point)
    if point.method == "sampled":
        return lambda: SampledPattern(point=point)
    return DensePattern


def _share_factory(
    point: OperatingPoint, profile: Profile, block_size: int | None
) -> PatternFactory:
    calibrated = profile.calibration.block_size
    if block_size is not None:
        require_block_size(calibrated, block_size)
    if point.rule == "plan":
        plan = PlanTables(
            profile.plan.heads, block_size=calibrated, dense_layers=point.dense_layers
        )
        return lambda: PlanPattern(point=point, tables=plan)
    clusters = ShareTables(profile.clusters, block_size=calibrated)
    return lambda: SharePattern(point=point, tables=clusters)
