"""The public operator: registration, values, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sp_runtime
from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.ops import block_sparse_attention


def make_index(batch=1, heads=4, q_len=150, kv_len=200, block_size=64, seed=0):
    grid = BlockGrid(q_len=q_len, kv_len=kv_len, block_size=block_size)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, heads, grid.num_rows, grid.num_cols, generator=generator) < 0.4
    dense = torch.zeros(batch, heads, dtype=torch.bool)
    dense[:, 0] = True
    return BlockIndex.from_mask(mask, grid, dense)


@pytest.fixture
def call(random_qkv):
    """(q, k, v, index) that fit each other: 4 query heads, 2 KV heads, 150 of 200 tokens."""
    return *random_qkv(0, 1, 4, 2, 150, 200, 16), make_index()


def op_arguments(q, k, v, index, scale=0.25):
    return (q, k, v, index.row_ptr, index.col_idx, index.dense, index.grid.block_size, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype, random_qkv):
    q, k, v = random_qkv(1, 2, 4, 2, 70, 130, 16, dtype)
    index = make_index(batch=2, q_len=70, kv_len=130)
    torch.library.opcheck(torch.ops.sp.block_sparse_attention, op_arguments(q, k, v, index))


def test_fake_outputs_have_the_strides_of_real_ones(call):
    real = torch.ops.sp.block_sparse_attention(*op_arguments(*call))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.ops.sp.block_sparse_attention(*op_arguments(*call))
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype)


def test_long_inputs_trace_without_memory():
    """A million tokens of 64 heads: more than 2**32 elements, as fake tensors."""
    length = 1 << 20
    with FakeTensorMode():
        q = torch.empty(1, 64, length, 128, dtype=torch.bfloat16)
        k = torch.empty(1, 8, length, 128, dtype=torch.bfloat16)
        grid = BlockGrid(q_len=length, kv_len=length, block_size=128)
        out, lse = block_sparse_attention(
            q, k, k, BlockIndex.full(1, 64, grid, "cpu"), return_lse=True
        )
    assert out.shape == q.shape
    assert out.stride() == (length * 64 * 128, 128, 64 * 128, 1)
    assert lse.shape == (1, 64, length)
    assert lse.dtype == torch.float32


def test_values_equal_the_oracle_with_the_default_scale(call, oracle):
    q, k, v, index = call
    out, lse = block_sparse_attention(q, k, v, index, return_lse=True)
    expected, expected_lse = oracle.attention(q, k, v, index.to_mask(), index.grid, 16**-0.5)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_scale_and_backend_by_name(call):
    q, k, v, index = call
    by_name = block_sparse_attention(q, k, v, index, scale=0.5, kernels="reference")
    assert torch.equal(by_name, block_sparse_attention(q, k, v, index, scale=0.5))
    assert not torch.allclose(by_name, block_sparse_attention(q, k, v, index))


def test_the_package_exports_the_operator():
    assert sp_runtime.block_sparse_attention is block_sparse_attention


def test_triton_by_name_on_the_cpu_is_refused(call):
    with pytest.raises(UnsupportedError, match="cannot run on cpu"):
        block_sparse_attention(*call, kernels="triton")


def test_requires_grad_is_refused_unless_grad_is_off(call):
    q, k, v, index = call
    for args in ((q.requires_grad_(), k, v), (q.detach(), k, v.requires_grad_())):
        with pytest.raises(UnsupportedError, match="requires grad"):
            block_sparse_attention(*args, index)
    with torch.no_grad():
        assert block_sparse_attention(q, k, v, index).isfinite().all()


REFUSALS = {
    "three dimensions": (lambda q, k, v, i: (q[0], k, v, i), "expected 4 dimensions"),
    "empty": (lambda q, k, v, i: (q[:0], k[:0], v[:0], i), "is empty"),
    "mixed dtypes": (lambda q, k, v, i: (q, k.half(), v, i), "k is torch.float16"),
    "integers": (lambda q, k, v, i: (q.long(), k.long(), v.long(), i), "torch.int64"),
    "mixed devices": (lambda q, k, v, i: (q, k, v.to("meta"), i), "v is torch.float32 on meta"),
    "last dimension strided": (
        lambda q, k, v, i: (q, k.transpose(2, 3).contiguous().transpose(2, 3), v, i),
        "k's last dimension has stride",
    ),
    "k unlike v": (lambda q, k, v, i: (q, k, v[:, :1], i), "k has shape"),
    "head_dim": (lambda q, k, v, i: (q[..., :8], k, v, i), "batch size or head_dim"),
    "head ratio": (lambda q, k, v, i: (q[:, :3], k, v, i), "3 query heads are no multiple of 2"),
    "other lengths": (lambda q, k, v, i: (q[:, :, 1:], k, v, i), "index is for 150 queries"),
    "other heads": (lambda q, k, v, i: (q[:, :2], k, v, i), "index.dense is"),
}


@pytest.mark.parametrize(("change", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_arguments_that_do_not_fit_are_refused(call, change, message):
    with pytest.raises(UsageError, match=message):
        block_sparse_attention(*change(*call))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("row_ptr", torch.zeros(3, dtype=torch.int32), "row_ptr is torch.int32"),
        ("row_ptr", torch.zeros(13, dtype=torch.int64), "row_ptr is torch.int64"),
        ("col_idx", torch.zeros(3, dtype=torch.int64), "col_idx must be int32"),
        ("col_idx", torch.zeros(3, dtype=torch.int32, device="meta"), "index is on meta"),
    ],
    ids=["row_ptr length", "row_ptr dtype", "col_idx dtype", "device"],
)
def test_damaged_indexes_are_refused(call, field, value, message):
    q, k, v, index = call
    parts = {"row_ptr": index.row_ptr, "col_idx": index.col_idx, "dense": index.dense}
    with pytest.raises(UsageError, match=message):
        block_sparse_attention(q, k, v, BlockIndex(grid=index.grid, **(parts | {field: value})))


def test_a_scale_that_is_not_finite_is_refused(call):
    with pytest.raises(UsageError, match="scale nan"):
        block_sparse_attention(*call, scale=float("nan"))


@pytest.mark.gpu
def test_the_operator_on_cuda_equals_the_oracle(oracle, random_qkv):
    q, k, v = random_qkv(0, 1, 4, 2, 150, 200, 64)
    index = make_index()
    expected, _ = oracle.attention(q, k, v, index.to_mask(), index.grid, 0.125)
    on_gpu = BlockIndex(
        grid=index.grid,
        row_ptr=index.row_ptr.cuda(),
        col_idx=index.col_idx.cuda(),
        dense=index.dense.cuda(),
    )
    out = block_sparse_attention(
        q.half().cuda(), k.half().cuda(), v.half().cuda(), on_gpu, scale=0.125
    )
    torch.testing.assert_close(out.double().cpu(), expected, rtol=5e-3, atol=5e-3)
