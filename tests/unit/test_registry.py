"""Every method by name, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sp_profile.prefill_types import BranchCounts
from sp_runtime.block_index import BlockGrid
from sp_runtime.engine import Engine
from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import METHODS, RULES, OperatingPoint
from sp_runtime.patterns.base import Branch, Constants, LayerInputs
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
        ("flexprefill", {Branch.QUERY_AWARE}),
        ("lm_infinite", {Branch.LM_INFINITE}),
        ("infllm", {Branch.INFLLM}),
        ("hip", {Branch.HIP}),
        ("xattention", {Branch.XATTENTION}),
    ],
)
def test_methods_without_a_profile(method: str, expected: set[Branch]) -> None:
    point = OperatingPoint(method=method, min_budget=64, min_tokens=64, kappa=1.0)
    report = run(point, None).report
    codes = {code for r in report.forwards[0].layers for code in r.branch.flatten().tolist()}
    assert codes == expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("minference", {Branch.A_SHAPE, Branch.VERTICAL_SLASH, Branch.BLOCK_SPARSE}),
        ("moa", {Branch.MOA}),
    ],
)
def test_methods_with_head_patterns(method: str, expected: set[Branch], profile, examples) -> None:
    point = OperatingPoint(method=method, min_tokens=64)
    with pytest.raises(UsageError, match=f"method {method} needs a profile with") as error:
        make_pattern_factory(point, profile)
    assert f"sp-profile search {method}" in error.value.hint
    patterns = examples.head_patterns(profile.model)
    report = run(point, dataclasses.replace(profile, head_patterns=patterns)).report
    codes = {code for r in report.forwards[0].layers for code in r.branch.flatten().tolist()}
    assert codes == expected
    only = {"minference": "moa", "moa": "minference"}[method]
    other = dataclasses.replace(patterns, **{method: None})
    assert getattr(other, only) is not None
    with pytest.raises(UsageError, match="needs a profile with"):
        make_pattern_factory(point, dataclasses.replace(profile, head_patterns=other))


@pytest.mark.parametrize("method", ["lm_infinite", "infllm", "hip", "moa"])
def test_positions_beyond_the_trained_length_are_refused(method: str, profile, examples) -> None:
    patterns = examples.head_patterns(profile.model)
    profile = dataclasses.replace(profile, head_patterns=patterns)
    point = OperatingPoint(method=method, min_tokens=64)
    for limit, refused in ((599, True), (600, False), (None, False)):
        engine = Engine(
            make_pattern=make_pattern_factory(point, profile, trained_length=limit),
            point=point,
            kernels=ReferenceKernels(),
            block_size=64,
            layers=(0,),
        )
        engine.begin(q_len=600, kv_len=600)
        q, k = torch.randn(1, 4, 600, 64), torch.randn(1, 2, 600, 64)
        if refused:
            with pytest.raises(UnsupportedError, match="600 tokens are more than the trained"):
                engine.attend(layer=0, q=q, k=k, v=k, scale=0.125)
        else:
            engine.attend(layer=0, q=q, k=k, v=k, scale=0.125)


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


def test_branches_keep_their_values_and_have_a_count_each() -> None:
    assert [branch.name for branch in Branch] == [
        *("DENSE", "PIVOT", "SHARED", "VERTICAL_SLASH", "QUERY_AWARE", "STREAMING", "SAMPLED"),
        *("LM_INFINITE", "A_SHAPE", "BLOCK_SPARSE", "INFLLM", "HIP", "MOA", "XATTENTION"),
        "WIDENED",
    ]
    assert [branch.value for branch in Branch] == [*range(15)]
    counted = {field.name for field in dataclasses.fields(BranchCounts)}
    assert counted == {branch.name.lower() for branch in Branch}


def test_every_forward_gets_a_fresh_pattern(profile, examples) -> None:
    patterns = examples.head_patterns(profile.model)
    profile = dataclasses.replace(profile, head_patterns=patterns)
    for method in METHODS:
        point = OperatingPoint(method=method, rule="paper")
        make = make_pattern_factory(point, profile)
        assert make() is not make()


@pytest.mark.parametrize("rule", RULES)
def test_share_without_a_profile_is_refused_with_a_hint(rule: str) -> None:
    with pytest.raises(UsageError, match="needs a profile") as error:
        make_pattern_factory(OperatingPoint(method="share", rule=rule), None)
    assert "vertical_slash" in error.value.hint


def test_a_profile_without_a_plan_refuses_rule_plan_alone(profile) -> None:
    bare = dataclasses.replace(profile, plan=dataclasses.replace(profile.plan, heads=()))
    with pytest.raises(UsageError, match="the profile has no plan") as error:
        make_pattern_factory(OperatingPoint(method="share", rule="plan"), bare)
    assert "paper and release" in error.value.hint
    for rule in ("paper", "release"):
        assert make_pattern_factory(OperatingPoint(method="share", rule=rule), bare) is not None


@pytest.mark.parametrize("rule", RULES)
def test_another_block_size_is_refused_at_once(rule: str, profile) -> None:
    point = OperatingPoint(method="share", rule=rule)
    with pytest.raises(UsageError, match="calibrated at block size 64, the engine runs 128"):
        make_pattern_factory(point, profile, block_size=128)
    # Methods that read nothing of the profile do not mind.
    plain = dataclasses.replace(point, method="streaming")
    assert make_pattern_factory(plain, profile, block_size=128) is not None


@pytest.mark.parametrize("rule", ["plan", "paper"])
def test_attaching_again_finds_the_tables_that_are_there(rule, profile):
    def tables(profile, **settings):
        point = OperatingPoint(rule=rule, **settings)
        return make_pattern_factory(point, profile, block_size=64)()._tables

    first = tables(profile)
    assert tables(dataclasses.replace(profile)) is first
    assert tables(profile, min_budget=128) is first
    if rule == "plan":
        assert tables(profile, dense_layers=1) is not first
    else:
        fewer = dataclasses.replace(profile, clusters=profile.clusters[:1])
        assert tables(fewer) is not first


@pytest.mark.parametrize("rule", ["plan", "paper"])
def test_a_run_on_fake_tensors_leaves_nothing_behind(rule, profile):
    point = OperatingPoint(rule=rule, min_budget=64, min_tokens=64)
    make = make_pattern_factory(point, profile, block_size=64)
    grid = BlockGrid(q_len=200, kv_len=200, block_size=64)

    def table() -> torch.Tensor:
        q, k = torch.zeros(1, 4, 200, 64), torch.zeros(1, 2, 200, 64)
        inputs = LayerInputs(
            layer=0,
            q=q,
            k=k,
            grid=grid,
            scale=0.125,
            kernels=ReferenceKernels(),
            constants=Constants(),
        )
        layer = make()._tables.layer(inputs)
        return layer.slots if rule == "plan" else layer.slot

    with FakeTensorMode():
        assert type(table()) is FakeTensor
    assert type(table()) is torch.Tensor
    with FakeTensorMode():
        table()
    assert table() is table()
