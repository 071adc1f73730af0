"""Shapes and densities that cannot be measured are refused by name; every other one is planted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.bench.clock import Clock
from sp_profile.bench.inputs import LayerShape, Planting, planted_inputs, require_plantable
from sp_profile.bench.layer_bench import LayerBench
from sp_profile.bench.methods import bench_method, rehearse
from sp_profile.bench.model_bench import ModelShape
from sp_runtime.errors import ProfileMismatchError, SpError, UsageError
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import METHODS
from sp_runtime.profile import load_profile

CPU = torch.device("cpu")
PROFILE = Path(__file__).parents[2] / "profiles" / "smollm2-135m"


def shape(*, head_dim: int = 16, length: int = 300, heads: int = 2, kv_heads: int = 1):
    return LayerShape(
        length=length,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=64,
        dtype="float32",
    )


@given(head_dim=st.integers(1, 24), length=st.integers(1, 2000))
def test_heads_are_refused_or_planted(head_dim: int, length: int) -> None:
    """The check before all work says what planting does, and its hint what would be enough."""
    found = shape(head_dim=head_dim, length=length)
    try:
        require_plantable(found)
    except UsageError:
        with pytest.raises(UsageError, match="too small to plant") as caught:
            planted_inputs(found, Planting(columns=0), CPU, seed=0)
        least = int(str(caught.value.hint).split()[-1])
        assert least > head_dim
        require_plantable(shape(head_dim=least, length=length))
        with pytest.raises(UsageError):
            require_plantable(shape(head_dim=least - 1, length=length))
    else:
        inputs = planted_inputs(found, Planting(columns=0), CPU, seed=0)
        assert torch.isfinite(inputs.q).all()
        assert torch.isfinite(inputs.k).all()


@pytest.mark.parametrize(
    ("length", "least"), [(300, 10), (1000, 12), (16384, 16), (131072, 20), (10**6, 22)]
)
def test_longer_prompts_take_wider_heads(length: int, least: int) -> None:
    require_plantable(shape(head_dim=least, length=length))
    for head_dim in range(1, least):
        with pytest.raises(UsageError) as caught:
            require_plantable(shape(head_dim=head_dim, length=length))
        assert caught.value.hint == f"the least that does is {least}"


@pytest.mark.parametrize("density", [0, -3, 1.01, float("nan")])
def test_a_density_that_no_mask_has_is_not_planted(density: float) -> None:
    bench = LayerBench(ReferenceKernels(), CPU, Clock(CPU, repeat=1), layers=range(1), seed=0)
    with pytest.raises(UsageError, match=r"is not in \(0, 1\]"):
        bench.plant(shape(), density)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"heads": 3, "kv_heads": 2, "hidden": 6}, "3 query heads are no multiple of 2 KV heads"),
        ({"heads": 3, "kv_heads": 1, "hidden": 32}, "width 32 is no multiple of 3 query heads"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
    ],
)
def test_sizes_that_make_no_llama_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ModelShape(**sizes)
    assert caught.value.hint


def test_a_width_hint_names_widths_that_are_taken() -> None:
    with pytest.raises(UsageError) as caught:
        ModelShape(hidden=2, heads=3, kv_heads=3)
    assert caught.value.hint == "the nearest that are: 3"
    assert ModelShape(hidden=3, heads=3, kv_heads=3).hidden == 3


@pytest.mark.parametrize("name", [*sorted(set(METHODS) - {"minference", "moa"}), "share:paper"])
def test_what_runs_passes_its_rehearsal(name: str) -> None:
    rehearse([bench_method(name, None)], shape(heads=4, kv_heads=2), range(3))


@pytest.mark.parametrize(
    ("name", "heads", "error"),
    [
        ("minference", 9, UsageError),
        ("moa", 9, UsageError),
        ("plan", 12, ProfileMismatchError),
        (f"recorded:{PROFILE}", 300, UsageError),
    ],
)
def test_what_cannot_run_fails_its_rehearsal(name: str, heads: int, error: type[SpError]) -> None:
    methods = [bench_method(text, load_profile(PROFILE)) for text in ("vertical_slash", name)]
    with pytest.raises(error):
        rehearse(methods, shape(heads=heads, kv_heads=3, length=131072), range(2))
