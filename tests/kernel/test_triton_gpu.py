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


def kernels_of(name):
    """The jitted attention and block mass kernels, and the block size at which they are taken."""
    if name == "portable":
        from sp_runtime.kernels.block_mass import block_mass_kernel
        from sp_runtime.kernels.block_sparse import block_sparse_kernel

        return block_sparse_kernel, block_mass_kernel, 64
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a GPU of compute capability 9.x")
    from sp_runtime.kernels.hopper import hopper_kernel
    from sp_runtime.kernels.hopper_mass import hopper_mass_kernel

    return hopper_kernel, hopper_mass_kernel, 128


@pytest.mark.parametrize("name", ["portable", "hopper"])
def test_a_new_length_compiles_nothing(name):
    """Fifty prompt lengths and query offsets, on the block grid and off it."""
    from sp_runtime.block_index import BlockIndex
    from sp_runtime.kernels.triton_backend import TritonKernels

    *jitted, block = kernels_of(name)
    kernels = TritonKernels()
    heads = torch.tensor([[3, -1]], device="cuda")
    counts = []
    for i in range(50):
        length = (512, 1, 513, 1000)[i] if i < 4 else 37 * i
        offset = 53 * i if i % 3 else 128 * i
        k = torch.randn(1, length + offset, 4, 64, device="cuda", dtype=torch.bfloat16)
        k = k.transpose(1, 2)
        q = k[:, :, :length].contiguous()
        grid = gpu_check.kc.BlockGrid(q_len=length, kv_len=length + offset, block_size=block)
        index = BlockIndex.full(1, 4, grid, "cuda")
        _, lse = kernels.attention(q, k, k, index, scale=0.125)
        kernels.block_mass(q, k, lse, heads, grid, scale=0.125)
        device = torch.cuda.current_device()
        counts.append([len(kernel.device_caches[device][0]) for kernel in jitted])
    assert counts[0] == counts[-1]
    assert all(counts[0])


@pytest.mark.parametrize("name", ["portable", "hopper"])
def test_offsets_beyond_two_to_the_31_elements(name):
    """The last rows of a tensor of more than 2^31 elements, with 64 KiB between its keys."""
    from sp_runtime.block_index import BlockIndex
    from sp_runtime.kernels.triton_backend import TritonKernels

    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of free GPU memory")
    *_, block = kernels_of(name)
    length = 70_016
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
