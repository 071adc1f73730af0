"""On CUDA: no method waits for the device, choices equal the CPU's, dense attention is right."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sp_runtime.block_index import BlockGrid
from sp_runtime.dense_attention import dense_attention
from sp_runtime.engine import Engine
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.kernels.select import select_kernels
from sp_runtime.operating_point import METHODS, RULES, OperatingPoint
from sp_runtime.patterns.masks import flat_gamma_masks, gamma_mask
from sp_runtime.patterns.registry import make_pattern_factory

pytestmark = pytest.mark.gpu

POINTS = [
    *(OperatingPoint(method=method) for method in METHODS if method != "share"),
    *(OperatingPoint(method="share", rule=rule, drift=0.3) for rule in RULES),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p.method}-{p.rule}")
@pytest.mark.parametrize("q_len", [1500, 700], ids="q{}".format)
def test_a_forward_never_waits_for_the_device(point, q_len: int, examples) -> None:
    point = dataclasses.replace(point, min_budget=64, min_tokens=64, delta=1.01, tau=1.0)
    profile = examples.make_profile()
    profile = dataclasses.replace(profile, head_patterns=examples.head_patterns(profile.model))
    engine = Engine(
        make_pattern=make_pattern_factory(point, profile, block_size=64),
        point=point,
        kernels=select_kernels("triton", "cuda").kernels,
        block_size=64,
        layers=(0, 2, 3),
    )
    q = torch.randn(3, 1, 4, q_len, 64, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, 3, 1, 2, 1500, 64, device="cuda", dtype=torch.bfloat16)

    def forward() -> None:
        engine.begin(q_len=q_len, kv_len=1500)
        for at, layer in enumerate((0, 2, 3)):
            engine.attend(layer=layer, q=q[at], k=k[at], v=v[at], scale=0.125)

    forward()  # compiles the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    first, second = engine.report.summary().forwards
    assert first == second


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1.0])
def test_choices_equal_those_of_the_cpu(gamma: float) -> None:
    grid = BlockGrid(q_len=4000, kv_len=8000, block_size=64)
    g = torch.Generator().manual_seed(0)
    # Multiples of 2^-18 sum exactly in float32, whatever the order, and have many ties.
    vertical, slash = (torch.randint(0, 64, (2, 1, 4, 8000), generator=g) / 2.0**18).unbind()
    mass = torch.randint(0, 64, (1, 4, grid.num_rows, grid.num_cols), generator=g) / 2.0**12
    mass = mass * grid.causal_mask()

    def masks(device: str) -> list[torch.Tensor]:
        estimate = LastBlockEstimate(vertical=vertical.to(device), slash=slash.to(device))
        return [
            gamma_mask(mass.to(device), gamma),
            flat_gamma_masks(mass.to(device) / 2.0**7, (gamma,))[0],
            ReferenceKernels().vertical_slash(
                estimate, grid, gamma=gamma, min_budget=64, max_budget=None, slash_cover="both"
            ),
        ]

    for host, device in zip(masks("cpu"), masks("cuda"), strict=True):
        assert torch.equal(host, device.cpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("q_len", [1, 300, 1000], ids="q{}".format)
def test_dense_attention_is_lower_right_causal(q_len: int, dtype: torch.dtype) -> None:
    q = torch.randn(2, 4, q_len, 64, device="cuda", dtype=dtype)
    k, v = torch.randn(2, 2, 2, 1000, 64, device="cuda", dtype=dtype)
    found = dense_attention(q, k, v, scale=0.125)
    keys, values = (x.double().repeat_interleave(2, dim=1) for x in (k, v))
    scores = q.double() @ keys.mT * 0.125
    future = ~torch.ones(q_len, 1000, dtype=torch.bool, device="cuda").tril(1000 - q_len)
    expected = scores.masked_fill(future, -torch.inf).softmax(-1) @ values
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
