"""What `bench layer` and `bench model` run: methods by their text, and masks as they were recorded.

Recorded masks replace a method's estimate and decision: a layer reads its blocks from a profile,
so that what is timed is an index and an attention over a real model's pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sp_profile.bench.inputs import LayerShape, random_inputs
from sp_profile.bench.synthetic_profile import synthetic_profile
from sp_runtime.engine import Engine
from sp_runtime.kernels.base import Kernels
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.method_spec import parse_method
from sp_runtime.operating_point import OperatingPoint, default_point
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.decision import uniform_decision
from sp_runtime.patterns.registry import PatternFactory, make_pattern_factory
from sp_runtime.profile import Profile

if TYPE_CHECKING:
    from sp_profile.bench.recorded_masks import RecordedMasks

RECORDED = "recorded:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """label: as reported. profile: None takes a synthetic one for the methods that need one.

    recorded: masks in place of the decisions of `point`, which then says only that no prompt is too
    short.
    """

    label: str
    point: OperatingPoint
    profile: Profile | None
    recorded: RecordedMasks | None = None


def bench_method(text: str, profile: Profile | None) -> Method:
    """`NAME[:RULE][:key=value]*`, or `recorded:PROFILE`. Raises UsageError for anything else."""
    if not text.startswith(RECORDED):
        return Method(label=text, point=parse_method(text), profile=profile)
    from sp_profile.bench.recorded_masks import read_recorded

    return Method(
        label=text,
        point=replace(default_point("vertical_slash"), min_tokens=1),
        profile=None,
        recorded=read_recorded(Path(text.removeprefix(RECORDED))),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A method ready for the layers of one shape."""

    make_pattern: PatternFactory
    point: OperatingPoint
    block_size: int
    layers: tuple[int, ...]

    def engine(self, kernels: Kernels) -> Engine:
        return Engine(
            make_pattern=self.make_pattern,
            point=self.point,
            kernels=kernels,
            block_size=self.block_size,
            layers=self.layers,
        )


def prepare(
    method: Method, shape: LayerShape, layers: Sequence[int], device: torch.device
) -> Prepared:
    """layers: numbers of those that will attend. Raises UsageError where profile or masks do not
    fit the shape."""
    return Prepared(
        make_pattern=_factory(method, shape, layers, device),
        point=method.point,
        block_size=shape.block_size,
        layers=tuple(layers),
    )


def rehearse(methods: Sequence[Method], shape: LayerShape, layers: Sequence[int]) -> None:
    """Run every method over one block on the CPU, so that what cannot run fails before it is timed.

    Raises what the layers of `prepare` raise at any length, of SpError: a missing profile, or one
    of other heads, layers or blocks.
    """
    small = replace(shape, length=shape.block_size, dtype="float32")
    device = torch.device("cpu")
    inputs = random_inputs(small, device, seed=0)
    for method in methods:
        sparse = replace(method, point=replace(method.point, min_tokens=1))
        engine = prepare(sparse, small, layers, device).engine(ReferenceKernels())
        with torch.inference_mode():
            engine.begin(q_len=small.length, kv_len=small.length)
            for layer in layers:
                engine.attend(layer=layer, q=inputs.q, k=inputs.k, v=inputs.v, scale=inputs.scale)


def _factory(
    method: Method, shape: LayerShape, layers: Sequence[int], device: torch.device
) -> PatternFactory:
    if method.recorded is not None:
        masks = {
            layer: method.recorded.of_layer(
                number, len(layers), shape.grid, heads=shape.heads, device=device
            )
            for number, layer in enumerate(layers)
        }
        return lambda: RecordedPattern(masks=masks)
    profile = method.profile
    if profile is None and method.point.method == "share":
        profile = synthetic_profile(shape, len(layers))
    return make_pattern_factory(method.point, profile, block_size=shape.block_size)


@dataclass(frozen=True, kw_only=True)
class RecordedPattern:
    """The masks of each layer, bool [1, H, R, C], whatever the queries and keys are."""

    masks: Mapping[int, Tensor]

    def decide(self, inputs: LayerInputs) -> Decision:
        mask = self.masks[inputs.layer]
        return uniform_decision(inputs, mask, branch=Branch.BLOCK_SPARSE, cost=0.0)

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
