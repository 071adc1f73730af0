"""Every method by name, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sp_runtime.engine import Engine
from sp_runtime.errors import UsageError
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import METHODS, RULES, OperatingPoint
from sp_runtime.patterns.base import Branch
from sp_runtime.patterns.registry import make_pattern_factory


@pytest.fixture
def profile(examples):
    """Three full-attention layers (0, 2, 3) of four heads, two KV heads, block size 64."""
    return examples.make_profile()


def run(point: OperatingPoint, profile) -> Engine:
    engine = Engine(
        make_pattern=make_pattern_factory(point, profile, block_size=64),
        point=point,
        kernels=ReferenceKernels(),
        block_size=64,
        layers=(0, 2, 3),
    )
    engine.begin(q_len=600, kv_len=600)
    g = torch.Generator().manual_seed(0)
    for layer in (0, 2, 3):
        q = torch.randn(1, 4, 600, 64, generator=g)
        k, v = torch.randn(2, 1, 2, 600, 64, generator=g)
        out = engine.attend(layer=layer, q=q, k=k, v=v, scale=0.125)
        assert torch.isfinite(out).all()
    return engine


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("streaming", {Branch.STREAMING}),
        ("vertical_slash", {Branch.VERTICAL_SLASH}),
        ("sampled", {Branch.SAMPLED}),
        ("query_aware", {Branch.QUERY_AWARE}),
    ],
)
def test_methods_without_a_profile(method: str, expected: set[Branch]) -> None:
    point = OperatingPoint(method=method, min_budget=64, min_tokens=64, kappa=1.0)
    report = run(point, None).report
    codes = {code for r in report.forwards[0].layers for code in r.branch.flatten().tolist()}
    assert codes == expected


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_share_run_from_a_profile(rule: str, profile) -> None:
    point = OperatingPoint(
        method="share",
        rule=rule,
        min_budget=64,
        min_tokens=64,
        kappa=0.0,
        delta=1.01,
        tau=1.0,
        phi=1.0,
        gamma=0.3,
    )
    engine = run(point, profile)
    counts = {b.name: b.count for b in engine.report.summary().totals.branches}
    if rule == "plan":
        assert counts == {
            "dense": 1,
            "pivot": 1,
            "shared": 3,
            "vertical_slash": 3,
            "query_aware": 2,
            "streaming": 1,
            "sampled": 1,
        }
    else:
        # The enabled cluster: head 0 of every layer; the first lends to the other two.
        assert counts == {"pivot": 1, "shared": 2, "vertical_slash": 9}


def test_every_forward_gets_a_fresh_pattern(profile) -> None:
    for method in METHODS:
        point = OperatingPoint(method=method, rule="paper")
        make = make_pattern_factory(point, profile)
        assert make() is not make()


@pytest.mark.parametrize("rule", RULES)
def test_share_without_a_profile_is_refused_with_a_hint(rule: str) -> None:
    with pytest.raises(UsageError, match="needs a profile") as error:
        make_pattern_factory(OperatingPoint(method="share", rule=rule), None)
    assert "vertical_slash" in error.value.hint


@pytest.mark.parametrize("rule", RULES)
def test_another_block_size_is_refused_at_once(rule: str, profile) -> None:
    point = OperatingPoint(method="share", rule=rule)
    with pytest.raises(UsageError, match="calibrated at block size 64, the engine runs 128"):
        make_pattern_factory(point, profile, block_size=128)
    # Methods that read nothing of the profile do not mind.
    plain = dataclasses.replace(point, method="streaming")
    assert make_pattern_factory(plain, profile, block_size=128) is not None
