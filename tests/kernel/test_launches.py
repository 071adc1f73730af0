"""How much a layer starts, and that what it starts is compiled once for all lengths; no GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")


def load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


from sp_runtime.kernels.program import Program  # noqa: E402

engine_cases = load("engine_cases")
launch_count = load("launch_count")


def forward(method: str, length: int, q_len: int | None = None, note: Any = None):
    """Yields to `counted` what each of three layers starts; numbers are arbitrary."""
    from sp_runtime.kernels.triton_backend import TritonKernels

    engine = engine_cases.make_engine(
        method, heads=6, block=64, kernels=TritonKernels(capability=(8, 0), hopper=False)
    )
    q = torch.zeros(1, 6, q_len or length, 64, dtype=torch.float16)
    k = torch.zeros(1, 2, length, 64, dtype=torch.float16)
    engine.begin(q_len=q.shape[2], kv_len=length)
    for layer in range(engine_cases.LAYERS):
        with launch_count.counted(note) as launches:
            engine.attend(layer=layer, q=q, k=k, v=k, scale=0.125)
        yield launches


@pytest.mark.parametrize(
    ("method", "most"),
    [
        ("vertical_slash", 12),
        ("share:paper", 25),
        ("flexprefill", 24),
        ("sampled", 8),
        ("plan", 21),
        ("plan:drift", 25),
    ],
)
def test_a_layer_starts_few_kernels_and_reads_nothing_back(method: str, most: int) -> None:
    first, *later = forward(method, 700, 500)
    assert all(launches.total() <= most for launches in later), later
    # Constants of the forward, and the state of the method; of a plan its streaming masks and
    # what a dense lender takes.
    assert first.total() <= most + (16 if method.startswith("plan") else 8)
    assert all("_local_scalar_dense" not in launches for launches in (first, *later))


@pytest.mark.parametrize("method", list(engine_cases.POINTS))
def test_no_argument_that_follows_the_length_is_compiled_in(method: str) -> None:
    """Every length gives every kernel the same compilation key."""
    keys: dict[str, set[Any]] = {}

    def note(program: Program, tensors: dict[str, torch.Tensor]) -> None:
        kernel, arguments = program.kernel, program.arguments(tensors)
        every = tuple(key(param, arguments[param.name]) for param in kernel.params)
        constants = tuple(v for v, p in zip(every, kernel.params, strict=True) if p.is_constexpr)
        keys.setdefault(f"{kernel.__name__} {constants}", set()).add(every)

    def key(param: Any, value: Any) -> Any:
        if param.is_constexpr:
            return value
        if isinstance(value, torch.Tensor):
            start = value.storage_offset() * value.element_size()
            return value.dtype, param.do_not_specialize_on_alignment or start % 16 == 0
        if not isinstance(value, int):
            return type(value)
        special = () if param.do_not_specialize else (value == 1, value % 16 == 0)
        return (value >= 2**31, *special)

    variants = []
    for length in (64, 65, 127, 500, 640, 701, 1000, 1024):
        list(forward(method, length, note=note))
        variants.append(len(keys))
        assert all(len(every) == 1 for every in keys.values()), keys
    assert variants[0] == variants[-1]


def test_maps_whose_places_pass_int32_are_refused() -> None:
    from sp_runtime.block_index import BlockGrid
    from sp_runtime.errors import ResourceError
    from sp_runtime.kernels.base import BlockMeans
    from sp_runtime.kernels.triton_backend import TritonKernels

    kernels, blocks = TritonKernels(capability=(8, 0), hopper=False), 46_341
    mass = torch.empty(1, 1, blocks, blocks, device="meta")
    with pytest.raises(ResourceError, match="46341 x 46341 blocks passes 2\\^31"):
        kernels.gamma_mask(mass, 0.9, row_slack=2.0)
    grid = BlockGrid(q_len=blocks * 64, kv_len=blocks * 64, block_size=64)
    queries = torch.empty(1, 1, blocks + 1, 64, device="meta")
    means = BlockMeans(queries=queries, keys=queries[:, :, 1:], heads=None, num_heads=1)
    with pytest.raises(ResourceError, match="46341 x 46341 blocks passes 2\\^31"):
        kernels.query_aware(means, grid, gamma=0.9, scale=1.0)
