"""From an operating point to a pattern: the one place that knows every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sp_runtime.errors import UsageError
from sp_runtime.operating_point import Method, OperatingPoint
from sp_runtime.patterns.base import Pattern
from sp_runtime.patterns.dense import DensePattern
from sp_runtime.patterns.flexprefill import FlexPrefillPattern
from sp_runtime.patterns.head_tables import shape_tables, window_tables
from sp_runtime.patterns.hip import HipPattern
from sp_runtime.patterns.infllm import InfLlmPattern
from sp_runtime.patterns.lm_infinite import LmInfinitePattern
from sp_runtime.patterns.minference import MInferencePattern
from sp_runtime.patterns.moa import MoaPattern
from sp_runtime.patterns.plan import PlanPattern
from sp_runtime.patterns.plan_tables import plan_tables
from sp_runtime.patterns.sampled import SampledPattern
from sp_runtime.patterns.share import SharePattern
from sp_runtime.patterns.share_tables import require_block_size, share_tables
from sp_runtime.patterns.streaming import StreamingPattern
from sp_runtime.patterns.trained_length import WithinTrainedLength
from sp_runtime.patterns.vertical_slash import VerticalSlashPattern
from sp_runtime.patterns.xattention import XAttentionPattern

if TYPE_CHECKING:
    from sp_runtime.profile import HeadPatterns, Profile

PatternFactory = Callable[[], Pattern]

# Their way beyond the trained length is a change of positions, which lies outside of attention.
_POSITIONAL: tuple[Method, ...] = ("lm_infinite", "infllm", "hip", "moa")

# The methods that need their operating point and nothing else.
_OF_POINT: dict[Method, Callable[..., Pattern]] = {
    "streaming": StreamingPattern,
    "lm_infinite": LmInfinitePattern,
    "vertical_slash": VerticalSlashPattern,
    "flexprefill": FlexPrefillPattern,
    "infllm": InfLlmPattern,
    "hip": HipPattern,
    "xattention": XAttentionPattern,
    "sampled": SampledPattern,
}


def make_pattern_factory(
    point: OperatingPoint,
    profile: Profile | None,
    *,
    block_size: int | None = None,
    trained_length: int | None = None,
) -> PatternFactory:
    """What makes a fresh pattern for every prefill chunk.

    Args:
        profile: needed by methods `share` (its clusters or its plan), `minference` and `moa` (its
            head patterns); the other methods read nothing of it.
        block_size: that of the engine, to refuse a profile of another one at once instead of in
            the first layer.
        trained_length: of the model, in tokens; methods whose positions cannot be reproduced
            beyond it are refused there. None: not known, and nothing is refused.

    Raises:
        UsageError: a method without the profile that it needs, a profile without what the method
            needs, or, for method share, one of another block size.
    """
    factory = _factory(point, profile, block_size)
    if trained_length is None or point.method not in _POSITIONAL:
        return factory
    return lambda: WithinTrainedLength(pattern=factory(), method=point.method, limit=trained_length)


def _factory(
    point: OperatingPoint, profile: Profile | None, block_size: int | None
) -> PatternFactory:
    if point.method == "share":
        return _share_factory(point, profile, block_size)
    if point.method == "minference":
        return _minference_factory(point, profile)
    if point.method == "moa":
        return _moa_factory(profile)
    if point.method == "dense":
        return DensePattern
    pattern = _OF_POINT[point.method]
    return lambda: pattern(point=point)


def _share_factory(
    point: OperatingPoint, profile: Profile | None, block_size: int | None
) -> PatternFactory:
    if profile is None:
        raise UsageError(
            f"method share (rule {point.rule}) needs a profile",
            hint="make one with `sp-profile calibrate` and `sp-profile cluster`, or choose "
            "a method without one, such as vertical_slash",
        )
    calibrated = profile.calibration.block_size
    if block_size is not None:
        require_block_size(calibrated, block_size)
    if point.rule == "plan":
        chosen = profile.plan_of(point)
        if not chosen.heads:
            raise UsageError(
                "the profile has no plan: nothing was measured for it",
                hint="an imported profile runs rules paper and release, or the method it was "
                "imported for; `sp-profile calibrate` and `cluster` make a plan",
            )
        plan = plan_tables(chosen.heads, block_size=calibrated, dense_layers=point.dense_layers)
        return lambda: PlanPattern(point=point, tables=plan)
    clusters = share_tables(profile.clusters, block_size=calibrated)
    return lambda: SharePattern(point=point, tables=clusters)


def _minference_factory(point: OperatingPoint, profile: Profile | None) -> PatternFactory:
    patterns = _head_patterns(profile, "minference")
    if patterns.minference is None:
        raise _without_patterns("minference")
    tables = shape_tables(patterns.minference)
    return lambda: MInferencePattern(point=point, tables=tables)


def _moa_factory(profile: Profile | None) -> PatternFactory:
    patterns = _head_patterns(profile, "moa")
    if patterns.moa is None:
        raise _without_patterns("moa")
    sink, tables = patterns.moa.sink, window_tables(patterns.moa)
    return lambda: MoaPattern(sink=sink, tables=tables)


def _head_patterns(profile: Profile | None, method: Method) -> HeadPatterns:
    if profile is None or profile.head_patterns is None:
        raise _without_patterns(method)
    return profile.head_patterns


def _without_patterns(method: Method) -> UsageError:
    return UsageError(
        f"method {method} needs a profile with its head patterns",
        hint=f"`sp-profile search {method}` adds them to a profile",
    )
