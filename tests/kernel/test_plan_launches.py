"""How much a layer of the shipped plans and of flexprefill starts on the device; no GPU."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

PROFILE = Path(__file__).parents[2] / "profiles" / "smollm2-135m-32k"
LAYERS = 30


def load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


launch_count = load("launch_count")


def forward(name: str) -> list[Counter[str]]:
    """What each layer starts in the second forward at one of the profile's points, or a method."""
    from sp_runtime.engine import Engine
    from sp_runtime.kernels.triton_backend import TritonKernels
    from sp_runtime.operating_point import OperatingPoint
    from sp_runtime.patterns.registry import make_pattern_factory
    from sp_runtime.profile import load_profile

    profile = load_profile(PROFILE)
    if name == "flexprefill":
        point = OperatingPoint(method="flexprefill", min_tokens=64)
    else:
        point = replace(profile.point(name), min_tokens=64)
    engine = Engine(
        make_pattern=make_pattern_factory(point, profile, block_size=128),
        point=point,
        kernels=TritonKernels(capability=(8, 0), hopper=False),
        block_size=128,
        layers=tuple(range(LAYERS)),
    )
    q = torch.zeros(1, 9, 1100, 64, dtype=torch.float16)
    k = torch.zeros(1, 3, 1100, 64, dtype=torch.float16)
    layers: list[Counter[str]] = []
    for _ in range(2):
        engine.begin(q_len=1100, kv_len=1100)
        layers.clear()
        for layer in range(LAYERS):
            with launch_count.counted() as launches:
                engine.attend(layer=layer, q=q, k=k, v=k, scale=0.125)
            layers.append(launches)
    return layers


@pytest.mark.parametrize(
    ("name", "mean"), [("fast", 13.0), ("balanced", 16.0), ("safe", 19.0), ("flexprefill", 24.0)]
)
def test_a_layer_starts_few_kernels(name: str, mean: float) -> None:
    first, *later = forward(name)
    assert (first + sum(later, Counter())).total() <= mean * LAYERS
    assert first.total() <= max(launches.total() for launches in later) + 10
    for launches in (first, *later):
        assert "_local_scalar_dense" not in launches
    if name != "flexprefill":
        # After the streaming masks of the first layer a plan runs no operator of torch's.
        assert all(key.endswith("_kernel") for launches in later for key in launches)
