"""FlashAttention-4 as a backend: when it is refused, what it is called with, what it computes.

Without flash-attn-4 a stand-in for it, written from its interface, runs what the backend hands it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.kernels import fa4_launch
from sp_runtime.kernels.select import select_kernels

pytest.importorskip("triton")

CUDA = torch.device("cuda", 0)
MASK_MODULE = "sp_runtime.kernels.fa4_mask"


class BlockLists(NamedTuple):
    """The fields of its BlockSparseTensorsTorch that the backend sets."""

    mask_block_cnt: torch.Tensor
    mask_block_idx: torch.Tensor
    full_block_cnt: torch.Tensor
    full_block_idx: torch.Tensor
    block_size: tuple[int, int]


def stand_in(q, k, v, *, softmax_scale, mask_mod, block_sparse_tensors, return_lse):
    """flash_attn_func over block lists: q [B, Nq, H, D], k and v [B, Nk, Hkv, D]."""
    lists, (rows, cols) = block_sparse_tensors, block_sparse_tensors.block_size
    batch, q_len, heads, _ = q.shape
    kv_len = k.shape[1]
    query, key = torch.arange(q_len)[:, None], torch.arange(kv_len)[None, :]
    lengths = SimpleNamespace(seqlen_q=q_len, seqlen_k=kv_len)
    partly = mask_mod(None, None, query, key, lengths, None)
    seen = torch.zeros(batch, heads, q_len, kv_len, dtype=torch.bool)
    for b, h, r in torch.cartesian_prod(*map(torch.arange, lists.mask_block_cnt.shape)).tolist():
        tile = slice(r * rows, (r + 1) * rows)
        for name, visible in (("full", torch.ones_like(partly)), ("mask", partly)):
            count = getattr(lists, f"{name}_block_cnt")[b, h, r]
            for c in getattr(lists, f"{name}_block_idx")[b, h, r, :count].tolist():
                at = slice(c * cols, (c + 1) * cols)
                assert not seen[b, h, tile, at].any()
                seen[b, h, tile, at] = visible[tile, at]
    group = heads // k.shape[2]
    q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.mT * softmax_scale).masked_fill(~seen, float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).contiguous()
    return out.to(torch.bfloat16), scores.logsumexp(-1).float() if return_lse else None


@pytest.fixture
def package(monkeypatch):
    """The modules of flash-attn-4 and CUTLASS that the backend imports."""

    def module(name: str, **members: Any) -> None:
        made = ModuleType(name)
        made.__dict__.update(members, __path__=[])
        monkeypatch.setitem(sys.modules, name, made)

    module("cutlass", Int32=int, cute=SimpleNamespace(jit=lambda function: function))
    module("flash_attn")
    module("flash_attn.cute", flash_attn_func=stand_in)
    module("flash_attn.cute.block_sparsity", BlockSparseTensorsTorch=BlockLists)
    module("flash_attn.cute.utils", scalar_to_ssa=lambda number, dtype: number)
    sys.modules.pop(MASK_MODULE, None)
    yield
    sys.modules.pop(MASK_MODULE, None)


@pytest.fixture
def kernels(package):
    from sp_runtime.kernels.fa4_backend import FA4Kernels

    return FA4Kernels()


@pytest.fixture
def on_gpu(monkeypatch):
    """on_gpu(capability, installed): a CUDA device as select_kernels sees it."""

    def make(capability, installed=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        real = importlib.util.find_spec
        found = object() if installed else None
        monkeypatch.setattr(
            fa4_launch.importlib.util,
            "find_spec",
            lambda name: found if name == "flash_attn.cute" else real(name),
        )
        return CUDA

    return make


def call_of(random_qkv, *, q_len, kv_len, dim=64, block=128, dtype=torch.bfloat16, batch=2):
    q, k, v = random_qkv(5, batch, 6, 2, q_len, kv_len, dim, dtype)
    grid = BlockGrid(q_len=q_len, kv_len=kv_len, block_size=block)
    generator = torch.Generator().manual_seed(kv_len)
    mask = torch.rand(batch, 6, grid.num_rows, grid.num_cols, generator=generator) < 0.4
    dense = torch.zeros(batch, 6, dtype=torch.bool)
    dense[:, -1] = True
    return q, k, v, BlockIndex.from_mask(mask, grid, dense)


def test_it_is_refused_without_a_gpu_and_says_how_to_get_it():
    with pytest.raises(UnsupportedError, match="fa4 kernels cannot run on cpu") as caught:
        select_kernels("fa4", "cpu")
    assert "sparse-prefill[fa4]" in str(caught.value.hint)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)], ids=str)
def test_it_is_refused_on_other_gpus_than_hopper(on_gpu, capability):
    with pytest.raises(UnsupportedError, match=r"compute capability 9\.x"):
        select_kernels("fa4", on_gpu(capability))


def test_a_missing_package_is_named(on_gpu):
    with pytest.raises(UnsupportedError, match="package flash-attn-4 is not installed"):
        select_kernels("fa4", on_gpu((9, 0), installed=False))


def test_a_package_that_cannot_be_imported_is_refused(on_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    with pytest.raises(UnsupportedError, match="FlashAttention-4 cannot be imported"):
        select_kernels("fa4", on_gpu((9, 0)))


@pytest.mark.usefixtures("package")
def test_it_is_taken_by_name_alone(on_gpu):
    device = on_gpu((9, 0))
    assert select_kernels("fa4", device).name == select_kernels("fa4", device).kernels.name == "fa4"
    for name in ("auto", "triton"):
        assert select_kernels(name, device).kernels.name == "triton"


@pytest.mark.parametrize(
    ("q_len", "kv_len"), [(1, 1), (129, 129), (300, 300), (256, 256), (172, 300), (1, 129)]
)
def test_the_lists_and_the_mask_say_the_index(kernels, oracle, random_qkv, q_len, kv_len):
    """GQA, two sequences, odd lengths, chunks behind a cache, and rows that are dense."""
    q, k, v, index = call_of(random_qkv, q_len=q_len, kv_len=kv_len)
    out, lse = kernels.attention(q, k, v, index, scale=0.2)
    exact, exact_lse = oracle.attention(q, k, v, index.to_mask(), index.grid, 0.2)
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)
    assert out.transpose(1, 2).is_contiguous()
    assert out.dtype == torch.bfloat16
    assert "FlashAttention-4" in kernels.attention_kernel(q, k, v, index.grid)


def test_inputs_that_require_grad_leave_no_graph(kernels, random_qkv):
    q, k, v, index = call_of(random_qkv, q_len=130, kv_len=130)
    out, lse = kernels.attention(q.requires_grad_(), k, v, index, scale=0.2)
    assert not out.requires_grad
    assert not lse.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 64}, "blocks of 128 tokens, not 64"),
        ({"dtype": torch.float32}, "float16 and bfloat16, not torch.float32"),
        ({"dim": 256}, "up to 128, not 256"),
        ({"dim": 20}, "multiples of 8 up to 128, not 20"),
    ],
    ids=str,
)
def test_other_shapes_are_refused_and_described_so(kernels, random_qkv, change, message):
    q, k, v, index = call_of(random_qkv, q_len=130, kv_len=130, **change)
    with pytest.raises(UnsupportedError, match=message) as caught:
        kernels.attention(q, k, v, index, scale=0.2)
    assert "triton" in str(caught.value.hint)
    assert message in kernels.attention_kernel(q, k, v, index.grid)


def test_a_query_offset_off_the_block_grid_is_refused(kernels, random_qkv):
    q, k, v, index = call_of(random_qkv, q_len=130, kv_len=200)
    with pytest.raises(UnsupportedError, match="offset 70 is no multiple of the block size 128"):
        kernels.attention(q, k, v, index, scale=0.2)


def test_an_index_of_other_heads_is_refused(kernels, random_qkv):
    q, k, v, index = call_of(random_qkv, q_len=130, kv_len=130)
    with pytest.raises(UsageError, match="index is for 2 x 6 heads, q has 2 x 2"):
        kernels.attention(q[:, :2], k, v, index, scale=0.2)


@pytest.mark.slow
@pytest.mark.skipif(fa4_launch.missing_package() is not None, reason="flash-attn-4 is missing")
def test_it_compiles_without_a_gpu_once_for_all_lengths(reported):
    *lines, last = reported("fa4_compile_run.py")
    assert {line["compiled"] for line in lines} == {1}
    assert last["compiled"] == 2  # another number of query heads to a KV head


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_its_error_is_bounded_and_nothing_synchronises():
    """gpu_check.py against float64: at most twice the error of an eager run in the same dtype."""
    obstacle = fa4_launch.fa4_obstacle(torch.device("cuda"))
    if obstacle is not None:
        pytest.skip(obstacle)
    script = str(Path(__file__).with_name("gpu_check.py"))
    done = subprocess.run(
        [sys.executable, script, "--fa4", "--no-timing"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
