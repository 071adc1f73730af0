"""The Triton kernels on a real GPU: the matrix of gpu_check.py as tests, and compilation counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu


def load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


gpu_check = load("gpu_check")
SHAPES = list(gpu_check.shapes(False))


@pytest.fixture
def poisoned(monkeypatch):
    """Buffers start as NaN, so that an element which no kernel writes shows."""
    monkeypatch.setattr(torch, "empty", torch.empty)
    gpu_check.poison()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=[shape.label() for shape in SHAPES])
def test_error_is_bounded_runs_repeat_and_nothing_synchronises(shape):
    results = gpu_check.check(shape)
    bad = {name: pair for name, pair in results.items() if not pair[0] <= pair[1]}
    assert not bad


def attention_kernel(name):
    """The jitted attention kernel, and the block size at which the backend takes it."""
    if name == "portable":
        from sp_runtime.kernels.block_sparse import block_sparse_kernel

        return block_sparse_kernel, 64
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a GPU of compute capability 9.x")
    from sp_runtime.kernels.hopper import hopper_kernel

    return hopper_kernel, 128


@pytest.mark.parametrize("name", ["portable", "hopper"])
def test_a_new_length_compiles_nothing(name):
    from sp_runtime.block_index import BlockIndex
    from sp_runtime.kernels.triton_backend import TritonKernels

    kernel, block = attention_kernel(name)
    kernels = TritonKernels()
    counts = []
    for length in (512, 1, 513, 1000):
        q = torch.randn(1, length, 4, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        grid = gpu_check.kc.BlockGrid(q_len=length, kv_len=length, block_size=block)
        kernels.attention(q, q, q, BlockIndex.full(1, 4, grid, "cuda"), scale=0.125)
        counts.append(len(kernel.device_caches[torch.cuda.current_device()][0]))
    assert counts[0] == counts[-1] > 0


@pytest.mark.parametrize("name", ["portable", "hopper"])
def test_offsets_beyond_two_to_the_31_elements(name):
    """The last rows of a tensor of more than 2^31 elements, with 64 KiB between its keys."""
    from sp_runtime.block_index import BlockIndex
    from sp_runtime.kernels.triton_backend import TritonKernels

    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of free GPU memory")
    _, block = attention_kernel(name)
    length = 70_016  # the query offset is a multiple of 128
    wide = torch.zeros(1, 1, length, 32_768 + 64, dtype=torch.float16, device="cuda")
    keys = wide[..., -64:]
    keys.normal_()
    query = torch.randn(1, 1, block, 64, dtype=torch.float16, device="cuda")
    grid = gpu_check.kc.BlockGrid(q_len=block, kv_len=length, block_size=block)
    index = BlockIndex.full(1, 1, grid, "cuda")
    kernels = TritonKernels()
    assert kernels.takes_hopper(query, keys, keys, grid) == (name == "hopper")
    far, far_lse = kernels.attention(query, keys, keys, index, scale=0.125)
    near = keys.contiguous()
    out, lse = kernels.attention(query, near, near, index, scale=0.125)
    assert torch.equal(far, out)
    assert torch.equal(far_lse, lse)
